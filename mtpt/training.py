"""Training as a config says: one folder, one table of tasks, leg after leg to the end."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import rich.console

from mtpt import (
    hosts,
    layout,
    lineage,
    lock,
    prepare,
    record,
    report,
    shares,
    specialisation,
    stages,
    task_ids,
)
from mtpt import mesh as meshes
from mtpt.beside import beside_of, cost_of
from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError
from mtpt.data import manifest as manifests
from mtpt.data.cache import opener
from mtpt.data.labels import Labels
from mtpt.data.loader import Loader, validation_batches
from mtpt.data.manifest import Manifest
from mtpt.data.steering import Steered, changed_rates
from mtpt.data.stream import stream
from mtpt.diagnosis import DEBUGGING, Diagnosis, Recent, for_debugging
from mtpt.exams import Exams, averages, here
from mtpt.files import Unwritten
from mtpt.log import Writer, read_metrics
from mtpt.model import functional
from mtpt.model.config import ModelConfig
from mtpt.opened import model_of
from mtpt.settings import Run
from mtpt.stages import Leg
from mtpt.train import spikes
from mtpt.train.config import loss_settings
from mtpt.train.loop import Beside, Trainer
from mtpt.train.optimizer import Optimizer, make_optimizer
from mtpt.train.replay import Replay
from mtpt.train.start import Start, begin
from mtpt.train.state import TrainState, with_optimizer, with_spikes
from mtpt.train.validation import Judges
from mtpt.vocabulary import Vocabulary, load
from mtpt.watch import boards
from mtpt.watch.goodput import begun


def train(run: Run, workdir: str | pathlib.Path, debug: bool = False) -> list[dict[str, Any]]:
    """Trains as `run` says in a folder, or goes on where that was left; returns the last scores.

    debug: on one device, step by step, to the first update that is not finite.

    Raises:
      FloatingPointError: with `debug`, there.
      UserError: whatever is wrong with the config, the data or the folder, in a sentence.
    """
    workdir, began = pathlib.Path(workdir), begun()
    run = for_debugging(run) if debug else run
    legs = stages.legs(run)
    if run.log.wandb:
        boards.imported()  # before any work is done
    record.make_folder(workdir)
    hosts.check_shared(workdir)
    with lock.held(workdir):
        return _train(run, workdir, legs, began, debug)


def _train(
    run: Run, workdir: pathlib.Path, legs: list[Leg], began: float, debug: bool
) -> list[dict[str, Any]]:
    record.check_resumes(run, workdir)
    folder = prepare.cache_of(run.data, workdir)
    manifest = _first_process_prepares(run, folder)
    vocabulary = load(manifests.vocabulary_folder(folder))
    vocabulary.save(workdir / 'vocabulary')
    task_ids.check_names(run.model, manifest)
    model_cfg = model_of(run, vocabulary, task_ids.last(manifest.tasks), manifest)
    mesh = meshes.make_mesh(run.mesh)
    hosts.meet(mesh)
    for leg in legs:
        layout.check(leg.run, model_cfg, mesh, mesh.devices.flat[0].platform)
        changed_rates(leg.run.data.rates, _table(manifest, leg))
        spikes.check(leg.run.train.spikes, run.checkpoint.every, bool(leg.run.data.learn.rule))
    # A rollback may go back past what was saved on the way.
    regular = 2 * any(leg.run.train.spikes.rule == 'rollback' for leg in legs)
    checkpoints = Checkpoints(workdir, run.checkpoint, regular=regular)
    if step := checkpoints.latest():
        stages.check_goes_on(record.run_of(workdir), run, step, workdir)
        lineage.check_tasks(checkpoints, model_cfg, manifest, workdir)
    leg = stages.leg_of(legs, step or 0)
    tx = _optimizer(run, leg, model_cfg)
    source = run.init_from
    gone_to = lineage.rows_from(source, vocabulary), lineage.tasks_from(source, manifest)
    start = begin(leg.run.train, model_cfg, tx, mesh, checkpoints, source, *gone_to)
    lineage.check_order(start, manifest, run)
    record.write_config(run, workdir, model_cfg, mesh)
    beside = beside_of(run, workdir, start.step, began)
    course = _Course(
        run, workdir, manifest, vocabulary, model_cfg, mesh, checkpoints, beside, debug
    )
    try:
        return course.take(legs[legs.index(leg) :], start, tx)
    finally:
        beside.watchdog.close()


@dataclasses.dataclass(frozen=True)
class _Course:
    """What all legs of a run share."""

    run: Run
    workdir: pathlib.Path
    manifest: Manifest
    vocabulary: Vocabulary
    model_cfg: ModelConfig
    mesh: jax.sharding.Mesh
    checkpoints: Checkpoints
    beside: Beside
    debug: bool = False

    def take(self, legs: list[Leg], start: Start, tx: Optimizer) -> list[dict[str, Any]]:
        """Trains leg after leg; returns the scores of the exams at the end."""
        run, names = self.run, self.manifest.names[1:]
        state, position, loader = start.state, start.position, self._loader(legs[0], start.position)
        reached = [loader]
        with (
            _told(self.workdir, self.manifest, reached),
            Writer(
                self.workdir, names, run.train.steps, run.log, step=start.step,
                primary=jax.process_index() == 0,
                figures=shares.Shares(self.workdir, self.manifest, lambda: reached[0]),
                clock=self.beside.clock,
            ) as writer,
        ):  # fmt: skip
            self.beside.tracer.say = writer.say
            if self.debug:
                writer.say(f'--debug: {DEBUGGING} ({self.mesh.devices.flat[0]})')
            for note in (*start.notes, *_notes(loader)):
                writer.say(note)
            exams = self._exams(legs[0])
            if not start.step:
                untrained = [n for n, p in run.exams.items() if p.at_start]
                self._take(exams, 0, state, untrained, writer)
            for leg in legs:
                step = int(state.step)
                if step >= leg.last and leg is not legs[-1]:
                    self._examine(exams, leg, state, writer)  # if it was stopped before
                    continue
                if step == leg.first and leg.first:
                    tx, state, position = self._enter(leg, state, position)
                if step != start.step or leg is not legs[0]:
                    loader = reached[0] = self._loader(leg, position)
                if leg.name:
                    writer.say(f'stage {leg.name}: {leg.run.data.mixture} up to step {leg.last}')
                exams = self._exams(leg)
                state, position = self._run(leg, state, position, tx, loader, writer, exams)
                if leg is not legs[-1]:
                    self._examine(exams, leg, state, writer)
            done = self._take(exams, run.train.steps, state, list(run.exams), writer)
        return [row for rows in done.values() for row in rows]

    def _examine(self, exams: Exams, leg: Leg, state: TrainState, writer: Writer) -> None:
        """Takes the exams that are due at the end of a leg and were not taken yet."""
        due = [name for name, plan in self.run.exams.items() if plan.each_stage]
        if jax.process_count() == 1:
            due = [name for name in due if not exams.place(leg.last, name).exists()]
        self._take(exams, leg.last, state, due, writer)

    def _take(
        self, exams: Exams, step: int, state: TrainState, names: list[str], writer: Writer
    ) -> dict[str, list[dict[str, Any]]]:
        """Takes exams of the run that are not left to a follower, and logs their averages."""
        with self.beside.clock.spent('evaluating'):
            done = exams.take(step, state.params, here(self.run.exams, names))
        if told := averages(done):
            writer.write(step, told)
        return done

    def _run(
        self, leg: Leg, state: TrainState, position: Any, tx: Optimizer, loader: Loader,
        writer: Writer, exams: Exams,
    ) -> tuple[TrainState, Any]:  # fmt: skip
        """One leg, from where the state is to its end."""
        table = _table(self.manifest, leg)
        steered = self._steered(leg, table, loader, int(state.step), position)
        scale, recent = _scale(leg.run, self.manifest), self._recent(leg, loader, state)
        writer.cost = cost_of(leg.run, self.model_cfg, self.mesh)
        labels = None
        if self.model_cfg.heads:
            labels = Labels(self.model_cfg.heads, self.manifest, self.vocabulary)
        judges = Judges(
            _validation(leg.run, table, labels, meshes.share(self.mesh)),
            leg.run.train.validate_every,
            exams.when_due,
            math.gcd(*(plan.every for plan in self.run.exams.values())),
            partial(_routed, self.workdir, self.model_cfg, self.manifest),
        )
        trainer = Trainer(
            leg.run.train,
            self.model_cfg,
            tx,
            self.mesh,
            self.manifest.names[1:],
            writer,
            self.checkpoints,
            provenance=lambda: record.provenance(self.run, self.manifest, self.model_cfg, loader),
            judges=judges,
            steered=steered,
            task_scale=scale,
            more=leg.last < self.run.train.steps,
            diagnose=self._diagnosis(leg, recent, scale),
            beside=self.beside,
        )
        batches = recent.watched(_labelled(labels, _watched(steered, loader, writer.say)))
        fitted = trainer.fit(state, batches)
        return fitted.state, fitted.position

    def _recent(self, leg: Leg, loader: Loader, state: TrainState) -> Recent:
        """Keeps the last batches of a leg, for whoever asks what was in them."""
        recent = Recent(leg.run.train.prefetch + 4, loader, int(state.step))
        self.beside.watchdog.reading = lambda: loader.reading
        self.beside.watchdog.tasks = recent.tasks
        return recent

    def _diagnosis(self, leg: Leg, recent: Recent, scale: tuple[float, ...] | None) -> Diagnosis:
        cfg, M = leg.run.train, len(self.manifest.names) - 1
        replay = Replay(self.model_cfg, M, self.mesh, task_scale=scale, **loss_settings(cfg))
        return Diagnosis(cfg, replay, recent, self.vocabulary, self.workdir, self.debug)

    def _enter(
        self, leg: Leg, state: TrainState, position: Any
    ) -> tuple[Optimizer, TrainState, Any]:
        """What the leg before left, as this one takes it up: rates begin anew, counters do not."""
        tx = _optimizer(self.run, leg, self.model_cfg)
        state = with_optimizer(state, tx, self.mesh, leg.fresh_optimizer)
        state = with_spikes(state, leg.run.train.spikes, self.mesh)
        position = {k: v for k, v in position.items() if not k.startswith('learnt')}
        return tx, state, position | dict(rates=np.zeros_like(np.asarray(position['rates'])))

    def _loader(self, leg: Leg, position: Any) -> Loader:
        table, seed = _table(self.manifest, leg), self.run.train.seed
        share = meshes.share(self.mesh)
        place = dict(host=share.index, hosts=share.number, position=position)
        if leg.run.data.mode == 'stream':
            open_task = opener(table, self.vocabulary, leg.run.data, seed)
            return stream(table, leg.run.data, open_task, seed, **place)
        return Loader(table, leg.run.data, seed, **place)

    def _steered(self, leg, table, loader, step, position) -> Steered:
        data = leg.run.data
        changes = changed_rates(data.rates, table)
        changes = {at: rates for at, rates in changes.items() if leg.first <= at < leg.last}
        reference = _reference(data.learn.reference) if data.learn.reference else None
        return Steered(loader, table, data.learn, changes, step, position, reference)

    def _exams(self, leg: Leg) -> Exams:
        run = dataclasses.replace(leg.run, train=self.run.train)
        exams = Exams(
            run,
            self.manifest,
            self.vocabulary,
            self.model_cfg,
            self.mesh,
            self.workdir,
            whole=False,
        )
        exams.alive = self.beside.watchdog.beat
        return exams


def _table(manifest: Manifest, leg: Leg) -> Manifest:
    """The run's table with the rates that a leg begins at."""
    return manifest.at(leg.run.data.mixture, stages.mixtures(leg))


