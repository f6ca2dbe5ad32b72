"""Greedy decoding with remembered keys and values, and the log-probabilities of given targets.

B row  S encoder position  T decoder position  G segments of a row  V vocabulary
"""

from functools import partial

import jax
import jax.numpy as jnp

from mtpt.mesh import act, rows
from mtpt.model.config import ModelConfig
from mtpt.model.functional import Params, encode, start, step


@partial(jax.jit, static_argnums=(0, 3), static_argnames='eos')
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
    tokens_BS = rows(tokens_BS)
    segments_BS = (tokens_BS > 0).astype(jnp.int32)
    encoded = encode(cfg, params, tokens_BS, segments_BS, tasks_BG)
    zeros_B = jnp.zeros_like(tokens_BS[:, 0])
    out_BT = jnp.zeros((len(tokens_BS), max_length), tokens_BS.dtype, out_sharding=act('BT'))

    def going(state):
        cache, _, ended_B, _ = state
        return (cache.place < max_length) & ~jnp.all(ended_B)

    def body(state):
        cache, tokens_B, ended_B, out_BT = state
        place = cache.place
        logits_BV, cache = step(cfg, params, cache, tokens_B)
        logits_BV = jax.reshard(logits_BV, act('B1'))
        tokens_B = jnp.where(ended_B, 0, jnp.argmax(logits_BV, -1).astype(tokens_B.dtype))
        out_BT = jax.lax.dynamic_update_slice_in_dim(out_BT, tokens_B[:, None], place, 1)
        return cache, tokens_B, ended_B | (tokens_B == eos), out_BT

    cache = start(cfg, params, encoded, max_length)
    return jax.lax.while_loop(going, body, (cache, zeros_B, zeros_B != 0, out_BT))[3]


def log_probs(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """log p of each target token, in float32; the vocabulary may be split."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    hit_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1], out_sharding=act('V'))
    picked_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0), -1)
    return picked_BT - jax.nn.logsumexp(logits_BTV, -1)
