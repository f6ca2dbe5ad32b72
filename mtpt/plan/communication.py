"""What devices send each other in a step: collectives by kind and mesh axis, and their time.

Read off the shardings of the traced step, where they are explicit: a weight that is split along a
dimension that a product needs whole is gathered, sums over a split dimension are reduced, a changed
sharding is exchanged. XLA may do better (one collective for several) or worse.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

from mtpt.chips import Topology
from mtpt.mesh import AXES
from mtpt.plan.products import split
from mtpt.plan.walk import Axes, Body, bodies, size_of, spec_of, ways

GATHER, SCATTER, REDUCE, EXCHANGE = 'all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all'
PERMUTE, OFFLOAD = 'permute', 'to and from host'


class Collective(NamedTuple):
    """One kind of traffic of a step among the devices along `axes`.

    size: bytes of the whole array, times the runs; split: the axes that still split what a device
    ends up with (all-gather, all-reduce), begins with (reduce-scatter) or holds (all-to-all).
    """

    kind: str
    axes: Axes
    split: Axes
    size: float

    def payload(self, sizes: Mapping[str, int]) -> float:
        """The bytes that the collective is about on one device."""
        return self.size / ways(self.split, sizes)

    def sent(self, sizes: Mapping[str, int]) -> float:
        """The bytes that one device sends, as rings do it."""
        n = ways(self.axes, sizes)
        if self.kind == OFFLOAD:
            return self.payload(sizes)
        return self.payload(sizes) * (n - 1) / n * (2 if self.kind == REDUCE else 1)


def collectives(
    closed: Any, sizes: Mapping[str, int], platform: str | None = None
) -> tuple[Collective, ...]:
    """All collectives of a traced step, alike ones added up.

    Args:
      sizes: of the mesh that it was traced on.
      platform: of the chip; by default what is not made for one is taken.
    """
    found: Counter = Counter()
    for body in bodies(closed, platform):
        for one in _of(body, sizes):
            if one.axes or one.kind == OFFLOAD:
                found[one._replace(size=0.0)] += one.size * body.times
    return tuple(key._replace(size=size) for key, size in found.items())


def _of(body: Body, sizes: Mapping[str, int]) -> Iterator[Collective]:
    """The collectives of one run of a body."""
    if body.split is not None:
        for eqn in body.jaxpr.eqns:
            yield from _manual(eqn, body.split, sizes)
        return
    gathered, sums = set(), _Sums(body.jaxpr)
    for eqn in body.jaxpr.eqns:
        name = eqn.primitive.name
        if name == 'dot_general':
            how = split(eqn)
            for v, axes in zip(eqn.invars, how.gathered):
                if axes and (v, axes) not in gathered:  # one that serves two products is sent once
                    gathered.add((v, axes))
                    left = tuple(sorted(set(_named(v.aval)) - set(axes)))
                    yield Collective(GATHER, axes, left, size_of(v.aval))
            sums.begin(eqn.outvars[0], how.summed)
        elif name in ('reshard', 'sharding_constraint'):
            yield from _resharded(eqn.invars[0].aval, eqn.outvars[0].aval)
        elif name in REDUCTIONS:
            spec, dims = spec_of(eqn.invars[0].aval), eqn.params['axes']
            sums.begin(eqn.outvars[0], tuple(sorted({a for i in dims for a in spec[i]})))
        elif name == 'device_put' and _host(eqn):
            aval = eqn.outvars[0].aval
            yield Collective(OFFLOAD, (), _named(aval), size_of(aval))
        else:
            sums.follow(eqn)
    yield from sums.reduced()


def _host(eqn: Any) -> bool:
    """Whether an array goes to the host's memory, or comes from it."""
    spaces = [getattr(v.aval, 'memory_space', None) for v in (eqn.invars[0], eqn.outvars[0])]
    return jax.memory.Space.Host in spaces


REDUCTIONS = (
    'reduce_sum', 'reduce_max', 'reduce_min', 'reduce_prod', 'reduce_and', 'reduce_or', 'argmax',
    'argmin',
)  # fmt: skip
LINEAR = ('reshape', 'transpose', 'convert_element_type', 'neg')


class _Sums:
    """Partial sums within a jaxpr, as (axes, bytes). Two that only meet in an addition are reduced
    once, after it; what is made wider on the way is sent as it was."""

    def __init__(self, jaxpr: Any):
        self.open: dict[Any, tuple[Axes, float]] = {}
        used = [v for eqn in jaxpr.eqns for v in eqn.invars] + list(jaxpr.outvars)
        self.uses = Counter(v for v in used if not isinstance(v, Literal))

    def begin(self, var: Any, axes: Axes) -> None:
        if axes:
            self.open[var] = (axes, size_of(var.aval))

    def follow(self, eqn: Any) -> None:
        """Moves what is open past an equation that may come before the reduction."""
        name, out = eqn.primitive.name, eqn.outvars
        mine = [v for v in eqn.invars if not isinstance(v, Literal) and v in self.open]
        if not mine or any(self.uses[v] > 1 for v in mine):
            return
        both = {self.open[v][0] for v in mine}
        added = name in ('add', 'add_any') and len(mine) == 2 and len(both) == 1
        if name in LINEAR or added:
            sizes = [self.open.pop(v)[1] for v in mine]
            self.open[out[0]] = (both.pop(), min(*sizes, size_of(out[0].aval)))

    def reduced(self) -> Iterator[Collective]:
        for var, (axes, size) in self.open.items():
            yield from _summed(axes, var.aval, size)


