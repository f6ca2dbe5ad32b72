"""The layers that a T5 block is made of, besides attention.

B row  T position (encoder or decoder)  D model width  F hidden width  V vocabulary  N layers
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import P

from mtpt.mesh import BATCH, act, einsum, weight
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

    def __call__(self, x_BTD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        activation, gated = MLPS[self.kind]
        h_BTF = einsum('BTD,DF->BTF', x_BTD, self.gate if gated else self.up)
        h_BTF = activation(h_BTF)
        if gated:
            h_BTF = h_BTF * einsum('BTD,DF->BTF', x_BTD, self.up)
        return einsum('BTF,FD->BTD', dropout(h_BTF, 'BTF', self.rate, key), self.down)


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


def lookup(table_VD: Any, tokens_BT: jax.Array, dtype: Any) -> jax.Array:
    """Rows of a table that may be split over its vocabulary: each device adds the rows it has.

    The gather, and with it the sum of gradients, is in float32. Ids outside the table give zeros.
    """
    table_VD = jax.reshard(table_VD[...], P('tensor', None))

    @partial(jax.shard_map, in_specs=(P('tensor', None), P(BATCH, None)), out_specs=act('BTD'))
    def gather(slice_VD, tokens_BT):
        ids_BT = tokens_BT - jax.lax.axis_index('tensor') * slice_VD.shape[0]
        here_BT = (ids_BT >= 0) & (ids_BT < slice_VD.shape[0])
        x_BTD = slice_VD[jnp.where(here_BT, ids_BT, 0)].astype(dtype)
        return jax.lax.psum(jnp.where(here_BT[..., None], x_BTD, 0), 'tensor')

    return gather(table_VD, tokens_BT)


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
