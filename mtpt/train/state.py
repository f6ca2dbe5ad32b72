"""All that training carries from one step to the next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from mtpt.model import encoder_decoder
from mtpt.train.optimizer import Optimizer


class TrainState(NamedTuple):
    """step counts batches drawn; skipped counts updates left out in a row; key never changes."""

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    skipped: jax.Array


def new_state(
    model_cfg: Any, tx: Optimizer, seed: int, init: Callable = encoder_decoder.init
) -> TrainState:
    """The state before the first step, laid out on the mesh that is set."""
    return jax.jit(_maker(model_cfg, tx, init))(np.uint32(seed))


def abstract_state(
    model_cfg: Any, tx: Optimizer, mesh: Any, init: Callable = encoder_decoder.init
) -> TrainState:
    """The shapes, types and shardings of the state on `mesh`, with nothing computed."""
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(_maker(model_cfg, tx, init), np.uint32(0))
    return jax.tree.map(lambda x: on_mesh(x, mesh), shapes)


def on_mesh(x: Any, mesh: Any) -> jax.ShapeDtypeStruct:
    """An abstract array laid out on the devices of `mesh`; without a sharding, a copy on each."""
    spec = getattr(x.sharding, 'spec', None) or P()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))


def _maker(model_cfg, tx, init):
    def make(seed):
        key = jax.random.key(seed)
        params = init(model_cfg, jax.random.fold_in(key, 0))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, tx.init(params), jax.random.fold_in(key, 1), zero)

    return make
