"""The layers that a T5 block is made of, besides attention.

B row  T position (encoder or decoder)  D model width  F hidden width  V vocabulary  N layers
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import P

from mtpt.config import UserError
from mtpt.mesh import BATCH, act, axis_size, einsum, weight
from mtpt.model.config import ModelConfig

Aux = dict[str, jax.Array]  # what layers report; entries 'loss/*' join the objective


def param(rngs: nnx.Rngs, dims: str, cfg: ModelConfig, std: float, **sizes: int) -> nnx.Param:
    """A float32 weight whose letters give its shape and sharding; normal, of deviation `std`.

    sizes: of letters that mean something else here than in the config, such as J=1.
    """
    letters = cfg.letters | sizes
    shape = tuple(letters[d] for d in dims)
    value = std * jax.random.normal(rngs.params(), shape, out_sharding=weight(dims))
    return nnx.Param(value, dims=dims)


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """One module whose weights have a leading axis N, to be scanned over."""
    return jax.vmap(make)(rngs.split(layers))


def stream(cfg: ModelConfig, T: int) -> P:
    """How the states [B, T, D] between the parts of layers are split (`cfg.sequence_split`).

    A length that does not divide is left whole: that of a row to be answered may be any.
    """
    split = cfg.sequence_split and T % axis_size('tensor') == 0
    return P(BATCH, 'tensor', None) if split else act('BTD')


def whole(x_BTD: jax.Array) -> jax.Array:
    """States with all positions of their rows, as attention and the hidden layer take them."""
    return jax.reshard(x_BTD, act('BTD'))


def split_of(x_BTD: jax.Array) -> P:
    return jax.typeof(x_BTD).sharding.spec


def check_split(cfg: ModelConfig, ways: int, lengths: Mapping[str, int]) -> None:
    """Checks that rows can be split by position over so many devices.

    lengths: those of the rows, by the settings that give them.

    Raises:
      UserError: one that does not divide.
    """
    for name, length in lengths.items():
        if cfg.sequence_split and length % ways:
            raise UserError(
                f'{name}={length} positions do not split over tensor={ways}, as '
                f'model.sequence_split asks; choose a multiple of {ways}'
            )


class RMSNorm(nnx.Module):
    """Divides by the root mean square and scales; no mean, no bias; computed in float32."""

    def __init__(self, cfg: ModelConfig):
        self.scale = nnx.Param(jnp.ones((cfg.D,), out_sharding=weight('D')), dims='D')

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        y_BTD = x_BTD.astype(jnp.float32)
        y_BTD = y_BTD * jax.lax.rsqrt(jnp.mean(jnp.square(y_BTD), -1, keepdims=True) + 1e-6)
        return (y_BTD * jax.reshard(self.scale[...], P(None))).astype(x_BTD.dtype)


class Mlp(nnx.Module):
    """The hidden layer; the gated kinds multiply an activated projection by a plain one."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, F: int = 0):
        self.rate, self.kind = cfg.dropout, cfg.mlp
        F = F or cfg.F
        if MLPS[cfg.mlp].gated:
            self.gate = param(rngs, 'DF', cfg, cfg.D**-0.5, F=F)
        self.up = param(rngs, 'DF', cfg, cfg.D**-0.5, F=F)
        self.down = param(rngs, 'FD', cfg, F**-0.5, F=F)

    def __call__(
        self, x_BTD: jax.Array, key: jax.Array | None = None, split: P | None = None
    ) -> jax.Array:
        """split: how what it gives is split; by rows only, unless it says."""
        activation, gated = MLPS[self.kind]
        h_BTF = einsum('BTD,DF->BTF', x_BTD, self.gate if gated else self.up)
        h_BTF = activation(h_BTF)
        if gated:
            h_BTF = h_BTF * einsum('BTD,DF->BTF', x_BTD, self.up)
        return einsum('BTF,FD->BTD', dropout(h_BTF, 'BTF', self.rate, key), self.down, split)


class MlpKind(NamedTuple):
    activation: Callable[[jax.Array], jax.Array]
    gated: bool


# T5 1.0 and Switch have relu; T5 1.1 and ST-MoE geglu, with the approximate gelu; UL2 has swiglu.
MLPS = dict(
    relu=MlpKind(jax.nn.relu, False),
    gelu=MlpKind(partial(jax.nn.gelu, approximate=True), False),
    reglu=MlpKind(jax.nn.relu, True),
    geglu=MlpKind(partial(jax.nn.gelu, approximate=True), True),
    swiglu=MlpKind(jax.nn.silu, True),
)


def dropout(x: jax.Array, dims: str, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries at the given rate, the same ones at every decoder or encoder position (T).

    T5 broadcasts its masks over the length, so that a whole feature is dropped from a row.
    """
    if key is None or rate == 0:
        return x
    shape = [1 if d == 'T' else n for d, n in zip(dims, x.shape)]
    keep = jax.random.bernoulli(key, 1 - rate, shape, out_sharding=act(dims.replace('T', '1')))
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def lookup(
    table_VD: Any, tokens: Sequence[jax.Array], dtype: Any, splits: Sequence[P]
) -> list[jax.Array]:
    """Rows of a table that may be split over its vocabulary: each device adds the rows it has.

    The gather, and with it the sum of gradients, is in float32. Ids outside the table give zeros.

    Args:
      tokens: ids [B, T], of as many texts as are wanted: the gradient is as large as the table, and
        is made once for all of them.
      splits: how the rows of each are split.
    """
    table_VD = jax.reshard(table_VD[...], P('tensor', None))
    ends = np.cumsum([ids_BT.shape[1] for ids_BT in tokens])[:-1]

    @partial(jax.shard_map, in_specs=(P('tensor', None), P(BATCH, None)), out_specs=list(splits))
    def gather(slice_VD, tokens_BT):
        ids_BT = tokens_BT - jax.lax.axis_index('tensor') * slice_VD.shape[0]
        here_BT = (ids_BT >= 0) & (ids_BT < slice_VD.shape[0])
        at_BT = jnp.where(here_BT, ids_BT, len(slice_VD))
        x_BTD = slice_VD.at[at_BT].get(mode='fill', fill_value=0).astype(dtype)
        return [_summed(x, split) for x, split in zip(jnp.split(x_BTD, ends, axis=1), splits)]

    return gather(table_VD, jnp.concatenate(tokens, axis=1))


def _summed(x_BTD: jax.Array, split: P) -> jax.Array:
    """The sum over `tensor`, of which each device has its positions or all of them."""
    if split[1] == 'tensor':
        return jax.lax.psum_scatter(x_BTD, 'tensor', scatter_dimension=1, tiled=True)
    return jax.lax.psum(x_BTD, 'tensor')


class Logits(nnx.Module):
    """The untied head: a projection to the vocabulary in float32."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.kernel = param(rngs, 'DV', cfg, cfg.D**-0.5)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return einsum('BTD,DV->BTV', x_BTD.astype(jnp.float32), self.kernel)


def tied_logits(x_BTD: jax.Array, table_VD: Any) -> jax.Array:
    """The token embedding as the head, in float32; its entries have variance 1, hence the root."""
    x_BTD = x_BTD.astype(jnp.float32) / math.sqrt(x_BTD.shape[-1])
    return einsum('BTD,VD->BTV', x_BTD, table_VD)
