"""Which mesh, microbatch and remat policy: those that divide are estimated, those that fit ranked.

The step is traced a few times on a small mesh. What was counted there names mesh axes and not
their sizes, so a candidate costs arithmetic; the memory of each is estimated from its shapes. Some
things are no multiple of sizes, as the least number of slots that an expert has: the layouts that
come first are traced on their own meshes, until those that are told are told exactly.

A accumulation  B rows  S encoder positions  T decoder positions
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from mtpt import layout, stages
from mtpt.chips import Topology
from mtpt.config import UserError
from mtpt.mesh import AXES, MeshConfig
from mtpt.model.parts import REMAT
from mtpt.plan import abstract, communication, estimate, memory
from mtpt.plan.abstract import Problem, Sizes
from mtpt.settings import Run
from mtpt.stages import Leg

SHOWN = 5
ROOM = 0.9  # of the memory: what is left covers what estimates are wrong by
TRACED = 24  # layouts at most that are traced on their own meshes
Key = tuple[Any, ...]


class Candidate(NamedTuple):
    """A way to lay a run out."""

    mesh: tuple[int, ...]
    accumulation: int
    remat: str


def search(run: Run, target: Topology, known: Sizes, mfu: float) -> dict[str, Any]:
    """The fastest layouts that fit, and how many were tried.

    Returns:
      tried, fit: numbers of layouts; best: some that fit, the fastest first, each with its mesh,
      accumulation, remat policy, peak bytes and seconds of a step; smallest: where nothing fits,
      the one that needs least.
    """
    rows, exact = ranked(run, target, known, mfu), []
    slower: dict[int, float] = {}  # by rows of a device: what traces say to what estimates said
    for _ in range(TRACED):
        rough = next((row for row in _first(rows) if row not in exact), None)
        if rough is None:
            break
        rows.remove(rough)
        try:
            row = _exactly(rough, run, target, known, mfu)
        except UserError:  # tokens that share slots do not divide on this mesh
            if not rows:
                raise
            continue
        exact.append(row)
        rows.append(row)
        slower[row['rows']] = row['seconds']['expected'] / rough['seconds']['expected']
        rows.sort(key=lambda r: _order(r, 1 if r in exact else slower.get(r['rows'], 1)))
    fit = [row for row in rows if row['fits']]
    best = [row for row in fit if row in exact] or fit
    return dict(
        tried=len(rows), fit=len(fit), best=best[:SHOWN],
        smallest=None if fit else _first(rows)[0], available=target.chip.usable,
    )  # fmt: skip


def _first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layouts that are told: the fastest that fit, or the smallest where none does."""
    return [row for row in rows if row['fits']][:SHOWN] or [min(rows, key=lambda r: r['peak'])]


def ranked(run: Run, target: Topology, known: Sizes, mfu: float) -> list[dict[str, Any]]:
    """Every layout that divides with its estimates, the fastest first; of equals one that leaves
    the host's memory alone, then that of fewer parts, then of less memory.

    Raises:
      UserError: none divides.
    """
    found = sorted(candidates(run, target, known), key=_work)
    if not found:
        raise UserError(
            f'no mesh of {target.devices} devices divides this model and a batch of '
            f'{run.data.batch_size} rows; make data.batch_size a multiple of more of them'
        )
    probes, rows = {}, []
    for (remat, parts), group in itertools.groupby(found, key=_work):
        if remat not in probes:
            probes[remat] = _Probe(run, target, known, remat, found)
        traced, problem = probes[remat].of(parts), probes[remat].problem(parts)
        course = probes[remat].course(parts)
        rows += [_row(c, moved(problem, c.mesh), traced, course, target, mfu) for c in group]
    return sorted(rows, key=_order)


def _order(row: dict[str, Any], slower: float = 1.0) -> Key:
    took = float(f'{row["seconds"]["expected"] * slower:.3g}')
    return took, 'offload' in row['remat'], row['accumulation'], row['peak']


def _work(candidate: Candidate) -> tuple[str, int]:
    """What of a candidate must be traced."""
    return candidate.remat, candidate.accumulation


def applied(run: Run, best: Mapping[str, Any]) -> Run:
    """A run with a layout that was found."""
    return _with(run, best['accumulation'], best['remat'], tuple(best['mesh'].values()))


