"""Bytes of a device by category, and their peak over a step, by arithmetic and without a compiler.

Parameters, optimizer and batch follow from shapes and shardings; what comes and goes in the course
of a step from a walk over its jaxpr (`liveness`). How that compares with compilers on steps it was
not tuned on stands in docs/benchmarks.md.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from mtpt.plan import liveness
from mtpt.plan.abstract import Problem
from mtpt.plan.liveness import Course
from mtpt.plan.tiles import TILES, Tiles, device_bytes


def estimate(
    problem: Problem, platform: str = 'tpu', course: Course | None = None
) -> dict[str, float]:
    """Bytes of a device.

    parameters, optimizer, batch: exact, with what a TPU's tiles leave empty; gradients: of all
    parameters, as they are there at the end of the backward pass; activations: what the forward
    pass keeps for the backward pass; peak: the most that is there at a time. That is less than the
    sum where gradients come as activations go, and more where layers need room to work.

    Args:
      platform: of the chip: 'tpu', 'gpu' or 'cpu'.
      course: of the same step on another mesh or in another number of parts; by default the step is
        traced.
    """
    sizes, parts = dict(problem.mesh.shape), problem.run.data.accumulation
    course = course or course_of(problem, platform)
    factors = course.factors(sizes, parts)
    tiles = TILES.get(platform, Tiles())
    params, batch = held(problem.state.params, sizes, tiles), held(problem.batch, sizes, tiles)
    optimizer, peak = held(problem.state.opt_state, sizes, tiles), (course.live @ factors).max()
    if (
        platform == 'gpu' and parts > 1
    ):  # XLA copies the sums there before the next part adds to them
        peak = max(peak, params + optimizer + batch + 2 * params)
    return dict(
        parameters=params,
        optimizer=optimizer,
        gradients=params,
        activations=float(course.saved @ factors),
        batch=batch,
        peak=float(peak),
    )


def course_of(problem: Problem, platform: str) -> Course:
    """What a device's memory holds in the course of the problem's step."""
    shapes = tuple(x.shape for x in jax.tree.leaves(problem.batch))
    mesh = tuple(dict(problem.mesh.shape).items())
    return _courses(_Keyed(problem, (problem.step, shapes, mesh, platform)), platform)


class _Keyed:
    """A problem that is the same as another whose step, batch and mesh are."""

    def __init__(self, problem: Problem, key: Any):
        self.problem, self.key = problem, key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: Any) -> bool:
        return self.key == other.key


@functools.lru_cache(maxsize=64)
def _courses(keyed: _Keyed, platform: str) -> Course:
    problem = keyed.problem
    given = ['state'] * len(jax.tree.leaves(problem.state))
    given += ['batch'] * len(jax.tree.leaves(problem.batch))
    sizes, parts = dict(problem.mesh.shape), problem.run.data.accumulation
    return liveness.course(problem.trace(), given, sizes, parts, platform)


def held(tree: Any, sizes: Mapping[str, int], tiles: Tiles = Tiles()) -> float:  # noqa: B008
    """The bytes that a device holds of a tree of shapes with shardings."""
    return sum(device_bytes(x, sizes, tiles) for x in jax.tree.leaves(tree))
