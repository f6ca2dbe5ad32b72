"""What a device's memory holds in the course of a step: a walk over the traced step.

An array that a product, a reduction, a sort, a gather or a loop gives is a buffer, from the
equation that makes it to the last that needs it. Elementwise results are none: compilers fuse them
into what uses them. Those of costly functions that go into products are, since nobody computes an
exponential twice to save a buffer. What a loop is given lives as long as the loop; what it stacks
is there as a whole when it begins. A weight that a product needs whole is gathered, once a layer.

Buffers are kept by the mesh axes that split them, so that one walk serves meshes of other sizes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Literal
from jax.interpreters.partial_eval import dce_jaxpr

from mtpt.mesh import BATCH
from mtpt.plan.products import split
from mtpt.plan.tiles import TILES, Tiles, device_bytes, filled_bytes
from mtpt.plan.walk import Axes, axes_of, branches, chosen

COSTLY = frozenset(
    'exp exp2 tanh logistic erf erfc erf_inv log log1p expm1 pow sin cos div rsqrt sqrt'.split()
)
SAME = frozenset(
    'freeze reshape squeeze expand_dims copy name optimization_barrier pvary pcast stop_gradient '
    'reduce_precision copy_p mesh_cast'.split()
)
FUSED = COSTLY | SAME | frozenset(
    'add add_any sub mul neg max min abs sign floor ceil round integer_pow square and or not xor '
    'eq ne lt le gt ge select_n clamp is_finite convert_element_type broadcast_in_dim transpose '
    'iota slice dynamic_slice pad rev shift_left shift_right_logical shift_right_arithmetic rem '
    'nextafter bitcast_convert_type broadcast axis_index partition_id random_wrap random_unwrap '
    'random_fold_in random_seed full empty empty2 empty_like zeros_like split cbrt exp2 real imag '
    'threefry2x32 random_bits random_split'.split()
)  # fmt: skip
# What a weight may go through and still be the same weight.
KEEPING = SAME | frozenset('convert_element_type transpose slice dynamic_slice split'.split())
INLINE = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
GIVEN = ('state', 'batch')
LEAST = 2**10  # bytes below which a buffer is not worth its line


@dataclasses.dataclass
class Buffer:
    """Bytes of a device on the traced mesh, the axes that split them, and from when to when."""

    size: float
    axes: Axes
    rows: bool
    birth: int
    death: int
    what: str


class Value(NamedTuple):
    """What a variable is: the buffers that it is computed from, and whether at some cost.

    whole: the buffer that holds just this; argument: the weight that it is, or a part of it.
    """

    roots: frozenset[int] = frozenset()
    costly: bool = False
    whole: int | None = None
    argument: int | None = None


NOTHING = Value()


@dataclasses.dataclass(frozen=True)
class Course:
    """Bytes over the time of a step, by (axes, whether they grow with the rows of a part)."""

    live: np.ndarray  # [time, class]
    classes: tuple[tuple[Axes, bool], ...]
    traced: dict[str, int]
    saved: np.ndarray  # [class], what the forward pass leaves for the backward pass
    buffers: tuple[Buffer, ...]
    parts: int

    def factors(self, sizes: Mapping[str, int], parts: int) -> np.ndarray:
        """What the bytes of each class become on a mesh of other sizes, in so many parts."""
        found = []
        for axes, rows in self.classes:
            factor = math.prod(self.traced[a] / sizes[a] for a in axes)
            found.append(factor * (self.parts / parts if rows else 1.0))
        return np.array(found)


class _Walk:
    def __init__(self, sizes: Mapping[str, int], tiles: Tiles):
        self.sizes, self.tiles = dict(sizes), tiles
        self.buffers: list[Buffer] = []
        self.time = 0
        self.touched: list[set[int]] = []  # of each loop that is being walked
        self.values: dict[Any, Value] = {}
        self.gathered: dict[Any, int] = {}
        self.late: dict[int, list[Value]] = {}  # products that wait until they are asked for
        self.manual: Axes | None = None  # within a shard_map, the axes of its specs
        self.began: list[int] = []  # when each loop that is being walked began
        self.wider: dict[Any, Any] = {}  # results that are only read in a wider type
        self.forward = 0  # when the backward pass begins

    # Buffers.

    def new(self, aval: Any, what: str) -> int:
        axes = self.axes(aval)
        rows = set(BATCH) <= set(axes)
        self.buffers.append(Buffer(self.bytes(aval), axes, rows, self.time, self.time, what))
        return len(self.buffers) - 1

    def axes(self, aval: Any) -> Axes:
        if self.manual is not None:
            return self.manual
        return axes_of(getattr(getattr(aval, 'sharding', None), 'spec', None) or ())

    def bytes(self, aval: Any) -> float:
        """Bytes on a device of the traced mesh; within a shard_map shapes are those of a device."""
        if self.manual is not None:
            return filled_bytes(aval, aval.shape, self.tiles)
        return device_bytes(aval, self.sizes, self.tiles)

    def use(self, value: Value) -> None:
        for root in value.roots:
            if operands := self.late.pop(root, ()):
                self.buffers[root].birth = self.time
                for operand in operands:
                    self.use(operand)
            self.buffers[root].death = max(self.buffers[root].death, self.time)
            for loop in self.touched:
                loop.add(root)

    def held(self, var: Any, what: str) -> Value:
        """The value of a variable as a buffer, made now if it was none yet."""
        value = self.value(var)
        if value.whole is not None or not value.roots:
            return value
        self.use(value)
        at = self.new(var.aval, what)
        made = Value(frozenset([at]), False, at)
        if not isinstance(var, Literal):
            self.values[var] = made
        return made

    def value(self, var: Any) -> Value:
        return NOTHING if isinstance(var, Literal) else self.values.get(var, NOTHING)

    # Equations.

    def walk(self, jaxpr: Any) -> None:
        waiting = _waiting(jaxpr)
        for eqn in jaxpr.eqns:
            self.time += 1
            name = eqn.primitive.name
            if not self.forward and 'transpose(' in str(eqn.source_info.name_stack):
                self.forward = self.time
            if name == 'scan':
                self.scan(eqn)
            elif name == 'while':
                self.whiles(eqn)
            elif name == 'cond':
                self.cond(eqn)
            elif name == 'shard_map':
                self.shard_map(eqn)
            elif inner := _inner(eqn):
                self.call(eqn, inner)
            elif name == 'reshard':
                self.reshard(eqn)
            elif name in FUSED:
                self.fused(eqn)
            elif name == 'dynamic_update_slice':
                self.in_place(eqn)
            else:
                self.made(eqn, not waiting.isdisjoint(eqn.outvars))

    def fused(self, eqn: Any) -> None:
        given = [self.value(v) for v in eqn.invars]
        roots = frozenset().union(*(v.roots for v in given))
        costly = eqn.primitive.name in COSTLY or any(v.costly for v in given)
        argument = given[0].argument if eqn.primitive.name in KEEPING else None
        whole = given[0].whole if eqn.primitive.name in SAME else None
        for out in eqn.outvars:
            self.values[out] = Value(roots, costly, whole, argument)

    def made(self, eqn: Any, late: bool = False) -> None:
        """An equation whose results are buffers; `late`, if compilers put it off."""
        product = eqn.primitive.name == 'dot_general'
        for var in eqn.invars:
            value = self.value(var)
            if value.costly and value.whole is None and product:
                value = self.held(var, 'operand')
            self.use(value)
        if product and self.manual is None:
            self.sent(eqn)
        for out in eqn.outvars:
            at = self.new(self.widened(out), eqn.primitive.name)
            self.values[out] = Value(frozenset([at]), False, at)
            if late:
                self.late[at] = [self.value(v) for v in eqn.invars]

    def widened(self, out: Any) -> Any:
        """A result that is only read in a wider type is written in that type."""
        return self.wider.get(out, out.aval)

    def sent(self, eqn: Any) -> None:
        """What a product gathers of its operands, and what it sums before that is cut."""
        told = split(eqn)
        for var, axes in zip(eqn.invars, told.gathered):
            if axes:
                self.gather(var, axes)
        scattered = set(told.summed) & set(self.axes(eqn.outvars[0].aval))
        if scattered:
            at = self.new(eqn.outvars[0].aval, 'partial sums')
            self.grow(at, tuple(scattered))

    def gather(self, var: Any, axes: Axes) -> None:
        """A whole operand; a weight's is there until the layer has done with it."""
        weight = self.value(var).argument
        key = (weight, str(var.aval.dtype), self.began[-1] if self.began else 0)
        if weight is not None and key in self.gathered:
            self.buffers[self.gathered[key]].death = self.time
            return
        self.gathered[key] = at = self.new(var.aval, 'gathered')
        self.grow(at, axes)

    def grow(self, at: int, axes: Axes) -> None:
        one = self.buffers[at]
        one.size *= math.prod(self.sizes[a] for a in axes if a in one.axes)
        one.axes = tuple(a for a in one.axes if a not in axes)

    def in_place(self, eqn: Any) -> None:
        target, *rest = eqn.invars
        for var in rest:
            self.use(self.value(var))
        self.values[eqn.outvars[0]] = self.held(target, 'updated')

    def reshard(self, eqn: Any) -> None:
        source, out = eqn.invars[0], eqn.outvars[0]
        value = self.value(source)
        if set(self.axes(source.aval)) == set(self.axes(out.aval)) or not value.roots:
            self.values[out] = value
            return
        self.use(value)
        at = self.new(out.aval, 'reshard')
        self.values[out] = Value(frozenset([at]), False, at)

    # Nested.

    def call(self, eqn: Any, inner: Any) -> None:
        self.bind(inner, [self.value(v) for v in eqn.invars][-len(inner.invars) :])
        self.walk(inner)
        self.results(eqn.outvars, inner)

    def bind(self, jaxpr: Any, values: Sequence[Value]) -> None:
        _widen(jaxpr, self.wider)
        for var in jaxpr.constvars:
            self.values[var] = NOTHING
        for var, value in zip(jaxpr.invars, values):
            self.values[var] = value

    def results(self, outvars: Sequence[Any], jaxpr: Any) -> None:
        for out, inner in zip(outvars, jaxpr.outvars):
            self.values[out] = self.value(inner)

    def shard_map(self, eqn: Any) -> None:
        inner = getattr(eqn.params['jaxpr'], 'jaxpr', eqn.params['jaxpr'])
        specs = (*eqn.params['in_specs'], *eqn.params['out_specs'])
        self.bind(inner, [self.value(v) for v in eqn.invars])
        before = self.manual
        self.manual = tuple(sorted({a for spec in specs for a in axes_of(spec)}))
        self.walk(inner)
        self.manual = before
        self.results(eqn.outvars, inner)

    def cond(self, eqn: Any) -> None:
        _, *given = eqn.invars
        values = [self.value(v) for v in given]
        for branch in branches(eqn):
            inner = branch.jaxpr
            self.bind(inner, values)
            self.walk(inner)
            self.results(eqn.outvars, inner)

    def loop(self, eqn: Any, body: Any, consts: int, carries: int) -> None:
        """A scan, or a while whose body is seen once."""
        for var in eqn.invars:
            self.use(self.held(var, 'given to a loop'))
        began = self.time
        carried = []
        for out in eqn.outvars[:carries]:
            at = self.new(out.aval, 'carried')
            carried.append(Value(frozenset([at]), False, at))
        stacked = [self.new(out.aval, 'stacked') for out in eqn.outvars[carries:]]
        given = [self.value(v) for v in eqn.invars]
        inside = [*given[:consts], *carried]
        for value in given[consts + carries :]:  # a slice of each
            inside.append(value._replace(whole=None))
        self.touched.append(set())
        self.began.append(began)
        self.bind(body, inside)
        self.walk(body)
        for out in body.outvars:
            self.use(self.value(out))
        self.time += 1
        self.began.pop()
        for at in self.touched.pop():
            if self.buffers[at].birth <= began:
                self.buffers[at].death = self.time
        for at in (*(c.whole for c in carried), *stacked):
            self.buffers[at].death = self.time
        for out, value in zip(eqn.outvars[:carries], carried):
            self.values[out] = value
        for out, at in zip(eqn.outvars[carries:], stacked):
            self.values[out] = Value(frozenset([at]), False, at)

    def scan(self, eqn: Any) -> None:
        params = eqn.params
        self.loop(eqn, params['jaxpr'].jaxpr, params['num_consts'], params['num_carry'])

    def whiles(self, eqn: Any) -> None:
        params = eqn.params
        skipped = params['cond_nconsts']
        self.loop(
            eqn.replace(invars=eqn.invars[skipped:]), params['body_jaxpr'].jaxpr,
            params['body_nconsts'], len(eqn.outvars),
        )  # fmt: skip


