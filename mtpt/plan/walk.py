"""A traced step taken apart: every nested jaxpr, and how often it runs.

A shape in a jaxpr is that of the whole array, and its sharding names mesh axes; within a
`shard_map` it is a device's part. What is counted here is therefore kept as sums over axes' names,
and becomes a number a device once the axes have sizes: one trace serves every mesh.

What a step does by platform (`jax.lax.platform_dependent`) is in its trace once for each; of these
one is chosen before anything is counted.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.core.primitives import closed_call_p
from jax.interpreters.partial_eval import dce_jaxpr

Axes = tuple[str, ...]

LOWERED = dict(tpu='tpu', gpu='cuda', cpu='cpu')  # what JAX calls a chip's platform there


class Body(NamedTuple):
    """A jaxpr within a step.

    times: how often it runs; exact: whether that is known, or is a lower bound.
    again: whether it computes what was computed before (`jax.checkpoint`).
    split: the axes of which a device holds a part; not None within a `shard_map` only.
    gathered: those of them along which it is sent, in this `shard_map`, what the others hold.
    """

    jaxpr: Any
    times: float = 1
    exact: bool = True
    again: bool = False
    split: Axes | None = None
    gathered: Axes = ()

    def repeats(self, eqn: Any) -> bool:
        """Whether an equation of it recomputes for the backward pass."""
        return self.again or AGAIN in str(eqn.source_info.name_stack)


AGAIN = 'rematted_computation'  # what jax.checkpoint calls it


def bodies(closed: Any, platform: str | None = None) -> Iterator[Body]:
    """The jaxpr of a traced step and all that it calls, without what nothing depends on.

    platform: of the chip, as `chosen` takes it; loops of known length are preferred.
    """
    jaxpr = chosen(closed, platform, known=True).jaxpr
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    yield from _within(Body(jaxpr))


def _within(body: Body) -> Iterator[Body]:
    yield body
    for eqn in body.jaxpr.eqns:
        inner = body._replace(again=body.repeats(eqn))
        match eqn.primitive.name:
            case 'scan':
                inner = inner._replace(times=body.times * eqn.params['length'])
                yield from _within(inner._replace(jaxpr=eqn.params['jaxpr'].jaxpr))
            case 'while':
                trips = _trips(eqn)
                inner = inner._replace(
                    times=body.times * (trips or 1), exact=body.exact and trips is not None
                )
                yield from _within(inner._replace(jaxpr=eqn.params['body_jaxpr'].jaxpr))
            case 'cond':
                found = [list(_within(inner._replace(jaxpr=b.jaxpr))) for b in branches(eqn)]
                yield from max(found, key=_weight)
            case 'shard_map':
                split = tuple(sorted({a for spec in eqn.params['in_specs'] for a in axes_of(spec)}))
                gathered = tuple(a for a in split if a in set(_gathered(eqn.params['jaxpr'])))
                inner = inner._replace(split=split, gathered=gathered)
                yield from _within(inner._replace(jaxpr=eqn.params['jaxpr']))
            case 'pallas_call':
                steps = [n for n in eqn.params['grid_mapping'].grid if isinstance(n, int)]
                inner = inner._replace(
                    times=body.times * math.prod(steps),
                    exact=body.exact and len(steps) == len(eqn.params['grid_mapping'].grid),
                )
                yield from _within(inner._replace(jaxpr=eqn.params['jaxpr']))
            case name if not name.startswith(('reduce', 'scatter')):
                for jaxpr in _called(eqn):
                    yield from _within(inner._replace(jaxpr=jaxpr))


def chosen(closed: Any, platform: str | None, known: bool = False) -> Any:
    """A traced step with one platform's branches in place of those for several.

    Args:
      platform: of the chip: 'tpu', 'gpu' or 'cpu'; where none is for it, that for all others.
      known: whether to take that for all others too where the platform's own has products in a loop
        of no known length.
    """
    return closed.replace(jaxpr=_chosen(closed.jaxpr, LOWERED.get(platform), known))


def _chosen(jaxpr: Any, platform: str | None, known: bool) -> Any:
    def within(param: Any) -> Any:
        if isinstance(param, (tuple, list)):
            return tuple(within(x) for x in param) if any(map(_nested, param)) else param
        if isinstance(param, ClosedJaxpr):
            return param.replace(jaxpr=_chosen(param.jaxpr, platform, known))
        return _chosen(param, platform, known) if _nested(param) else param

    eqns = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'cond' and eqn.params.get('branches_platforms'):
            params = dict(call_jaxpr=within(_branch(eqn, platform, known)))
            eqn = eqn.replace(primitive=closed_call_p, invars=eqn.invars[1:], params=params)
        elif eqn.primitive.name != 'pallas_call' and any(map(_nested, _flat(eqn.params.values()))):
            eqn = eqn.replace(params={name: within(param) for name, param in eqn.params.items()})
        eqns.append(eqn)
    return jaxpr.replace(eqns=eqns)


def _branch(eqn: Any, platform: str | None, known: bool) -> Any:
    """What a choice by platform comes to on one."""
    by = {
        name: branch
        for names, branch in zip(eqn.params['branches_platforms'], branches(eqn))
        for name in names or (None,)
    }
    own = by.get(platform, by.get(None, branches(eqn)[-1]))
    if known and not all(b.exact or not _weight([b]) for b in _within(Body(own.jaxpr))):
        return by.get(None, own)
    return own


def branches(eqn: Any) -> tuple[Any, ...]:
    """What a `cond` chooses from."""
    return eqn.params['branches']


def _gathered(jaxpr: Any) -> Iterator[str]:
    """The axes along which a `shard_map` gathers, or scatters sums of what was gathered."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ('all_gather', 'all_gather_invariant', 'reduce_scatter'):
            yield from entry_axes(eqn.params['axis_name'])
        for inner in _called(eqn):
            yield from _gathered(inner)


