"""An optimizer's moments stored in bfloat16 and computed with in float32.

bfloat16 has 8 bits of precision, and a second moment that decays by a thousandth a step would never
move if it were rounded to the nearest: each step is less than half of the last bit. So what is
stored is rounded up or down at random, by as much as it lies between (stochastic rounding:
2010.06192), and is right on average. The random bits are a function of the run's step, the weight
and the place in it, so a run that is resumed, or laid out on another mesh, draws the same.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mtpt.config import choose


def stored(
    tx: optax.GradientTransformation,
    dtype: str,
    which: Callable[[str], bool] = lambda path: True,
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer with its moments kept in a dtype; its `update` wants `step=`.

    which: of the paths of moments within the state, those to store so; counters are left alone.
    """
    choose('dtype of optimizer.state_dtype', dtype, dict.fromkeys(DTYPES))
    if dtype == 'float32':
        return optax.with_extra_args_support(tx)

    def narrowed(state, narrow):
        paths, tree = jax.tree_util.tree_flatten_with_path(state)
        leaves = [
            narrow(x, i) if jnp.ndim(x) and which(jax.tree_util.keystr(path)) else x
            for i, (path, x) in enumerate(paths)
        ]
        return jax.tree.unflatten(tree, leaves)

    def init(params):
        return narrowed(tx.init(params), lambda x, _: x.astype(jnp.bfloat16))

    def update(grads, state, params=None, *, step, **_):
        wide = jax.tree.map(
            lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state
        )
        updates, wide = tx.update(grads, wide, params)
        return updates, narrowed(wide, lambda x, i: rounded(x, step, i))

    return optax.GradientTransformationExtraArgs(init, update)


def rounded(x: jax.Array, step: jax.Array, which: int) -> jax.Array:
    """float32 to bfloat16, up or down at random, so that the mean is x.

    step, which: what the random bits depend on beside the place in the array.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    up = bits + (_mixed(_places(x) + _mixed(jnp.uint32(which) + _spread(step))) & 0xFFFF)
    cut = jax.lax.bitcast_convert_type(up & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


def _places(x: jax.Array) -> jax.Array:
    """A number for each entry, split as the entries are."""
    split = jax.typeof(x).sharding
    split = None if split.mesh.empty else split
    places, stride = jnp.uint32(0), 1
    for axis in reversed(range(x.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis, out_sharding=split)
        places, stride = places + along * jnp.uint32(stride % 2**32), stride * x.shape[axis]
    return places


def _spread(step: jax.Array) -> jax.Array:
    return jnp.asarray(step).astype(jnp.uint32) * jnp.uint32(0x9E3779B9)  # 2^32 by the golden ratio


def _mixed(x: jax.Array) -> jax.Array:
    """A hash of 32 bits to 32 (C. Wellons, 'Prospecting for Hash Functions', 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


DTYPES = ('float32', 'bfloat16')
