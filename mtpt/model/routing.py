"""What routers are given and what they give; the routers that look at tokens alone.

B row  T position  D model width  E experts  Y experts as a router scores them  k choices
X width of a task's representation
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mtpt.mesh import act, einsum
from mtpt.model.config import ModelConfig
from mtpt.model.layers import param

ROUTER_STD = 2e-2  # ST-MoE (2202.08906) and its code


class Routing(NamedTuple):
    """What routing may know of a position besides its state.

    real_BT: false on padding, which takes no slot and counts in no figure; tasks_BT: the id of the
    task that it belongs to, 0 where unknown; task_BTX: that task's representation; alone: whether a
    row must not feel what else is in the batch, as when it is scored or answered.
    """

    real_BT: jax.Array
    tasks_BT: jax.Array | None = None
    task_BTX: jax.Array | None = None
    alone: bool | None = None  # None is no leaf of a tree: a cache holds arrays


class Choice(NamedTuple):
    """Which experts a position goes to.

    expert_BTk: their numbers; gate_BTk: what their outputs are multiplied by, float32; both None
    where the experts choose the positions. logits_BTE and probs_BTE: the router's, float32, None
    where nothing was computed (enforced routing).
    """

    expert_BTk: jax.Array | None
    gate_BTk: jax.Array | None
    logits_BTE: jax.Array | None = None
    probs_BTE: jax.Array | None = None


class TopK(nnx.Module):
    """Every position goes to the k experts that score highest.

    Switch (2101.03961, 2.1) for k = 1, ST-MoE (2202.08906) for k = 2. The gate of an expert is its
    probability; with `normalise` the gates of the chosen sum to 1, so that for k = 1 the router
    learns from its own losses alone. In training the router's input is multiplied by noise
    ('jitter'). All of it is in float32.
    """

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.k, self.normalise, self.jitter = cfg.moe.top_k, cfg.moe.normalise, cfg.moe.jitter
        self.kernel = param(rngs, 'DY', cfg, ROUTER_STD)

    def scores(self, x_BTD: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Logits_BTE and probs_BTE."""
        x_BTD = x_BTD.astype(jnp.float32)
        if key is not None and self.jitter:
            low, high = 1 - self.jitter, 1 + self.jitter
            noise = dict(minval=low, maxval=high, out_sharding=act('BTD'))
            x_BTD = x_BTD * jax.random.uniform(key, x_BTD.shape, **noise)
        with jax.default_matmul_precision('highest'):
            logits_BTE = einsum('BTD,DY->BTY', x_BTD, self.kernel)
        return logits_BTE, jax.nn.softmax(logits_BTE, axis=-1)

    def __call__(self, x_BTD: jax.Array, routing: Routing, key: jax.Array | None = None) -> Choice:
        return self.choice(*self.scores(x_BTD, key))

    def choice(self, logits_BTE: jax.Array, probs_BTE: jax.Array) -> Choice:
        expert_BTk = top(probs_BTE, self.k)
        gate_BTk = pick(probs_BTE, expert_BTk)
        if self.normalise:
            gate_BTk = gate_BTk / (jnp.sum(gate_BTk, -1, keepdims=True) + 1e-9)
        return Choice(expert_BTk, gate_BTk, logits_BTE, probs_BTE)


class ExpertChoice(TopK):
    """The experts choose: each takes the positions that score it highest (2202.09368, 3.2).

    Here are only the scores; who is taken depends on the slots of an expert (`dispatch`).
    """

    def __call__(self, x_BTD: jax.Array, routing: Routing, key: jax.Array | None = None) -> Choice:
        return Choice(None, None, *self.scores(x_BTD, key))


def top(probs_BTE: jax.Array, k: int) -> jax.Array:
    """The k largest along the last axis, the largest first and the earlier of equals: BTk."""
    probs_BTE = jax.lax.stop_gradient(probs_BTE)
    if k == 1:
        return jnp.argmax(probs_BTE, -1, keepdims=True).astype(jnp.int32)
    split = act('BTE')
    best = jax.shard_map(lambda p: jax.lax.top_k(p, k)[1], in_specs=split, out_specs=split)
    return best(probs_BTE)


def pick(probs_BTE: jax.Array, expert_BTk: jax.Array) -> jax.Array:
    """The entries at the given experts: BTk. A masked sum, whose gradient scatters nothing."""
    E = probs_BTE.shape[-1]
    hit_BTkE = expert_BTk[..., None] == jnp.arange(E)
    return jnp.sum(jnp.where(hit_BTkE, probs_BTE[..., None, :], 0.0), -1)
