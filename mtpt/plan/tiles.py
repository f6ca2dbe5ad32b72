"""Bytes that a device holds of an array: its part, filled up to the tiles that a chip works in."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from mtpt.plan.walk import entry_axes


class Tiles(NamedTuple):
    """How a chip lays arrays out: the last two dimensions are filled up to tiles."""

    lanes: int = 1
    sublanes: int = 1


TILES = dict(tpu=Tiles(128, 8))


def device_bytes(aval: Any, sizes: Mapping[str, int], tiles: Tiles) -> float:
    """Bytes that a device holds of an array, filled up to tiles."""
    shape = list(aval.shape)
    spec = getattr(getattr(aval, 'sharding', None), 'spec', None) or ()
    for i, entry in enumerate(spec):
        shape[i] = -(-shape[i] // math.prod(sizes[a] for a in entry_axes(entry)))
    return filled_bytes(aval, tuple(shape), tiles)


def filled_bytes(aval: Any, shape: tuple[int, ...], tiles: Tiles) -> float:
    """Bytes of an array of this shape on the device; none of what lies in the host's memory."""
    if getattr(aval, 'memory_space', None) == jax.memory.Space.Host:
        return 0.0
    if not hasattr(aval, 'dtype') or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        return 0.0
    itemsize = aval.dtype.itemsize
    return math.prod(shape) * itemsize * _filled(tuple(shape), itemsize, tiles)


@functools.lru_cache(maxsize=4096)
def _filled(shape: tuple[int, ...], itemsize: int, tiles: Tiles) -> float:
    """How much more an array takes in tiles; compilers choose the layout in which it is least."""
    if tiles.lanes == 1 or len(shape) < 2:
        return 1.0
    lane = [_up(n, tiles.lanes) for n in shape]
    most, packed = tiles.sublanes * max(1, 4 // itemsize), max(1, 4 // itemsize)
    below = [_up(n, min(most, max(packed, _power_of_two(n)))) for n in shape]
    return min(lane[i] * below[j] for i in range(len(shape)) for j in range(len(shape)) if i != j)


def _power_of_two(n: int) -> int:
    """The smallest at or above n: a chip has tiles of 1, 2 and 4 rows for what is so small."""
    return 1 << max(n - 1, 0).bit_length()


def _up(n: int, tile: int) -> float:
    """How much larger a dimension becomes in whole tiles."""
    return -(-n // tile) * tile / max(n, 1)
