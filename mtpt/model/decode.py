"""Writing answers token by token with remembered keys and values; log-probabilities of given ones.

B row  S encoder position  T decoder position  G segments of a row  V vocabulary  n answers a row
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mtpt.config import UserError
from mtpt.mesh import act, rows
from mtpt.model.config import ModelConfig
from mtpt.model.functional import Params, encode, start, step


@dataclasses.dataclass(frozen=True)
class Sampling:
    """From what the next token is drawn.

    temperature: what logits are divided by; below 1 the likely becomes likelier.
    top_k: the likeliest so many tokens only (Fan et al. 2018, 1805.04833); 0 is all.
    top_p: the likeliest tokens only, as many as it takes to hold so much of the probability
      (Holtzman et al. 2020, 1904.09751), of what `top_k` has left; 1 is all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature <= 0:
            raise UserError(
                f'temperature={self.temperature} must be above 0; for the likeliest token every '
                'time do not sample'
            )
        if self.top_k < 0:
            raise UserError(f'top_k={self.top_k} must be at least 1 token, or 0 for all')
        if not 0 < self.top_p <= 1:
            raise UserError(f'top_p={self.top_p} must be above 0 and at most 1')


@partial(jax.jit, static_argnames=('cfg', 'max_length', 'eos'))
def greedy(
    cfg: ModelConfig,
    params: Params,
    tokens_BS: jax.Array,
    max_length: int,
    eos: int = 1,
    tasks_BG: jax.Array | None = None,
) -> jax.Array:
    """The likeliest next token, again and again: tokens_BT with T = `max_length`.

    One example a row; 0 is padding in the inputs, the start token, and what follows `eos`. Encodes
    once, compiles once for a shape, and stops when every row has ended.
    """

    def likeliest(logits_BV, place):
        del place
        return jnp.argmax(logits_BV, -1)

    cache = begun(cfg, params, tokens_BS, max_length, tasks_BG)
    return _written(cfg, params, cache, rows(tokens_BS)[:, 0], max_length, eos, likeliest)


@partial(jax.jit, static_argnames=('cfg', 'max_length', 'how', 'number', 'eos'))
def sample(
    cfg: ModelConfig,
    params: Params,
    tokens_BS: jax.Array,
    max_length: int,
    key: jax.Array,
    stream_B: jax.Array,
    how: Sampling = Sampling(),
    number: int = 1,
    eos: int = 1,
    tasks_BG: jax.Array | None = None,
) -> jax.Array:
    """Tokens drawn as the model finds them likely: tokens_BnT, n = `number` answers a row.

    Args:
      stream_B: a number for each row. What is drawn for a row hangs on the key, its number and the
        place of the answer among those of the row, and not on the other rows of the batch.
    """
    cache = begun(cfg, params, tokens_BS, max_length, tasks_BG).repeat(number)
    streams_Bn = _draws(key, rows(stream_B), number)

    def drawn(logits_BV, place):
        @partial(jax.shard_map, out_specs=act('B'))
        def local(logits_BV, streams_B, place):
            V = logits_BV.shape[-1]
            keys_B = jax.vmap(jax.random.fold_in, (0, None))(streams_B, place)
            noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, (V,)))(keys_B)
            return jnp.argmax(kept(logits_BV, how) + noise_BV, -1)

        return local(logits_BV, streams_Bn, place)

    first_B = _repeated(rows(tokens_BS)[:, 0], number)
    out_BT = _written(cfg, params, cache, first_B, max_length, eos, drawn)
    return by_row(out_BT, number)


def begun(cfg, params, tokens_BS, max_length, tasks_BG) -> Any:
    """The inputs read, and a cache for the answers."""
    tokens_BS = rows(tokens_BS)
    segments_BS = (tokens_BS > 0).astype(jnp.int32)
    return start(cfg, params, encode(cfg, params, tokens_BS, segments_BS, tasks_BG), max_length)


def by_row(x_B: jax.Array, n: int) -> jax.Array:
    """From rows in which the n of an input lie side by side, [B n, ...], to [B, n, ...]."""

    @partial(jax.shard_map, out_specs=act('B'))
    def local(x_B):
        return x_B.reshape(-1, n, *x_B.shape[1:])

    return local(x_B)


def _repeated(x_B: jax.Array, n: int) -> jax.Array:
    return jax.shard_map(lambda x_B: jnp.repeat(x_B, n, 0), out_specs=act('B'))(x_B)


def _draws(key: jax.Array, stream_B: jax.Array, n: int) -> jax.Array:
    """A key for each of the n answers of each row, side by side."""

    @partial(jax.shard_map, out_specs=act('B'))
    def local(key, stream_B):
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, stream_B)
        both = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        return both(keys_B, jnp.arange(n)).reshape(-1)

    return local(key, stream_B)


def _written(
    cfg: ModelConfig,
    params: Params,
    cache: Any,
    like_B: jax.Array,
    max_length: int,
    eos: int,
    pick: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Tokens_BT that `pick` takes from logits_BV at each place, until all rows have ended."""
    zeros_B = jnp.zeros_like(like_B)
    out_BT = jnp.zeros((len(like_B), max_length), like_B.dtype, out_sharding=act('BT'))

    def going(state):
        _, place, _, ended_B, _ = state
        return (place < max_length) & ~jnp.all(ended_B)

    def body(state):
        cache, place, tokens_B, ended_B, out_BT = state
        logits_BV, cache = step(cfg, params, cache, tokens_B)
        picked_B = pick(jax.reshard(logits_BV, act('B1')), place).astype(tokens_B.dtype)
        tokens_B = jnp.where(ended_B, 0, picked_B)
        out_BT = jax.lax.dynamic_update_slice_in_dim(out_BT, tokens_B[:, None], place, 1)
        return cache, place + 1, tokens_B, ended_B | (tokens_B == eos), out_BT

    state = cache, jnp.int32(0), zeros_B, zeros_B != 0, out_BT
    return jax.lax.while_loop(going, body, state)[-1]


def kept(logits_BV: jax.Array, how: Sampling) -> jax.Array:
    """Tempered logits of the tokens that may be drawn, minus infinity for the others.

    Equal logits stay or go together.
    """
    logits_BV = logits_BV.astype(jnp.float32) / how.temperature
    if not how.top_k and how.top_p == 1:
        return logits_BV
    # The likeliest first, written as k though without `top_k` it is all of V.
    best_Bk = jax.lax.top_k(logits_BV, min(how.top_k or logits_BV.shape[-1], logits_BV.shape[-1]))[
        0
    ]
    least_B = best_Bk[:, -1]
    if how.top_p < 1:
        p_Bk = jax.nn.softmax(best_Bk, -1)
        likelier_Bk = jnp.cumsum(p_Bk, -1) - p_Bk
        least_B = jnp.min(jnp.where(likelier_Bk < how.top_p, best_Bk, jnp.inf), -1)
    return jnp.where(logits_BV < least_B[:, None], -jnp.inf, logits_BV)


def log_probs(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """log p of each target token, in float32; the vocabulary may be split."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    hit_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1], out_sharding=act('V'))
    picked_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0), -1)
    return picked_BT - jax.nn.logsumexp(logits_BTV, -1)