def _inner(eqn: Any) -> Any:
    """The jaxpr that an equation runs once, if it is a call."""
    if eqn.primitive.name.startswith(('reduce', 'scatter', 'sort', 'pallas', 'cum', 'arg')):
        return None
    for name in INLINE:
        if name in eqn.params:
            inner = eqn.params[name]
            return getattr(inner, 'jaxpr', inner)
    return None


def _waiting(jaxpr: Any) -> set[Any]:
    """Results of products that are asked for only after another loop has run: the gradient of the
    head's weights waits for the update, and with it that of the logits."""
    made: dict[Any, int] = {}  # loops before a product
    loops, found = 0, set()
    for eqn in jaxpr.eqns:
        read = {v for v in eqn.invars if not isinstance(v, Literal)} & made.keys()
        found |= {var for var in read if made.pop(var) < loops}
        loops += eqn.primitive.name in ('scan', 'while')
        if eqn.primitive.name == 'dot_general':
            made[eqn.outvars[0]] = loops
    return found


def _widen(jaxpr: Any, wider: dict[Any, Any]) -> None:
    """Finds the products whose results are only read in a wider type."""
    readers: dict[Any, list[Any]] = {}
    for eqn in jaxpr.eqns:
        for var in eqn.invars:
            if not isinstance(var, Literal):
                readers.setdefault(var, []).append(eqn)
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}

    def read_as(var: Any) -> Any:
        found = readers.get(var, ())
        if var in kept or not found:
            return None
        if all(e.primitive.name == 'convert_element_type' for e in found):
            types = {e.outvars[0].aval.dtype for e in found}
            return types.pop() if len(types) == 1 else None
        if len(found) == 1 and found[0].primitive.name in SAME | {'transpose'}:
            return read_as(found[0].outvars[0])
        return None

    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'dot_general':
            out = eqn.outvars[0]
            dtype = read_as(out)
            if dtype is not None and dtype.itemsize > out.aval.dtype.itemsize:
                wider[out] = out.aval.update(dtype=dtype)


