"""The training loop: no waiting for the device between steps; metrics are read one step late."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError
from mtpt.data.loader import merge_positions
from mtpt.log import Writer
from mtpt.mesh import place, share
from mtpt.model.config import ModelConfig
from mtpt.statuses import INTERRUPTED, REQUEUE, Ended
from mtpt.train.config import TrainConfig, loss_settings
from mtpt.train.host import CTRL_C, Prefetch, Signals, Straight
from mtpt.train.late import Late
from mtpt.train.optimizer import Optimizer
from mtpt.train.saving import Saving, let_finish
from mtpt.train.spikes import Rollbacks
from mtpt.train.state import TrainState
from mtpt.train.step import make_train_step
from mtpt.train.validation import Judges
from mtpt.watch.goodput import Goodput
from mtpt.watch.profiling import Tracer
from mtpt.watch.watchdog import Watchdog

Loader = Iterator[tuple[dict[str, np.ndarray], Mapping[str, Any]]]


class Interrupted(UserError):
    """The run was asked to stop, and has saved itself; the exit status says who asked."""

    agreed = True  # by all processes

    def __init__(self, text: str, status: int = REQUEUE):
        super().__init__(text)
        self.status = status


class Fitted(NamedTuple):
    """What training leaves: the state, the last figures of validation and evaluation, and the
    position after the last batch that was trained on."""

    state: TrainState
    figures: dict[str, float]
    position: Mapping[str, Any] | None


class Beside(NamedTuple):
    """What goes on beside training: where the time goes, whether steps still come, traces."""

    clock: Goodput
    watchdog: Watchdog
    tracer: Tracer


def alone() -> Beside:
    """Nothing is watched or traced; time is counted."""
    return Beside(Goodput(), Watchdog(), Tracer())


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains a model, saves it, has it judged, and stops when it is asked to.

    Attributes:
      tasks: the names of the tasks with ids 1, 2, ...
      provenance: gives what is saved with every checkpoint, as it is at that time.
      judges: what the model is judged by on the way.
      steered: the `data.steering.Steered` that the loader draws from, told of every step's losses.
      task_scale: what the loss of each task id is multiplied by.
      more: whether the run goes on after `cfg.steps`, so that a wish to stop counts to the last.
      diagnose: tells, from (step, the state of now), what was behind an update that was left out.
      beside: what counts its time, watches and traces it.
    """

    cfg: TrainConfig
    model_cfg: ModelConfig
    tx: Optimizer
    mesh: jax.sharding.Mesh
    tasks: Sequence[str]
    writer: Writer
    checkpoints: Checkpoints
    _: dataclasses.KW_ONLY
    provenance: Callable[[], Mapping[str, Any]] = dict
    judges: Judges = dataclasses.field(default_factory=Judges)
    steered: Any = None
    task_scale: tuple[float, ...] | None = None
    more: bool = False
    diagnose: Callable[[int, TrainState], str | None] | None = None
    beside: Beside = dataclasses.field(default_factory=alone)

    def fit(self, state: TrainState, loader: Loader) -> Fitted:
        """Trains from `state` (which is used up) to `cfg.steps`, and saves at the end.

        loader: gives (batch, position); a batch is [B, ...] or, accumulated, [A, B / A, ...]; the
        position is what a loader needs to go on after that batch.

        Raises:
          UserError: the data ended or failed, or too many updates in a row were not finite.
          SaveFailed: the last save failed; one that fails on the way is said and tried again.
          Interrupted: Ctrl-C, SIGTERM or a notice; the step was finished and saved.
        """
        step, last = int(state.step), self.cfg.steps
        if step >= last:
            self.writer.say(
                f'nothing to do: {step} of {last} steps are done; raise train.steps to go on'
            )
            return Fitted(state, {}, None)
        self.beside.watchdog.anew()
        notices = self.checkpoints.cfg.notices
        with jax.set_mesh(self.mesh), Signals(self.writer.say, notices) as signals:
            fit = _Fit(self, state, signals)
            fit.run(loader)
            stopped = fit.step < last or signals.agreed(fit.step)
        failed = fit.saving.failed
        if failed and (stopped or not self.more):
            raise failed
        if stopped:
            status = INTERRUPTED if signals.asked == CTRL_C else REQUEUE
            raise Interrupted(_farewell(signals.asked, fit.step, self.checkpoints), status)
        if signals.asked:  # of this process alone, and after the last step
            raise Ended(_farewell(signals.asked, fit.step, self.checkpoints))
        return Fitted(fit.state, fit.figures, fit.whole_position())