def _with(run: Run, accumulation: int, remat: str, mesh: tuple[int, ...]) -> Run:
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, accumulation=accumulation),
        model=dataclasses.replace(run.model, remat=remat),
        mesh=MeshConfig(*mesh),
    )


def candidates(run: Run, target: Topology, known: Sizes) -> Iterator[Candidate]:
    """Every layout whose dimensions divide, in all stages of the run."""
    cfg, options = abstract.model_of(run, known), {}
    for accumulation in _accumulations(run):
        try:
            changed = _with(run, accumulation, run.model.remat, tuple([1] * len(AXES)))
            options[accumulation] = [leg.run for leg in stages.legs(changed)]
        except UserError:  # a stage has an accumulation or a batch that this one does not divide
            continue
    models = {remat: dataclasses.replace(cfg, remat=remat) for remat in REMAT}
    for mesh in _meshes(target, bool(cfg.moe.E)):
        laid, platform = abstract.abstract_mesh(mesh), target.chip.platform
        for (accumulation, legs), remat in itertools.product(options.items(), REMAT):
            try:
                for leg in legs:
                    layout.check(leg, models[remat], laid, platform)
            except UserError:
                continue
            yield Candidate(mesh, accumulation, remat)


def _accumulations(run: Run) -> list[int]:
    """Numbers of parts that a batch can be taken in."""
    rows = run.data.batch_size // run.data.row_groups
    parts = {n for n in range(1, rows + 1) if rows % n == 0 and n & (n - 1) == 0}
    return sorted(parts | {run.data.accumulation})


