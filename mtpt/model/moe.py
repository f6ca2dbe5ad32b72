"""Mixture of experts in place of the hidden layer. (Written next.)

B row  T position  D model width  E experts  M tasks  X width of a task's representation
"""

from typing import NamedTuple

import jax
from flax import nnx


class Routing(NamedTuple):
    """What routing may know of a position besides its state.

    real_BT: false on padding, which takes no slot and counts in no figure; tasks_BT: the id of the
    task that it belongs to, 0 where unknown; task_BTX: that task's representation.
    """

    real_BT: jax.Array
    tasks_BT: jax.Array | None = None
    task_BTX: jax.Array | None = None


class Moe(nnx.Module):
    def __init__(self, cfg, rngs, decoder):
        raise NotImplementedError

    def __call__(self, x_BTD, routing, key=None, decoding=False):
        raise NotImplementedError
