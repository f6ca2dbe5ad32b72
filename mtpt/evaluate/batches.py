"""Rows of like length, put together into batches of few shapes, spread over the devices.

Every shape is a compilation, so lengths are rounded up to few sizes, and a few rows of one shape
join a larger one where the padding costs less than compiling would.

S encoder positions  T decoder positions  B rows  Q (example, choice) pairs
"""

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from mtpt import hosts
from mtpt.mesh import ACTIVATIONS, act, make_mesh

# On a CPU a compilation of a small model takes about as long as running it over this many
# positions.
WORTH_COMPILING = 65_536


def rounded(length: int, least: int, steps: int = 1) -> int:
    """`length` rounded up to one of `steps` sizes for each doubling of `least`."""
    whole = least * 2 ** max(0, math.ceil(math.log2(max(length, 1) / least)))
    part = whole // (2 * steps)
    return whole if whole == least else -(-length // part) * part


def floored(number: float) -> int:
    """The largest power of two that is at most `number`, and at least 1."""
    return 2 ** int(math.log2(max(number, 1)))


def grouped(
    shapes: Sequence[tuple[int, ...]],
    weights: Sequence[int],
    fits: Callable[[tuple, tuple], bool],
    cost: Callable[[tuple], float],
) -> dict[tuple, list[int]]:
    """Puts items of one shape together, and small groups into larger shapes.

    Args:
      shapes: the rounded shape of each item.
      weights: how many rows each item is.
      fits: whether an item of the first shape can be computed in the second.
      cost: positions computed for each row of a shape.

    Returns:
      From shape to the items computed in it, in the given order.
    """
    groups = collections.defaultdict(list)
    for item, shape in enumerate(shapes):
        groups[shape].append(item)
    rows = {shape: sum(weights[i] for i in items) for shape, items in groups.items()}
    for shape in sorted(groups, key=lambda s: rows[s] * cost(s)):
        hosts = [other for other in groups if other != shape and fits(shape, other)]
        if hosts:
            host = min(hosts, key=cost)
            if rows[shape] * (cost(host) - cost(shape)) <= WORTH_COMPILING:
                groups[host] += groups.pop(shape)
                rows[host] += rows.pop(shape)
    return {shape: sorted(items) for shape, items in groups.items()}


def mesh_of(params: Any) -> jax.sharding.Mesh:
    """The mesh that is set, or else the one that the parameters lie on, or else one device."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        sharding = getattr(jax.tree.leaves(params)[0], 'sharding', None)
        mesh = getattr(sharding, 'mesh', None) or make_mesh()
    return mesh


def shards(mesh: jax.sharding.Mesh) -> int:
    """Over how many devices the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ACTIVATIONS['B'])


def spread(array: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
    """Splits an array that every process holds whole over the batch axes, by its rows."""
    sharding = jax.NamedSharding(mesh, act('B' + ' ' * (array.ndim - 1)))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def late(results: Iterable[tuple[Any, Any]], behind: int = 2) -> Iterator[tuple[Any, Any]]:
    """Fetches device results a few batches late, so that the device never waits for the host.

    A result is an array or a tree of them.
    """
    if hosts.one_at_a_time():
        behind = 0
    waiting: collections.deque = collections.deque()
    for key, value in results:
        waiting.append((key, value))
        if len(waiting) > behind:
            key, value = waiting.popleft()
            yield key, jax.tree.map(np.asarray, value)
    for key, value in waiting:
        yield key, jax.tree.map(np.asarray, value)
