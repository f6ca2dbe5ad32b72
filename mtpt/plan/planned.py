"""A whole plan: the legs of a run on a topology, what they come to, and what they cost."""

import dataclasses
from typing import Any

import jax

from mtpt.chips import Topology, topology
from mtpt.mesh import AXES
from mtpt.plan import abstract, estimate
from mtpt.plan.verb import FORMAT, Asked
from mtpt.settings import Run

DAY = 86400.0


def plan(run: Run, config: str, asked: Asked) -> dict[str, Any]:
    """All figures of a run on a topology, as plain JSON.

    Raises:
      UserError: the run cannot be laid out there.
    """
    target = topology(asked.topology, asked.slices)
    known = abstract.sizes(run, asked.tasks)
    about = dict(
        format=FORMAT,
        config=config,
        name=run.name,
        topology=machine(target),
        mfu=asked.mfu,
        notes=_hosts(run, target),
        versions=dict(jax=jax.__version__),
    )
    if asked.search:
        from mtpt.plan import search

        found = search.search(run, target, known, asked.mfu)
        about['search'] = found
        if not found['best']:
            return about
        run = search.applied(run, found['best'][0])
    shape = abstract.mesh_sizes(run.mesh, target)
    mesh = abstract.abstract_mesh(shape)
    problems = abstract.problems(run, mesh, known, target.chip.platform)
    legs, seen = [], {}
    for problem in problems:
        alike = (problem.run.data.batch_size, problem.batch.keys(), problem.run.optimizer)
        same = repr((alike, problem.batch, problem.run.train, problem.model))
        if same not in seen:
            seen[same] = estimate.leg(problem, target, asked.mfu)
        legs.append(seen[same] | dict(name=problem.name, steps=problem.steps))
    about |= dict(
        mesh=dict(zip(AXES, shape)),
        remat=problems[0].model.remat,
        dtype=problems[0].model.dtype,
        optimizer=run.optimizer.name,
        parameters=estimate.parameters(problems[0]),
        kv_cache=estimate.kv_cache(problems[0]),
        legs=legs,
        notes=[*problems[0].notes, *about['notes']],
        fits=all(leg['fits'] for leg in legs),
        run=whole(legs),
    )
    if asked.compile:
        about['compiled'] = compiled(run, target, known, legs)
    return about


def _hosts(run: Run, target: Topology) -> list[str]:
    """What training would refuse when it starts on as many hosts."""
    hosts, groups = target.hosts, run.data.row_groups
    if groups % hosts == 0:
        return []
    return [
        f'training will refuse: {hosts} hosts do not divide data.row_groups={groups}; make it a '
        f'multiple of {hosts} (and of data.batch_size a divisor)'
    ]


def machine(target: Topology) -> dict[str, Any]:
    """A topology and the facts of its chip."""
    left_out = ('kind', 'shapes', 'cubes')
    chip = {k: v for k, v in dataclasses.asdict(target.chip).items() if k not in left_out}
    return dict(
        name=target.name, slices=target.slices, chips=target.chips, devices=target.devices,
        hosts=target.hosts, chip=chip,
    )  # fmt: skip


def whole(legs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the steps of all legs come to at the stated MFU, and as is expected."""
    told = dict(steps=sum(leg['steps'] for leg in legs))
    told['tokens'] = sum(leg['steps'] * leg['tokens'] for leg in legs)
    told['flops'] = sum(leg['steps'] * leg['flops']['model'] for leg in legs)
    for name, of in (('', 'at_mfu'), ('expected_', 'expected')):
        spent = sum(leg['steps'] * leg['seconds'][of] for leg in legs)
        told[f'{name}days'] = spent / DAY
    return told


def compiled(
    run: Run, target: Topology, known: abstract.Sizes, legs: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the compiler says of the leg that needs most.

    Raises:
      UserError: the compiler is not installed.
    """
    from mtpt.plan import compiled as compiling

    largest = max(range(len(legs)), key=lambda i: legs[i]['memory']['peak'])
    return compiling.compile_step(compiling.job(run, target, known.V, known.M, largest))