def _meshes(target: Topology, sparse: bool) -> Iterator[tuple[int, ...]]:
    """The ways to give all devices to the axes; `data` runs between slices."""
    for data in _divisors(target.devices):
        if data % target.slices:
            continue
        for fsdp in _divisors(target.devices // data):
            rest = target.devices // data // fsdp
            for expert in _divisors(rest) if sparse else (1,):
                yield data, fsdp, expert, rest // expert


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


class _Probe:
    """A run with a remat policy, traced on a small mesh with as many parts as it takes to tell how
    its work grows with their number."""

    def __init__(
        self, run: Run, target: Topology, known: Sizes, remat: str, found: list[Candidate]
    ):
        self.run, self.target, self.known, self.remat = run, target, known, remat
        self.parts = sorted({c.accumulation for c in found})
        # Two of each axis that some candidate splits: enough for its name to be in the shardings.
        used = [2 if any(c.mesh[i] > 1 for c in found) else 1 for i in range(len(AXES))]
        self.meshes = {
            parts: next(
                mesh
                for mesh in (tuple(used), *(c.mesh for c in found if c.accumulation == parts))
                if self._fits(mesh, parts)
            )
            for parts in self.parts
        }
        self.traces: dict[int, estimate.Traced] = {}
        self.problems: dict[int, Problem] = {}

    def _fits(self, mesh: tuple[int, ...], accumulation: int) -> bool:
        run = _with(self.run, accumulation, self.remat, mesh)
        cfg, laid = abstract.model_of(run, self.known), abstract.abstract_mesh(mesh)
        try:
            layout.check(_longest(run).run, cfg, laid, self.target.chip.platform)
        except UserError:
            return False
        return True

    def problem(self, accumulation: int) -> Problem:
        """The problem on the small mesh, with so many parts."""
        if accumulation not in self.problems:
            mesh = self.meshes[accumulation]
            like = next((p for a, p in self.problems.items() if self.meshes[a] == mesh), None)
            if like is None:
                made = _on(mesh, accumulation, self.remat, self.run, self.target, self.known)
            else:
                made = _in_parts(like, accumulation)
            self.problems[accumulation] = made
        return self.problems[accumulation]

    def of(self, accumulation: int) -> estimate.Traced:
        """What a step of so many parts does: traced, or told from two that were."""
        known = self.parts[:2]
        if accumulation in known:
            return self._traced(accumulation)
        return _between(*((a, self._traced(a)) for a in known), accumulation)

    def course(self, accumulation: int) -> Any:
        """What memory holds in a step of so many parts; one serves for all numbers above one."""
        several = [a for a in self.parts if a > 1]
        like = accumulation if accumulation == 1 or not several else several[0]
        return memory.course_of(self.problem(like), self.target.chip.platform)

    def _traced(self, accumulation: int) -> estimate.Traced:
        if accumulation not in self.traces:
            problem = self.problem(accumulation)
            self.traces[accumulation] = estimate.traced(problem, self.target.chip.platform)
        return self.traces[accumulation]


def _on(
    mesh: tuple[int, ...], accumulation: int, remat: str, run: Run, target: Topology, known: Sizes
) -> Problem:
    """The longest leg of a run in a layout."""
    run = _with(run, accumulation, remat, mesh)
    laid = abstract.abstract_mesh(mesh)
    return abstract.problem(_longest(run), run, laid, known, target.chip.platform)


def _longest(run: Run) -> Leg:
    return max(stages.legs(run), key=lambda leg: _positions(leg.run))


def _positions(run: Run) -> int:
    """Positions of a part of a batch."""
    data = run.data
    return data.batch_size // data.accumulation * (data.inputs_length + data.targets_length)


def _in_parts(problem: Problem, accumulation: int) -> Problem:
    """A problem with another number of parts; its parameters and its optimizer stay."""
    run = dataclasses.replace(
        problem.run, data=dataclasses.replace(problem.run.data, accumulation=accumulation)
    )
    batch = abstract.abstract_batch(run, problem.model, problem.mesh)
    return dataclasses.replace(problem, run=run, batch=batch)


def moved(problem: Problem, mesh: tuple[int, ...]) -> Problem:
    """A problem on a mesh of other sizes: shardings name axes, so they go along."""
    other = abstract.abstract_mesh(mesh)

    def move(x):
        sharding = jax.sharding.NamedSharding(other, x.sharding.spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state, batch = jax.tree.map(move, (problem.state, problem.batch))
    run = dataclasses.replace(problem.run, mesh=MeshConfig(*mesh))
    return dataclasses.replace(problem, run=run, mesh=other, state=state, batch=batch)


def _between(
    one: tuple[int, estimate.Traced], other: tuple[int, estimate.Traced], parts: int
) -> estimate.Traced:
    """What is done once a part and what once a step, from two numbers of parts: a line."""
    (a, first), (b, second) = one, other
    share = (parts - a) / (b - a)

    def line(x: float, y: float) -> float:
        return max(0.0, x + (y - x) * share)

    before, after = _by_key(first), _by_key(second)
    products, sent = [], []
    for key in {**before, **after}:
        x, y = before.get(key), after.get(key)
        made = products if key[0] == 'product' else sent
        if x is None or y is None:
            made.append(x or y)
        elif key[0] == 'product':
            moved = tuple((line(n, m), axes) for (n, axes), (m, _) in zip(x.moved, y.moved))
            made.append(x._replace(moved=moved))
        else:
            made.append(x._replace(size=line(x.size, y.size)))
    counted = dataclasses.replace(first.counted, products=tuple(products))
    return estimate.Traced(counted, tuple(sent), first.model)


def _by_key(traced: estimate.Traced) -> dict[Key, Any]:
    found: dict[Key, Any] = {
        ('product', p.shared, *(axes for _, axes in p.moved)): p for p in traced.counted.products
    }
    return found | {('sent', c.kind, c.axes, c.split): c for c in traced.collectives}


def _row(
    candidate: Candidate,
    problem: Problem,
    traced: estimate.Traced,
    course: Any,
    target: Topology,
    mfu: float,
) -> dict[str, Any]:
    sizes = dict(zip(AXES, candidate.mesh))
    lines = communication.lines(traced.collectives, sizes, target)
    held = memory.estimate(problem, target.chip.platform, course)
    times = estimate.seconds(traced, lines, held, sizes, target, mfu)
    return dict(
        mesh=sizes,
        accumulation=candidate.accumulation,
        remat=candidate.remat,
        peak=held['peak'],
        fits=bool(held['peak'] <= ROOM * target.chip.usable),
        seconds=times,
        mfu=mfu * times['at_mfu'] / times['expected'],
        rows=math.ceil(problem.rows / candidate.accumulation / math.prod(candidate.mesh[:3])),
    )


def _exactly(
    row: Mapping[str, Any], run: Run, target: Topology, known: Sizes, mfu: float
) -> dict[str, Any]:
    """A row as its own plan has it.

    Raises:
      UserError: the layout turns out not to divide.
    """
    candidate = Candidate(tuple(row['mesh'].values()), row['accumulation'], row['remat'])
    problem = _on(*candidate, run, target, known)
    traced = estimate.traced(problem, target.chip.platform)
    return _row(candidate, problem, traced, None, target, mfu)