def course(closed: Any, given: Sequence[Any], sizes: Mapping[str, int], parts: int,
           platform: str) -> Course:  # fmt: skip
    """Walks a traced step.

    Args:
      closed: its closed jaxpr.
      given: for each of its inputs whether it is handed over ('state', used up; results that are as
        large go in its place) or kept ('batch').
      sizes: of the axes of the mesh that it was traced on.
      parts: of the accumulation that it was traced with.
      platform: of the chip.
    """
    jaxpr = chosen(closed, platform).jaxpr
    jaxpr, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    walk = _Walk(sizes, TILES.get(platform, Tiles()))
    kinds = [kind for kind, kept in zip(given, used) if kept]
    values = []
    for var, kind in zip(jaxpr.invars, kinds):
        at = walk.new(var.aval, kind)
        values.append(Value(frozenset([at]), False, at, at if kind == 'state' else None))
    walk.bind(jaxpr, values)
    walk.walk(jaxpr)
    walk.time += 1
    for out in jaxpr.outvars:
        walk.use(walk.value(out))
    for buffer in walk.buffers[: len(values)]:
        buffer.death = walk.time
        if buffer.what == 'state':
            buffer.rows = False
    return _summed(walk, dict(sizes), parts)


def _summed(walk: _Walk, traced: dict[str, int], parts: int) -> Course:
    kept = [b for b in walk.buffers if b.size >= LEAST]
    classes = sorted({(b.axes, b.rows) for b in kept})
    index = {c: i for i, c in enumerate(classes)}
    change = np.zeros((walk.time + 2, len(classes)))
    saved = np.zeros(len(classes))
    for b in kept:
        at = index[b.axes, b.rows]
        change[b.birth, at] += b.size
        change[b.death + 1, at] -= b.size
        if b.what not in GIVEN and b.birth < walk.forward < b.death:
            saved[at] += b.size
    live = np.cumsum(change, 0)
    return Course(live, tuple(classes), traced, saved, tuple(kept), parts)
