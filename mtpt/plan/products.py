"""A product in a traced step: its FLOPs, and what of it devices share, sum up or must be sent.

m rows of the result  k contracted  n columns
"""

import math
from typing import Any, NamedTuple

from mtpt.plan.walk import Axes, spec_of


class Split(NamedTuple):
    """How the devices share a product, by the shardings of its operands and result.

    shared: the axes over which each device computes a part.
    summed: those of them over which parts must be added up.
    gathered: for each operand the axes along which a device must be sent what it lacks.
    """

    shared: Axes
    summed: Axes
    gathered: tuple[Axes, Axes]


def split(eqn: Any) -> Split:
    """How an equation 'dot_general' outside a `shard_map` is shared.

    An axis that splits a contracted dimension of both operands leaves sums to be added. Where it
    splits that of one, the operand is gathered if the axis splits the result along the other one
    (rows of a batch against slices of a weight); else the other is cut to match.
    """
    (left, right), (left_batch, right_batch) = eqn.params['dimension_numbers']
    specs = [spec_of(v.aval) for v in eqn.invars[:2]]
    out = spec_of(eqn.outvars[0].aval)
    named = {axis for dim in out for axis in dim}
    summed, gathered = set(), (set(), set())
    for i, j in zip(left, right):
        one, other = set(specs[0][i]), set(specs[1][j])
        summed |= one & other
        for mine, lone in ((0, one - other), (1, other - one)):
            theirs = {axis for dim in specs[1 - mine] for axis in dim}
            gathered[mine].update(lone & named & theirs)
            summed |= lone - (named & theirs)
    batches = len(left_batch)
    free = [i for i in range(len(specs[0])) if i not in left and i not in left_batch]
    for place, i in enumerate([*left_batch, *free]):
        gathered[0].update(set(specs[0][i]) - set(out[place]))
    free_right = [i for i in range(len(specs[1])) if i not in right and i not in right_batch]
    places = [*range(batches), *range(batches + len(free), len(out))]
    for place, i in zip(places, [*right_batch, *free_right]):
        gathered[1].update(set(specs[1][i]) - set(out[place]))
    summed -= gathered[0] | gathered[1]
    shared = tuple(sorted(named | summed))
    return Split(shared, tuple(sorted(summed)), tuple(tuple(sorted(g)) for g in gathered))


def flops(eqn: Any) -> tuple[float, float]:
    """FLOPs of an equation as its shapes are: those of the model, and what is done beside them.

    A product of m x k by k x n has 2 m k n. A grouped product counts each row against one group's
    matrix. Elementwise work counts nothing, as is usual. cuDNN's attention computes the scores anew
    in its backward pass.
    """
    name = eqn.primitive.name
    shapes = [tuple(getattr(v.aval, 'shape', ())) for v in eqn.invars]
    out = math.prod(getattr(eqn.outvars[0].aval, 'shape', ())) if eqn.outvars else 0
    if name == 'dot_general':
        contracted = eqn.params['dimension_numbers'][0][0]
        return 2.0 * out * math.prod(shapes[0][i] for i in contracted), 0.0
    if name.startswith('ragged_dot'):
        return _ragged(eqn, shapes, out), 0.0
    if name == 'conv_general_dilated':
        features = eqn.params['dimension_numbers'].rhs_spec[0]
        return 2.0 * out * math.prod(shapes[1]) / shapes[1][features], 0.0
    if name.startswith('dot_product_attention_') and len(shapes[0]) == 4:
        B, T, H, K = shapes[0]
        one = 2.0 * B * T * shapes[1][1] * H * K
        return (4 * one, one) if '_bwd' in name else (2 * one, 0.0)
    return 0.0, 0.0


def _ragged(eqn: Any, shapes: list[tuple[int, ...]], out: int) -> float:
    """Each row of the left side meets the matrix of its own group only."""
    numbers = eqn.params.get('ragged_dot_dimension_numbers')
    if numbers is None:
        return 2.0 * out * shapes[0][-1]
    contracted = numbers.dot_dimension_numbers[0][0]
    size = 2.0 * out * math.prod(shapes[0][i] for i in contracted)
    if set(contracted) & set(numbers.lhs_ragged_dimensions):
        groups = eqn.outvars[0].aval.shape[0]  # the gradient of the matrices: a group each
        return size / groups
    return size