class _Fit:
    """A fit under way: where it is by now, and what is still to be read and saved of it."""

    def __init__(self, by: Trainer, state: TrainState, signals: Signals):
        self.state, self.step, self.figures = state, int(state.step), dict[str, float]()
        self.saving = Saving(by.checkpoints, by.writer.say)
        self._by, self._signals, self._clock = by, signals, by.beside.clock
        self._beat = by.beside.watchdog.beat
        self._position: Mapping[str, Any] | None = None
        self._judged, self._first = dict[str, float](), True
        cfg, writer, checkpoints = by.cfg, by.writer, by.checkpoints
        self._late = Late(
            cfg.max_skipped, by.tasks, writer, checkpoints, by.steered, by.beside.watchdog
        )
        self._late.rollbacks = self._rollbacks = Rollbacks(
            cfg.spikes, checkpoints, writer.say, writer.write, self.saving.wait
        )
        self._late.diagnose = by.diagnose and self._diagnosed
        settings = loss_settings(cfg) | dict(spikes=cfg.spikes, task_scale=by.task_scale)
        self._train_step = make_train_step(by.model_cfg, by.tx, len(by.tasks), **settings)
        self._judge = by.judges.judging(by.model_cfg, by.tasks, by.mesh, self._beat)

    def run(self, loader: Loader) -> None:
        """Goes to the last step, or to where it is asked to stop, and saves there."""
        batches = _batches(loader, self._by.mesh, self._by.cfg.prefetch)
        try:
            self.state = self._rollbacks.resumed(self.state)
            while self.step < self._by.cfg.steps and not self._signals.agreed(self.step):
                self._beat(f'batch of step {self.step + 1}', self.step + 1)
                with self._clock.spent('data'):
                    item = batches.take(self._signals.alone)
                if item is None:
                    continue
                batch, self._position = item
                self._take(batch)
                self._have_judged()
                self.saving.look()
                if self._by.checkpoints.due(self.step):
                    self._save()
            self._signals.saving = True
            if self._position is not None:
                self._save()
            with self._clock.spent('saving'):
                self._beat('saving the last checkpoint')
                self.saving.wait()
        except KeyboardInterrupt:  # the save under way is left, too
            raise
        except BaseException:
            let_finish(self._by.checkpoints)
            raise
        finally:
            self._by.beside.tracer.close()
            if self._by.steered:
                self._by.steered.close()
            batches.close()

    def whole_position(self) -> Mapping[str, Any] | None:
        """Where the data of all hosts has come to; None where nothing was trained on."""
        if self._position is None:
            return None
        steered = self._by.steered
        known = self._position | steered.state() if steered else self._position
        return _of_all_hosts(known, self.state, share(self._by.mesh).holders)

    def _take(self, batch: Any) -> None:
        """One step: dispatched, and the figures of the step before read."""
        by, clock, first = self._by, self._clock, self._first
        self._beat(f'step {self.step + 1}')
        with clock.spent('profiling'):
            if by.beside.tracer.step(self.step, self.state):
                by.writer.pause()
        if not first:
            by.writer.resume(self.step)
        with clock.spent('compiling' if first else 'steps'):
            self.state, metrics = self._train_step(self.state, batch)
        self.step += 1
        with clock.spent('steps'):
            self._late.push(self.step, metrics)
            if first or not by.cfg.prefetch or (by.steered and by.steered.due(self.step)):
                self._late.settle()
        self._first, before = False, self.state
        self.state = self._rollbacks.applied(self.state)
        if self.state is not before:
            by.writer.pause()

    def _have_judged(self) -> None:
        self._judged, last = {}, self.step == self._by.cfg.steps
        due = self._by.judges.due(self.step, last, self._by.checkpoints.judged(self.step))
        if not due:
            return
        with self._clock.spent('steps'):
            self._late.settle()
        with self._clock.spent('evaluating'), self._signals.breakable():
            if not self._signals.alone():
                self._judged = self._judge(self.step, self.state.params, due)
        if self._judged:
            self._by.writer.write(self.step, self._judged)
            self.figures |= self._judged
            self._by.writer.pause()

    def _save(self) -> None:
        with self._clock.spent('steps'):
            self._late.settle()
        self._by.writer.flush()
        with self._clock.spent('saving'):
            self._beat(f'saving step {self.step}')
            told = self.whole_position(), self._by.provenance(), self._judged
            self.saving.save(self.step, self.state, *told)
        self._by.writer.pause()

    def _diagnosed(self, step: int) -> str | None:
        with self._clock.spent('other'):  # it trains nothing
            return self._by.diagnose(step, self.state)


def _batches(loader: Iterator[Any], mesh: jax.sharding.Mesh, ahead: int) -> Prefetch | Straight:
    placed = partial(place, mesh=mesh)
    return Prefetch(loader, placed, ahead) if ahead else Straight(loader, placed)


def _of_all_hosts(
    position: Mapping[str, Any], state: TrainState, holders: Sequence[int]
) -> Mapping[str, Any]:
    """The position of the global batch; each host knows of its own row groups only."""
    if jax.process_count() == 1:
        return position
    jax.block_until_ready(state)  # or the gathering could overtake the step that makes it
    mine = {name: np.asarray(x) for name, x in position.items()}
    octets = {name: np.atleast_1d(x).view(np.uint8) for name, x in mine.items()}
    gathered = multihost_utils.process_allgather(octets)
    return merge_positions(
        [
            {n: gathered[n][host].view(x.dtype).reshape(x.shape) for n, x in mine.items()}
            for host in holders
        ]
    )


def _farewell(why: str, step: int, checkpoints: Checkpoints) -> str:
    saved = checkpoints.latest()
    if saved is None:
        return f'stopped by {why} before the first step; there was nothing to save'
    return (
        f'stopped by {why} after step {step}; checkpoint {saved} is in {checkpoints.folder}, and '
        'the same command goes on from there'
    )