def _optimizer(run: Run, leg: Leg, model_cfg: ModelConfig) -> Optimizer:
    """The optimizer of a leg, whose schedule counts from its first step."""
    offset = 0 if leg.first else run.init_from.step_offset
    steps, dims = leg.last - leg.first, functional.dims(model_cfg)
    return make_optimizer(leg.run.optimizer, dims, steps, offset, begin=leg.first)


def _scale(run: Run, manifest: Manifest) -> tuple[float, ...] | None:
    """What the loss of each task id is multiplied by (see `train.loss_scaling`), None for 1."""
    if run.train.loss_scaling == 'none':
        return None
    scale = [1.0] * len(manifest.names)
    for task in manifest.tasks:
        number = task.labels if task.labels > 1 else manifest.vocabulary['size']
        scale[task.id] = 1 / math.log(number)
    return tuple(scale)


def _reference(workdir: str) -> dict[str, float]:
    """The last validation loss of each task of another run."""
    found = {}
    for line in read_metrics(pathlib.Path(workdir)):
        for key, value in line.items():
            if key.startswith('valid/task/') and key.endswith('/loss'):
                found[key.removeprefix('valid/task/').removesuffix('/loss')] = value
    if not found:
        raise UserError(
            f'data.learn.reference={workdir!r} is no run that was validated: it has no validation '
            'losses in metrics.jsonl'
        )
    return found


