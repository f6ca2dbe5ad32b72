"""Looks into a model while it is traced: which of its parts give numbers that are not finite.

Off, it costs nothing and changes nothing; whoever replays a step turns it on.

B row  T position  D model width
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import P

from mtpt.mesh import BATCH

_ON = contextvars.ContextVar('probing', default=False)


@contextlib.contextmanager
def on() -> Iterator[None]:
    """What is traced inside reports 'finite/STACK/PART' beside its output."""
    token = _ON.set(True)
    try:
        yield
    finally:
        _ON.reset(token)


def finite(**parts: jax.Array) -> dict[str, jax.Array]:
    """At which positions the states x_BTD after each part are finite, [B, T]; {} unless asked."""
    if not _ON.get():
        return {}
    return {
        f'finite/{name}': jax.reshard(jnp.isfinite(x).all(-1), P(BATCH, None))
        for name, x in parts.items()
    }
