"""FLOPs of a step, counted from its jaxpr, and the bytes that its products move.

Scan bodies count as often as they run, kernels once a cell of their grid. Where that hangs on the
data, as with experts that drop nothing, grouped products count as many rows as are expected. What
`jax.checkpoint` computes a second time is hardware FLOPs, not the model's: MFU is reckoned without
it (2204.02311, appendix B).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtpt.plan.products import flops, split
from mtpt.plan.walk import Axes, Body, bodies, size_of, spec_of, ways


class Product(NamedTuple):
    """Products of a step: FLOPs over all devices, shared by these axes; and bytes read and written.

    model: without what is computed again; extra: what is.
    moved: pairs of bytes of a whole array and the axes that split it, once for each operand.
    """

    model: float
    extra: float
    shared: Axes
    moved: tuple[tuple[float, Axes], ...]


@dataclasses.dataclass(frozen=True)
class Counted:
    """All products of a step.

    exact: False where a loop's length is not known, so that there is more; expected: whether some
      count is a mean over what routing may come to.
    """

    products: tuple[Product, ...]
    exact: bool
    expected: bool = False

    @property
    def model(self) -> float:
        """FLOPs of the model over all devices, none computed twice."""
        return sum(p.model for p in self.products)

    @property
    def hardware(self) -> float:
        """FLOPs over all devices, with what is computed again."""
        return self.model + sum(p.extra for p in self.products)

    def per_device(self, sizes: Mapping[str, int]) -> float:
        """Hardware FLOPs of one device of a mesh; work that devices repeat counts on each."""
        return sum((p.model + p.extra) / ways(p.shared, sizes) for p in self.products)

    def moved(self, sizes: Mapping[str, int]) -> float:
        """Bytes that a device's products read and write, each operand once."""
        return sum(n / ways(axes, sizes) for p in self.products for n, axes in p.moved)


def count(closed: Any, sizes: Mapping[str, int], platform: str | None = None) -> Counted:
    """Counts the products of a traced step.

    Args:
      sizes: of the mesh that it was traced on.
      platform: of the chip; by default what is not made for one is counted.
    """
    found, exact, expected = {}, True, False
    for body in bodies(closed, platform):
        for eqn in body.jaxpr.eqns:
            model, extra = flops(eqn)
            if model or extra:
                product = _product(body, eqn, model, extra, sizes)
                key = (product.shared, tuple(axes for _, axes in product.moved))
                found[key] = _added(found[key], product) if key in found else product
                exact &= body.exact
                expected |= _grouped(eqn)
    return Counted(tuple(found.values()), exact, expected)


def _product(body: Body, eqn: Any, model: float, extra: float, sizes: Any) -> Product:
    arrays = [*eqn.invars[:2], eqn.outvars[0]]
    if body.split is None:
        how = split(eqn) if eqn.primitive.name == 'dot_general' else None
        shared = how.shared if how else _named(eqn.outvars[0].aval)
        lacks = (*how.gathered, ()) if how else ((),) * 3
        moved = [
            (size_of(v.aval), tuple(sorted(set(_named(v.aval)) - set(without))))
            for v, without in zip(arrays, lacks)
        ]
        parts = 1
    else:
        shared, parts = body.split, ways(body.split, sizes)
        own = [_own(body, eqn, v.aval, sizes) for v in arrays]
        moved = [(size_of(v.aval) * parts * share, shared) for v, share in zip(arrays, own)]
        parts *= own[0]
    times = body.times * parts
    if body.repeats(eqn):
        model, extra = 0.0, model + extra
    return Product(
        model * times,
        extra * times,
        shared,
        tuple((size * body.times, axes) for size, axes in moved),
    )


def _grouped(eqn: Any) -> bool:
    return eqn.primitive.name.startswith('ragged_dot')


def _own(body: Body, eqn: Any, aval: Any, sizes: Mapping[str, int]) -> float:
    """What is expected to be computed of an array: of rows that were gathered from other devices,
    as many as a device has itself are of its own groups; elsewhere all."""
    rows = eqn.invars[0].aval.shape[0] if _grouped(eqn) else None
    return 1 / ways(body.gathered, sizes) if rows and aval.shape[0] == rows else 1.0


def _named(aval: Any) -> Axes:
    return tuple(sorted({axis for dim in spec_of(aval) for axis in dim}))


def _added(one: Product, other: Product) -> Product:
    moved = tuple((a + b, axes) for (a, axes), (b, _) in zip(one.moved, other.moved))
    return Product(one.model + other.model, one.extra + other.extra, one.shared, moved)
