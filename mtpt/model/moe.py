"""Mixture of experts in place of the hidden layer.

B row  T position  D model width  F hidden width of an expert  E experts  k choices  P slots
M tasks
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from mtpt.config import choose
from mtpt.mesh import BATCH, act, einsum, weight
from mtpt.model import task_routing
from mtpt.model.config import ModelConfig
from mtpt.model.dispatch import HELD, Sharing, capacity, chosen, dropless, lies_with_expert
from mtpt.model.grouped import grouped_matmul
from mtpt.model.layers import MLPS, Aux, Mlp
from mtpt.model.routing import Choice, ExpertChoice, Routing, TopK


class Moe(nnx.Module):
    """Routed experts, each an MLP, and shared ones beside them that take every token."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, decoder: bool):
        self.cfg, self.decoder = cfg, decoder
        self.name = cfg.moe.decoder_router if decoder else cfg.moe.encoder_router
        D, F = cfg.D, cfg.moe.F
        if MLPS[cfg.mlp].gated:
            self.gate = expert_param(rngs, 'EDF', cfg, D)
        self.up = expert_param(rngs, 'EDF', cfg, D)
        self.down = expert_param(rngs, 'EFD', cfg, F)
        self.router = choose('router', self.name, ROUTERS)(cfg, rngs)
        if cfg.moe.shared:
            self.shared = Mlp(cfg, rngs, cfg.moe.shared * F)

    def __call__(
        self,
        x_BTD: jax.Array,
        routing: Routing,
        key: jax.Array | None = None,
        decoding: bool = False,
    ) -> tuple[jax.Array, Aux]:
        """What the experts make of each position, and losses and figures to report."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        moe, real_BT = self.cfg.moe, routing.real_BT
        choice = self.router(x_BTD, routing, keys[0])
        weights = self.weights(x_BTD.dtype, keys[1])
        factor = moe.top_k * (moe.eval_capacity if key is None else moe.capacity)
        if choice.expert_BTk is None:  # the share of all tokens that an expert takes
            factor = moe.capacity
        sharing = Sharing(
            E=moe.E,
            factor=factor,
            group=x_BTD.shape[1] if routing.alone else moe.group,
            strict=key is not None,
            order='position' if self.decoder else 'gate' if moe.prioritised else 'choice',
        )
        by_slots = partial(self.by_slots, weights)
        if choice.expert_BTk is None:
            y_BTD, sent_BTE = chosen(
                x_BTD, choice.probs_BTE, real_BT, sharing, moe.normalise, by_slots
            )
            kept_BT = jnp.any(sent_BTE, -1)
        else:
            sent_BTE = jnp.any(choice.expert_BTk[..., None] == jnp.arange(moe.E), -2)
            if (
                decoding
                or routing.alone
                or moe.dispatch == 'dropless'
                or self.name in task_routing.BY_TASK
            ):
                letters = ['EDF'] * (len(weights) - 1) + ['EFD']
                local = moe.local and key is not None
                y_BTD = dropless(
                    x_BTD, choice, real_BT, moe.E, weights, letters, self.by_group, local
                )
                kept_BT = jnp.ones_like(real_BT)
                if local:
                    kept_BT = jnp.mean(lies_with_expert(choice.expert_BTk, moe.E), -1)
            else:
                y_BTD, kept_BTk = capacity(x_BTD, choice, real_BT, sharing, by_slots)
                kept_BT = jnp.mean(kept_BTk, -1)
        if moe.shared:
            y_BTD = y_BTD + self.shared(x_BTD, keys[2])
        return y_BTD, report(self.cfg, choice, routing, sent_BTE, kept_BT)

    def weights(self, dtype: jnp.dtype, key: jax.Array | None) -> list[jax.Array]:
        """What the experts compute with, the last one leading out again.

        Dropout is in that last one, which leaves out hidden features, an expert's own for a whole
        batch.
        """
        into = [self.gate, self.up] if MLPS[self.cfg.mlp].gated else [self.up]
        rate = self.cfg.dropout if self.cfg.moe.dropout is None else self.cfg.moe.dropout
        down_EFD = self.down[...]
        if key is not None and rate:
            shape, split = down_EFD.shape[:2], weight('EF')
            keep_EF = jax.random.bernoulli(key, 1 - rate, shape, out_sharding=split)
            down_EFD = jnp.where(keep_EF[..., None], down_EFD / (1 - rate), 0)
        return [*(w[...].astype(dtype) for w in into), down_EFD.astype(dtype)]

    def by_slots(self, weights: list[jax.Array], x_EPD: jax.Array) -> jax.Array:
        """The experts' MLPs on as many tokens each."""
        wide, narrow = P('expert', HELD, 'tensor'), P('expert', HELD, None)
        *into, down = weights
        h = [einsum('EPD,EDF->EPF', x_EPD, w, wide) for w in into]
        return einsum('EPF,EFD->EPD', self.activated(h), down, narrow)

    def by_group(self, x_PD: jax.Array, weights: list[jax.Array], sizes_E: jax.Array) -> jax.Array:
        """The experts' MLPs on rows that are sorted by expert."""
        *into, down = weights
        h = [grouped_matmul(x_PD, w, sizes_E) for w in into]
        return grouped_matmul(self.activated(h), down, sizes_E)

    def activated(self, h: list[jax.Array]) -> jax.Array:
        first = MLPS[self.cfg.mlp].activation(h[0])
        return first * h[1] if len(h) > 1 else first