def _first_process_prepares(run: Run, folder: pathlib.Path) -> Manifest:
    parts = stages.parts(run)
    args = (run.data, run.tasks, run.held_out, run.exams, folder, list(parts))
    hosts.first('cache', lambda: prepare.prepare(*args))
    if isinstance(folder, pathlib.Path):
        hosts.check_shared(folder)
    if jax.process_index() and run.data.mode == 'stream':
        prepare.open_tasks(run.tasks)
    manifest = manifests.read(folder).of(parts)
    hosts.agree('mixture', dict(mixture=record.mixture_hash(manifest)))
    return manifest.streamed if run.data.mode == 'stream' else manifest


def _labelled(labels: Labels | None, batches: Iterable[Any]) -> Iterable[Any]:
    """(batch, position) pairs with what heads are taught."""
    return ((labels(batch), position) for batch, position in batches) if labels else batches


def _validation(run: Run, manifest: Manifest, labels: Labels | None, share: meshes.Share):
    if not any('validation' in t.splits for t in manifest.tasks if t.status == 'ok'):
        return None
    place = dict(host=share.index, hosts=share.number)
    made = partial(validation_batches, manifest, run.data, **place)
    return (lambda: map(labels, made())) if labels else made


def _notes(loader: Loader, first: int = 0) -> list[str]:
    left_out = loader.problems[first:]
    return [f'task {name!r} is left out: {reason}' for name, reason in left_out]