def _summed(axes: Axes, aval: Any, size: float) -> Iterator[Collective]:
    """Partial sums over some axes added up: those that split the result end as a part each."""
    named = set(_named(aval))
    scattered = tuple(a for a in axes if a in named)
    whole = tuple(a for a in axes if a not in named)
    yield Collective(SCATTER, scattered, tuple(sorted(named - set(scattered))), size)
    yield Collective(REDUCE, whole, tuple(sorted(named)), size)


def _resharded(old: Any, new: Any) -> Iterator[Collective]:
    """From one sharding to another: what is no longer split is gathered, what moves exchanged."""
    before, after = spec_of(old), spec_of(new)
    had, has = set(_named(old)), set(_named(new))
    yield Collective(GATHER, tuple(sorted(had - has)), tuple(sorted(has & had)), size_of(new))
    places = {a: i for i, dim in enumerate(after) for a in dim}
    moved = {a for i, dim in enumerate(before) for a in dim if places.get(a, i) != i}
    yield Collective(EXCHANGE, tuple(sorted(moved)), tuple(sorted(had & has)), size_of(old))


def _manual(eqn: Any, held: Axes, sizes: Mapping[str, int]) -> Iterator[Collective]:
    """A collective within a `shard_map`, whose shapes are those of a device's part."""
    kind = MANUAL.get(eqn.primitive.name)
    if kind is None:
        return
    named = eqn.params.get('axes', eqn.params.get('axis_name', ()))
    axes = tuple(sorted((named,) if isinstance(named, str) else (a for a in named if a in AXES)))
    for v, out in zip(eqn.invars, eqn.outvars):
        aval = out.aval if kind == GATHER else v.aval
        yield Collective(kind, axes, held, size_of(aval) * ways(held, sizes))


MANUAL = dict(
    psum=REDUCE,
    psum_invariant=REDUCE,
    psum2=REDUCE,
    pmax=REDUCE,
    pmin=REDUCE,
    all_gather=GATHER,
    all_gather_invariant=GATHER,
    reduce_scatter=SCATTER,
    all_to_all=EXCHANGE,
    ppermute=PERMUTE,
    ragged_all_to_all=EXCHANGE,
)


def _named(aval: Any) -> Axes:
    return tuple(sorted({axis for dim in spec_of(aval) for axis in dim}))


@dataclasses.dataclass(frozen=True)
class Line:
    """Collectives of one kind over the same axes: bytes that a device sends, and seconds.

    slow: bytes of them that leave a device over the network between slices, or hosts of GPUs.
    """

    kind: str
    axes: Axes
    sent: float
    slow: float
    seconds: float


def lines(
    found: tuple[Collective, ...], sizes: Mapping[str, int], topology: Topology
) -> list[Line]:
    """The traffic of a step on a topology, the most time-consuming first."""
    table: dict[tuple[str, Axes], list[float]] = {}
    for one in found:
        axes = tuple(a for a in AXES if a in one.axes and sizes[a] > 1)
        sent = one.sent(sizes)
        if one.kind == OFFLOAD:
            slow, seconds = 0.0, sent * topology.chip.devices / topology.chip.pcie
        elif axes:
            slow, seconds = time(one, sent, axes, sizes, topology)
        else:
            continue
        row = table.setdefault((one.kind, axes), [0.0, 0.0, 0.0])
        for i, x in enumerate((sent, slow, seconds)):
            row[i] += x
    rows = [Line(kind, axes, *row) for (kind, axes), row in table.items()]
    return sorted(rows, key=lambda line: -line.seconds)


def time(
    one: Collective, sent: float, axes: Axes, sizes: Mapping[str, int], topology: Topology
) -> tuple[float, float]:
    """Bytes over the slow network a device, and seconds of a collective.

    Groups that reach over several islands (slices; hosts of GPUs) do it in two parts: over the fast
    links within, and over the network what each island lacks, shared by its devices in the group.
    """
    n, islands = ways(axes, sizes), _islands(axes, sizes, topology.island)
    slow = 0.0
    if islands > 1:
        part = one.payload(sizes) if one.kind == EXCHANGE else one.payload(sizes) * islands / n
        slow = part * (islands - 1) / islands * (2 if one.kind == REDUCE else 1)
    within = sent if islands == 1 else sent * (1 - (islands - 1) / max(n - 1, 1))
    seconds = within / (topology.chip.link / topology.chip.devices * _links(n // islands, topology))
    return slow, seconds + slow * topology.devices_a_host / topology.chip.slow


def _islands(axes: Axes, sizes: Mapping[str, int], island: int) -> int:
    """Over how many islands a group of devices along some axes reaches; `tensor` is innermost."""
    inner, reached = 1, 1
    for axis in reversed(AXES):
        size = sizes[axis]
        outer = inner * size
        if axis in axes:
            within = max(1, min(size, island // inner)) if inner < island else 1
            reached *= size // within if size % within == 0 else math.ceil(size / within)
        inner = outer
    return reached


def _links(n: int, topology: Topology) -> float:
    """The part of a chip's links that a group of n devices can use: dimensions of the torus."""
    if topology.chip.platform != 'tpu':
        return 1.0
    dims = sorted((d for d in topology.shape if d > 1), reverse=True)
    used, chips = 0, max(1, n // topology.chip.devices)
    for d in dims:
        if chips <= 1:
            break
        used, chips = used + 1, math.ceil(chips / d)
    return max(used, 1) / len(topology.shape)