def expert_param(rngs: nnx.Rngs, dims: str, cfg: ModelConfig, fan_in: int) -> nnx.Param:
    """A weight of every expert: normal, of variance 0.1 / fan_in, truncated at two deviations.

    A tenth of the usual variance keeps early training stable (2101.03961, 2.4).
    """
    letters = cfg.letters | dict(F=cfg.moe.F)
    shape = tuple(letters[d] for d in dims)
    value = jax.random.truncated_normal(rngs.params(), -2, 2, shape, out_sharding=weight(dims))
    return nnx.Param(value * math.sqrt(SCALE / fan_in) / TRUNCATED, dims=dims)


def report(
    cfg: ModelConfig,
    choice: Choice,
    routing: Routing,
    sent_BTE: jax.Array,
    kept_BT: jax.Array,
) -> Aux:
    """Losses, weighted, and figures, all over real tokens, of all devices together.

    Losses, of routers that have probabilities: 'loss/balance', E * sum_e f_e P_e (2101.03961, eq. 4
    to 6), where P_e is the mean probability of expert e and f_e the share of tokens that go to it
    by any of their k choices, dropped or not, so that an even load gives k (not where experts
    choose or all take all: their load is even); 'loss/router_z', the mean of logsumexp(logits)^2
    (2202.08906, eq. 5).

    Figures: 'moe/kept', the share of (token, choice) pairs that found a slot, or of tokens that
    some expert chose; 'moe/load_max' and 'moe/load_min', what the fullest and the emptiest expert
    are sent, dropped or not, as multiples of an even share; 'moe/entropy' of the router in nats;
    'routing' [M + 1, E], how many tokens of each task (0: not known) are sent to each expert, or
    where each is sent to all, in which shares they serve it.
    """
    E, real_BT = cfg.moe.E, routing.real_BT
    tokens = jnp.maximum(jnp.sum(real_BT, dtype=jnp.float32), 1.0)

    def mean(x):
        real = real_BT.reshape(*real_BT.shape, *[1] * (x.ndim - 2))
        return jnp.sum(jnp.where(real, x, 0.0), (0, 1), dtype=jnp.float32) / tokens

    f_E = mean(sent_BTE)
    even = jnp.maximum(jnp.mean(f_E), 1e-9)
    aux = {
        'moe/kept': mean(kept_BT),
        'moe/load_max': jnp.max(f_E) / even,
        'moe/load_min': jnp.min(f_E) / even,
    }
    if choice.probs_BTE is not None:
        p_BTE = choice.probs_BTE
        aux['moe/entropy'] = mean(jnp.sum(jax.scipy.special.entr(p_BTE), -1))
        logZ_BT = jax.nn.logsumexp(choice.logits_BTE, -1)
        aux['loss/router_z'] = cfg.moe.z_loss * mean(jnp.square(logZ_BT))
        if choice.expert_BTk is not None and choice.expert_BTk.shape[-1] < E:
            aux['loss/balance'] = cfg.moe.balance * E * jnp.sum(f_E * mean(p_BTE))
    if cfg.M and routing.tasks_BT is not None:
        served_BTE = sent_BTE
        if choice.expert_BTk is not None and choice.expert_BTk.shape[-1] == E:
            served_BTE = jax.lax.stop_gradient(choice.probs_BTE)  # all serve, by their gates
        served_BTE = jnp.where(real_BT[..., None], served_BTE, 0)
        aux['routing'] = by_task(served_BTE, routing.tasks_BT, cfg.M)
    return aux


def by_task(sent_BTE: jax.Array, tasks_BT: jax.Array, M: int) -> jax.Array:
    """Tokens by task and expert, [M + 1, E]; a small scatter on each device, then a sum."""

    @partial(jax.shard_map, in_specs=(act('BTE'), act('BT')), out_specs=P())
    def count(sent_BTE, tasks_BT):
        E = sent_BTE.shape[-1]
        sent_nE = sent_BTE.reshape(-1, E).astype(jnp.float32)
        counts_ME = jnp.zeros((M + 1, E)).at[tasks_BT.reshape(-1)].add(sent_nE, mode='drop')
        return jax.lax.psum(counts_ME, BATCH)

    return count(sent_BTE, tasks_BT)


SCALE = 0.1
TRUNCATED = 0.87962566  # the deviation of a unit normal that is cut at two

ROUTERS = dict(
    top_k=TopK,
    expert_choice=ExpertChoice,
    task_aware=task_routing.TaskAware,
    task=task_routing.TaskLevel,
    enforced=task_routing.Enforced,
)
