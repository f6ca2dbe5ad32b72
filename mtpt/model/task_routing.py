"""Routing that knows the task: what a task is to a router, and the routers that go by it.

A row may hold segments of several tasks; what is known of a task is made per segment and handed
to its positions, so that a packed row routes as its segments would alone.

B row  S encoder position  T position  G segments of a row  M tasks  D model width  E experts
Y experts as a router scores them  k choices  X width of a task's representation
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import P

from mtpt.config import UserError
from mtpt.mesh import act, einsum
from mtpt.model.config import ModelConfig
from mtpt.model.layers import param
from mtpt.model.parts import routers
from mtpt.model.routing import ROUTER_STD, Choice, Routing, TopK, pick, top

BY_TASK = ('task_aware', 'task', 'enforced')


def by_task(cfg: ModelConfig) -> bool:
    """Whether where a position goes depends on the task that it belongs to."""
    return bool(set(routers(cfg).values()) & set(BY_TASK))


def knows_tasks(cfg: ModelConfig) -> bool:
    """Whether a router of the model looks at a representation of the task."""
    return bool(set(routers(cfg).values()) & {'task_aware', 'task'})


def of_tokens(segments_BT, tasks_BG, task_BGX=None, alone=None) -> Routing:
    """What routing knows of each position: from its segment (1 .. G) to the segment's task."""
    real_BT = segments_BT > 0
    if tasks_BG is None:
        return Routing(real_BT, alone=alone)
    member_BTG = segments_BT[..., None] == jnp.arange(1, tasks_BG.shape[1] + 1)
    tasks_BT = jnp.sum(jnp.where(member_BTG, tasks_BG[:, None], 0), -1)
    if task_BGX is None:
        return Routing(real_BT, tasks_BT, alone=alone)
    member_BTG = member_BTG.astype(task_BGX.dtype)
    return Routing(real_BT, tasks_BT, einsum('BTG,BGX->BTX', member_BTG, task_BGX), alone)


class TaskRepresentation(nnx.Module):
    """What a task is to the routers: learnt by its id, computed from its prompt, or both.

    'id': a row of a table. A task that is not known (id 0, or above M) takes the mean of the learnt
    rows. 'prompt': the mean of the embedded inputs of the segment, projected; it needs no id, so
    an unseen task routes as those that read alike. No gradient goes into the token embedding:
    words are learnt by reading, and the projection learns to tell tasks by them. 'both': the sum;
    an unknown task has the prompt's part alone, and so has, at the rate `moe.forget`, a segment in
    training, that it be used to that. Every part and the sum are divided by their root mean square.
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.M, self.source, self.forget = cfg.M, cfg.moe.task_from, cfg.moe.forget
        if self.source != 'prompt':
            self.table = param(rngs, 'MX', cfg, 1.0)
        if self.source != 'id':
            self.project = param(rngs, 'DX', cfg, cfg.D**-0.5)
        self.scale = nnx.Param(jnp.ones((cfg.moe.X,), out_sharding=P(None)), dims='X')

    def __call__(
        self,
        x_BSD: jax.Array,
        segments_BS: jax.Array,
        tasks_BG: jax.Array | None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """task_BGX, float32, of the segments 1 .. G of each row.

        Raises:
          UserError: the batch does not say which task a segment belongs to.
        """
        if tasks_BG is None:
            raise UserError(
                'routing by task needs segment_task_ids in the batch: ids by segment, 0 for a task '
                'that is not known'
            )
        parts = []
        if self.source != 'id':
            parts.append(_normed(self.of_prompt(x_BSD, segments_BS, tasks_BG.shape[1])))
        if self.source != 'prompt':
            parts.append(self.of_id(tasks_BG, key))
        return _normed(sum(parts)) * self.scale[...]

    def of_prompt(self, x_BSD: jax.Array, segments_BS: jax.Array, G: int) -> jax.Array:
        """The mean embedded input of each segment, projected."""
        x_BSD = jax.lax.stop_gradient(x_BSD).astype(jnp.float32)
        member_BSG = segments_BS[..., None] == jnp.arange(1, G + 1)
        member_BSG = member_BSG.astype(jnp.float32)
        tokens_BG1 = jnp.maximum(jnp.sum(member_BSG, 1), 1.0)[..., None]
        mean_BGD = einsum('BSG,BSD->BGD', member_BSG, x_BSD) / tokens_BG1
        return einsum('BGD,DX->BGX', mean_BGD, self.project)

    def of_id(self, tasks_BG: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The row of each id; for unknown ones the mean of all, or 0 where the prompt tells."""
        known_BG = (tasks_BG > 0) & (tasks_BG <= self.M)
        if self.source == 'both' and key is not None and self.forget:
            rate, split = 1 - self.forget, act('BG')
            known_BG &= jax.random.bernoulli(key, rate, known_BG.shape, out_sharding=split)
        table_MX = self.table[...]
        # A product and no slice, of which JAX 0.10.2 cannot add the gradient to a sum in place.
        mean_M = (jnp.arange(len(table_MX)) > 0) / self.M if self.M else jnp.ones(1)
        unknown_X = einsum('M,MX->X', mean_M, table_MX) * (self.source == 'id')
        found_BGX = rows_of(table_MX, jnp.where(known_BG, tasks_BG, 0))
        return jnp.where(known_BG[..., None], found_BGX, unknown_X)


def _normed(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6)