def _called(eqn: Any) -> Iterator[Any]:
    for value in _flat(eqn.params.values()):
        if _nested(value):
            yield getattr(value, 'jaxpr', value)


def _flat(params: Iterable[Any]) -> Iterator[Any]:
    for param in params:
        yield from param if isinstance(param, (tuple, list)) else (param,)


def _nested(param: Any) -> bool:
    """Whether a parameter of an equation is a jaxpr, closed or not."""
    return isinstance(param, (ClosedJaxpr, Jaxpr))


def _weight(found: list[Body]) -> float:
    """How much work a branch is: the numbers that its products give."""
    return sum(
        body.times * eqn.outvars[0].aval.size
        for body in found
        for eqn in body.jaxpr.eqns
        if 'dot' in eqn.primitive.name
    )


def _trips(eqn: Any) -> int | None:
    """How often a `while` that counts to a constant runs; None if it does something else."""
    test, body = eqn.params['cond_jaxpr'].jaxpr, eqn.params['body_jaxpr'].jaxpr
    skipped = eqn.params['cond_nconsts'] + eqn.params['body_nconsts']
    if len(test.eqns) != 1 or test.eqns[0].primitive.name != 'lt':
        return None
    counter, limit = test.eqns[0].invars
    carried = test.invars[eqn.params['cond_nconsts'] :]
    if isinstance(counter, Literal) or counter not in carried or not isinstance(limit, Literal):
        return None
    place = carried.index(counter)
    first = eqn.invars[skipped + place]
    step = [e for e in body.eqns if body.outvars[place] in e.outvars]
    mine = body.invars[eqn.params['body_nconsts'] + place]
    if not isinstance(first, Literal) or not step or step[0].primitive.name != 'add':
        return None
    by = [v.val for v in step[0].invars if isinstance(v, Literal)]
    if mine not in step[0].invars or not by or by[0] <= 0:
        return None
    return max(0, math.ceil((int(limit.val) - int(first.val)) / int(by[0])))


def axes_of(spec: Any) -> Axes:
    """The mesh axes that a sharding names, over all dimensions."""
    return tuple(axis for entry in spec for axis in entry_axes(entry))


def entry_axes(entry: Any) -> Axes:
    """The axes of one dimension of a sharding."""
    if entry is None or entry is jax.P.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def spec_of(aval: Any) -> list[Axes]:
    """The axes that each dimension of a shape is split over."""
    spec = getattr(getattr(aval, 'sharding', None), 'spec', ())
    found = [entry_axes(entry) for entry in spec]
    return found + [()] * (len(aval.shape) - len(found))


def size_of(aval: Any) -> float:
    """The bytes of an array as its shape says."""
    return math.prod(aval.shape) * aval.dtype.itemsize


def ways(axes: Any, sizes: Mapping[str, int]) -> int:
    """Into how many parts axes of these sizes split."""
    return math.prod(sizes[axis] for axis in set(axes))
