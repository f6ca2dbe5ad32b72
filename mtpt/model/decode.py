"""Decoding: greedy with remembered keys and values, and the log-probabilities of given targets.

B row  S encoder position  T decoder position  H heads  K head width  V vocabulary  N layers
O answer choices, all of a batch of examples laid out in one axis
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from mtpt.mesh import act, rows
from mtpt.model.attention import same_segment
from mtpt.model.config import ModelConfig
from mtpt.model.encoder_decoder import Params, encode, module


@partial(
    jax.tree_util.register_dataclass,
    data_fields=['own', 'encoder', 'mask_B11S', 'bias_1HTT', 'place'],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """What decoding one more position needs of the positions before it and of the encoder.

    `own` and `encoder` are pairs of keys and values [N, B, T, H, K] and [N, B, S, H, K]; `place` is
    how many positions have been decoded.
    """

    own: tuple[jax.Array, jax.Array]
    encoder: tuple[jax.Array, jax.Array]
    mask_B11S: jax.Array
    bias_1HTT: jax.Array
    place: jax.Array


def start(
    cfg: ModelConfig, params: Params, x_BSD: jax.Array, segments_BS: jax.Array, T: int
) -> Cache:
    """An empty cache for T positions of decoding from these encoder states, one example a row."""
    decoder = module(cfg, params).decoder

    def keys_values(_, layer):
        return None, layer.cross.keys_values(x_BSD)

    _, encoder = jax.lax.scan(keys_values, None, decoder.layers)
    shape = (cfg.decoder_layers, x_BSD.shape[0], T, cfg.H, cfg.K)
    empty = jnp.zeros(shape, x_BSD.dtype, out_sharding=act('NBTHK'))
    ones_B1 = jnp.ones_like(segments_BS[:, :1])
    return Cache(
        own=(empty, empty),
        encoder=encoder,
        mask_B11S=same_segment(ones_B1, segments_BS),
        bias_1HTT=decoder.bias(T),
        place=jnp.int32(0),
    )


def step(
    cfg: ModelConfig, params: Params, cache: Cache, tokens_B: jax.Array
) -> tuple[jax.Array, Cache]:
    """Feeds one token a row; gives the logits_BV of the next and the cache that remembers it."""
    model = module(cfg, params)
    bias_1H1T = jax.lax.dynamic_slice_in_dim(cache.bias_1HTT, cache.place, 1, 2)
    mask_111T = (jnp.arange(cache.bias_1HTT.shape[3]) <= cache.place)[None, None, None]

    def body(x_B1D, layer_own_encoder):
        layer, own, encoder = layer_own_encoder
        memory = encoder, cache.mask_B11S
        return layer.step(x_B1D, bias_1H1T, mask_111T, own, cache.place, memory)

    x_B1D = model.embed(rows(tokens_B)[:, None])
    x_B1D, own = jax.lax.scan(body, x_B1D, (model.decoder.layers, cache.own, cache.encoder))
    logits_BV = model.head(model.decoder.norm(x_B1D))[:, 0]
    return logits_BV, dataclasses.replace(cache, own=own, place=cache.place + 1)


@partial(jax.jit, static_argnums=(0, 3), static_argnames='eos')
def greedy(
    cfg: ModelConfig, params: Params, tokens_BS: jax.Array, max_length: int, eos: int = 1
) -> jax.Array:
    """The likeliest next token, again and again: tokens_BT with T = `max_length`.

    One example a row; 0 is padding in the inputs, the start token, and what follows `eos`. Encodes
    once, compiles once for a shape, and stops when every row has ended.
    """
    tokens_BS = rows(tokens_BS)
    segments_BS = (tokens_BS > 0).astype(jnp.int32)
    x_BSD = encode(cfg, params, tokens_BS, segments_BS)
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

    cache = start(cfg, params, x_BSD, segments_BS, max_length)
    return jax.lax.while_loop(going, body, (cache, zeros_B, zeros_B != 0, out_BT))[3]


def log_probs(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """log p of each target token, in float32; the vocabulary may be split."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    hit_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1], out_sharding=act('V'))
    picked_BT = jnp.sum(jnp.where(hit_BTV, logits_BTV, 0), -1)
    return picked_BT - jax.nn.logsumexp(logits_BTV, -1)
