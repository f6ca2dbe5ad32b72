"""Where a token stands: T5's learnt bias by distance, rotated queries and keys, and masks.

B row  T query position  S key position  L distance  H heads  K head width  U buckets
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtpt.mesh import einsum, weight
from mtpt.model.config import ModelConfig


def bucket(distance: np.ndarray, both_ways: bool, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance (key position minus query position).

    Half of the buckets hold one distance each, the rest widen by a constant factor up to
    `max_distance`, and the last takes all beyond. Seen both ways, past and future have half of the
    buckets each (T5, section 2.1).
    """
    distance = np.asarray(distance)
    first = np.zeros_like(distance)
    if both_ways:
        buckets //= 2
        first = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    # float32, in T5's order of operations: the edges of the wide buckets hang on the rounding.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
    wide = np.minimum(exact + ratio.astype(np.int64), buckets - 1)
    return first + np.where(distance < exact, distance, wide)


def bias_table(cfg: ModelConfig, rngs: nnx.Rngs) -> nnx.Param:
    """What each head adds to a score in each bucket: one table, shared by the layers of a stack."""
    bound = math.sqrt(6 / (cfg.buckets + cfg.H))
    shape, sharding = (cfg.buckets, cfg.H), weight('UH')
    value = jax.random.uniform(
        rngs.params(), shape, minval=-bound, maxval=bound, out_sharding=sharding
    )
    return nnx.Param(value, dims='UH')


def relative_bias(cfg: ModelConfig, table_UH: Any, T: int, S: int, both_ways: bool) -> jax.Array:
    """The bias [1, H, T, S] of positions 0..T-1 towards 0..S-1, in float32.

    Computed by distance and then laid out by shifting rows, so that the gradient is a sum and not a
    scatter of T x S entries. Rows may be packed: within a segment only differences count.
    """
    L = T + S - 1
    buckets_L = bucket(np.arange(L) - (T - 1), both_ways, cfg.buckets, cfg.max_distance)
    hot_LU = jnp.asarray(np.eye(cfg.buckets, dtype=np.float32)[buckets_L])
    bias_HL = jnp.pad(einsum('LU,UH->HL', hot_LU, table_UH), ((0, 0), (0, 1)))
    # A row of L + 1 entries, repeated T times and read again in rows of L, moves by one a row.
    bias_HTL = jnp.broadcast_to(bias_HL[:, None], (cfg.H, T, L + 1))
    bias_HTL = bias_HTL.reshape(cfg.H, T * (L + 1))[:, : T * L].reshape(cfg.H, T, L)
    return bias_HTL[None, :, :, T - 1 :]


def same_segment(query_BT: jax.Array, key_BS: jax.Array) -> jax.Array:
    """A mask [B, 1, T, S] that lets a position see its own segment (padding sees padding)."""
    return (query_BT[:, :, None] == key_BS[:, None, :])[:, None]


def causal(T: int) -> np.ndarray:
    """A mask [1, 1, T, T] that hides the future."""
    return np.tril(np.ones((T, T), bool))[None, None]


def rotate(x_BTHK: jax.Array, positions_T: jax.Array) -> jax.Array:
    """Rotary positions (RoFormer, 2104.09864, 3.2.2): pairs (i, i + K/2) turn by position.

    Scores of rotated queries and keys depend on the difference of their positions only.

    Args:
      x_BTHK: queries or keys; K is even.
      positions_T: [T], or [B, T] where rows have positions of their own.
    """
    K = x_BTHK.shape[-1]
    speed_K = jnp.asarray(10000.0 ** -(np.arange(0, K, 2) / K), jnp.float32)
    angle = (positions_T[..., None].astype(jnp.float32) * speed_K)[..., None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x_BTHK.dtype)