def _watched(batches: Iterable[Any], loader: Loader, say: Callable[[str], None]) -> Iterator[Any]:
    """The loader's batches; a task that breaks on the way is told of when it does."""
    known = len(loader.problems)
    for item in batches:
        for note in _notes(loader, known):
            say(note)
        known = len(loader.problems)
        yield item


@contextlib.contextmanager
def _told(workdir: pathlib.Path, manifest: Manifest, reached: list[Loader]) -> Iterator[None]:
    """Writes the shares and the report of a run, also of one that was stopped on its way."""
    try:
        yield
    finally:
        if jax.process_index() == 0 and read_metrics(workdir):
            _tell(workdir, manifest, reached[0])


def _tell(workdir: pathlib.Path, manifest: Manifest, loader: Loader) -> None:
    console = rich.console.Console(markup=False, highlight=False)
    try:
        shares.save(workdir, manifest, loader)
        console.print(f'report: {report.write(workdir)}', soft_wrap=True)
    except UserError as error:  # how the run ended is not for its report to say
        console.print(f'WARNING: no report: {error}', soft_wrap=True)


def _routed(
    workdir: pathlib.Path, model_cfg: ModelConfig, manifest: Manifest, step: int, counts: Any
) -> dict[str, float]:
    """Keeps which experts served which tasks of a validation; gives what it comes to."""
    told = specialisation.tables(model_cfg, manifest.tasks, counts)
    if jax.process_index() == 0:
        with contextlib.suppress(Unwritten):  # metrics.jsonl says that the disk is full
            specialisation.write(workdir, step, told)
    return specialisation.figures(told)