def rows_of(table_MX: jax.Array, ids_BG: jax.Array) -> jax.Array:
    """Rows of a small table that every device has whole."""

    @partial(jax.shard_map, in_specs=(P(), act('BG')), out_specs=act('BGX'))
    def look_up(table_MX, ids_BG):
        return table_MX[ids_BG]

    return look_up(table_MX, ids_BG)


def scored(routing: Routing, kernel_XY: nnx.Param) -> jax.Array:
    """Logits_BTE of the experts from the task's representation, in float32."""
    with jax.default_matmul_precision('highest'):
        return einsum('BTX,XY->BTY', routing.task_BTX, kernel_XY)


class TaskAware(TopK):
    """The k experts that score highest for the position and its task together.

    Gupta et al. (2204.07689): the gate sees the token's state beside a representation of the task.
    A linear map of the two side by side is the sum of a map of each. Gates, jitter (of the state)
    and normalisation are those of `TopK`.
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        super().__init__(cfg, rngs)
        self.task = param(rngs, 'XY', cfg, ROUTER_STD)

    def __call__(self, x_BTD: jax.Array, routing: Routing, key: jax.Array | None = None) -> Choice:
        logits_BTE, _ = self.scores(x_BTD, key)
        logits_BTE = logits_BTE + scored(routing, self.task)
        return self.choice(logits_BTE, jax.nn.softmax(logits_BTE, -1))


class TaskLevel(nnx.Module):
    """A router over the task's representation: all positions of a task go to the same expert.

    As Ye et al. (2205.12701) have it, a layer's expert is picked for a whole task:

    'soft': the sum of all experts, by the router's weights.
    'gumbel': the largest logit, in training after noise of which a task has one draw a batch. The
      gate is 1, and its gradient that of the expert's probability (straight-through). The experts
      that were not taken are not computed, so their outputs add nothing to that gradient.
    'hard': the largest logit; the gate is its probability, through which the router learns, as in
      Switch.

    Without a key there is no noise. Where the representation is computed from the prompt, each
    example is routed by its own.
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.kernel = param(rngs, 'XY', cfg, cfg.moe.X**-0.5)

    def __call__(self, x_BTD: jax.Array, routing: Routing, key: jax.Array | None = None) -> Choice:
        logits_BTE = scored(routing, self.kernel)
        noise_BTE = None
        if key is not None and self.cfg.moe.task_choice == 'gumbel':
            noise_ME = jax.random.gumbel(key, (self.cfg.M + 1, self.cfg.moe.E))
            noise_BTE = rows_of(noise_ME, jnp.clip(routing.tasks_BT, 0, self.cfg.M))
        return TASK_CHOICES[self.cfg.moe.task_choice](
            logits_BTE, noise_BTE, self.cfg.moe.temperature
        )


def soft(logits_BTE, noise_BTE, temperature) -> Choice:
    """All experts, by their probabilities."""
    probs_BTE = jax.nn.softmax(logits_BTE / temperature, -1)
    every_E = jnp.arange(logits_BTE.shape[-1], dtype=jnp.int32)
    expert_BTE = jnp.zeros_like(logits_BTE, jnp.int32) + every_E
    return Choice(expert_BTE, probs_BTE, logits_BTE, probs_BTE)


def hard(logits_BTE, noise_BTE, temperature) -> Choice:
    """The likeliest expert, gated by its probability."""
    probs_BTE = jax.nn.softmax(logits_BTE / temperature, -1)
    expert_BT1, gate_BT1 = _best(probs_BTE)
    return Choice(expert_BT1, gate_BT1, logits_BTE, probs_BTE)


def gumbel(logits_BTE, noise_BTE, temperature) -> Choice:
    """The likeliest expert after noise, gated by 1, with the gradient of its probability."""
    noisy_BTE = logits_BTE if noise_BTE is None else logits_BTE + noise_BTE
    probs_BTE = jax.nn.softmax(noisy_BTE / temperature, -1)
    expert_BT1, gate_BT1 = _best(probs_BTE)
    gate_BT1 = 1.0 + (gate_BT1 - jax.lax.stop_gradient(gate_BT1))
    return Choice(expert_BT1, gate_BT1, logits_BTE, probs_BTE)


def _best(probs_BTE: jax.Array) -> tuple[jax.Array, jax.Array]:
    expert_BT1 = top(probs_BTE, 1)
    return expert_BT1, pick(probs_BTE, expert_BT1)


TASK_CHOICES: dict[str, Callable[..., Choice]] = dict(soft=soft, gumbel=gumbel, hard=hard)


class Enforced(nnx.Module):
    """No router: the config says which expert serves a task, a family or a data set.

    As in SciMult (2305.14232) and in the mixture-of-experts embeddings of Hallee et al.
    (2401.15713). Ids that the table does not have go where unknown tasks go (entry 0).
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        del rngs
        self.expert_of_task = cfg.moe.expert_of_task

    def __call__(self, x_BTD: jax.Array, routing: Routing, key: jax.Array | None = None) -> Choice:
        if not self.expert_of_task:
            raise UserError(
                "the router 'enforced' needs model.moe.experts_of, such as ('summarisation=2', "
                "'*=0'), and a table of tasks to look up in"
            )
        table_M = np.asarray(self.expert_of_task, np.int32)
        tasks_BT = jnp.zeros_like(x_BTD[..., 0], jnp.int32)
        if routing.tasks_BT is not None:
            tasks_BT = jnp.where(routing.tasks_BT < len(table_M), routing.tasks_BT, 0)
        expert_BT1 = rows_of(jnp.asarray(table_M)[:, None], tasks_BT)
        return Choice(expert_BT1, jnp.ones_like(expert_BT1, jnp.float32))
