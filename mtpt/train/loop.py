"""The training loop: no waiting for the device between steps; metrics are read one step late."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from mtpt.model import functional
from mtpt.statuses import INTERRUPTED, REQUEUE
from mtpt.train.host import CTRL_C, Prefetch, Signals, Straight
from mtpt.train.late import Late
from mtpt.train.optimizer import Optimizer
from mtpt.train.saving import Saving, let_finish
from mtpt.train.spikes import Rollbacks, SpikesConfig
from mtpt.train.state import (
    InitFromConfig,
    TrainState,
    abstract_state,
    init_from,
    new_state,
)
from mtpt.train.step import make_train_step
from mtpt.train.validation import judging
from mtpt.watch.goodput import Goodput
from mtpt.watch.profiling import Tracer
from mtpt.watch.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run's length and its loss.

    steps: 0 for as many as the stages make together, or 1,000 without any.
    loss_normalizing_factor: 'tokens', 'positions' or a number (see `train.loss.normalizer`);
    loss_scaling: 'none', or 'labels' to divide the loss of a task by the logarithm of the number of
    its answers, of the vocabulary where they are free (Muppet, 2101.11038, section 3.2);
    max_skipped: how many updates in a row may be left out for not being finite before the run
    stops; replays: how many of those steps are taken again to find what was behind them;
    spikes: what is done about losses that stand out;
    validate_every counts steps (0: at the end only); prefetch: batches made ahead, in a thread (0:
    each when it is asked for, and every step is waited for).
    """

    steps: int = 0
    seed: int = 0
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: str | float = 'tokens'
    loss_scaling: str = 'none'
    max_skipped: int = 10
    replays: int = 3
    spikes: SpikesConfig = dataclasses.field(default_factory=SpikesConfig)
    validate_every: int = 500
    prefetch: int = 2

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f'train.label_smoothing={self.label_smoothing} must be in [0, 1)')
        if self.loss_scaling not in ('none', 'labels'):
            raise UserError(f"train.loss_scaling={self.loss_scaling!r} must be 'none' or 'labels'")
        least_of = dict(steps=0, seed=0, max_skipped=1, replays=0, validate_every=0, prefetch=0)
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise UserError(f'train.{name}={getattr(self, name)} must be at least {least}')


class Interrupted(UserError):
    """The run was asked to stop, and has saved itself; the exit status says who asked."""

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
class Start:
    """Where a run begins; position and provenance are those of the run that is gone on with."""

    state: TrainState
    step: int = 0
    position: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def begin(
    cfg: TrainConfig,
    model_cfg: Any,
    tx: Optimizer,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    source: InitFromConfig | None = None,
    rows: Mapping[int, int] | None = None,
    tasks: Mapping[int, int] | None = None,
) -> Start:
    """Makes the state to train from; a checkpoint of the run itself goes before `source`.

    rows, tasks: where what `source` learnt of a token and of a task goes (see `init_from`).

    Raises:
      UserError: a checkpoint that is damaged or of another model.
    """
    step = checkpoints.latest()
    if step is not None:
        abstract = abstract_state(model_cfg, tx, mesh, spikes=cfg.spikes)
        state, position, provenance = checkpoints.load(step, abstract)
        notes = (*checkpoints.notes, f'going on from step {step}')
        return Start(state, step, position, provenance, notes)
    with jax.set_mesh(mesh):
        state, notes = new_state(model_cfg, tx, cfg.seed, spikes=cfg.spikes), []
        if source is not None and source.path:
            dims = functional.dims(model_cfg)
            params, notes = init_from(source, state.params, dims, rows, tasks, model_cfg)
            state = state._replace(params=params)
    return Start(state, notes=tuple(notes))


def fit(
    cfg: TrainConfig,
    model_cfg: Any,
    tx: Optimizer,
    state: TrainState,
    loader: Iterator[tuple[dict[str, np.ndarray], Mapping[str, Any]]],
    *,
    mesh: jax.sharding.Mesh,
    tasks: Sequence[str],
    writer: Writer,
    checkpoints: Checkpoints,
    provenance: Callable[[], Mapping[str, Any]] = dict,
    validation: Callable[[], Iterable[dict[str, np.ndarray]]] | None = None,
    evaluate: Callable[[int, Any], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    routed: Callable[[int, Mapping[str, np.ndarray]], Mapping[str, float]] | None = None,
    steered: Any = None,
    task_scale: tuple[float, ...] | None = None,
    more: bool = False,
    diagnose: Callable[[int, TrainState], str | None] | None = None,
    beside: Beside | None = None,
) -> Fitted:
    """Trains from `state` (which is used up) to `cfg.steps`, and saves at the end.

    Args:
      loader: gives (batch, position); a batch is [B, ...] or, accumulated, [A, B / A, ...]; the
        position is what a loader needs to go on after that batch.
      tasks: the names of the tasks with ids 1, 2, ...
      provenance: gives what is saved with every checkpoint, as it is at that time.
      validation: makes the validation batches anew each time.
      evaluate: gives flat metrics for (step, params), every `evaluate_every` steps (0: never).
      routed: gives flat metrics for (step, counts) after a validation of a model with experts; the
        counts are those of `make_validation_step`, 'routing/*'.
      steered: the `data.steering.Steered` that the loader draws from, told of every step's losses.
      task_scale: what the loss of each task id is multiplied by.
      more: whether the run goes on after `cfg.steps`, so that a wish to stop counts to the last.
      diagnose: tells, from (step, the state of now), what was behind an update that was left out.
      beside: what counts its time, watches and traces it.

    Raises:
      UserError: the data ended or failed, or too many updates in a row were not finite.
      SaveFailed: the last save failed; one that fails on the way is said and tried again.
      Interrupted: Ctrl-C, SIGTERM or a notice; the step was finished and saved.
    """
    step, position, figures = int(state.step), None, {}
    if step >= cfg.steps:
        writer.say(
            f'nothing to do: {step} of {cfg.steps} steps are done; raise train.steps to go on'
        )
        return Fitted(state, figures, position)
    clock, watchdog, tracer = beside or alone()
    watchdog.anew()
    late = Late(cfg.max_skipped, tasks, writer, checkpoints, steered, watchdog)
    judged: dict[str, float] = {}
    saving = Saving(checkpoints, writer.say)
    said = writer.say, writer.write
    late.rollbacks = Rollbacks(cfg.spikes, checkpoints, *said, saving.wait)

    def save():
        with clock.spent('steps'):
            late.settle()
        writer.flush()
        with clock.spent('saving'):
            watchdog.beat(f'saving step {step}')
            saving.save(step, state, whole(position), provenance(), judged)
        writer.pause()

    def diagnosed(step):
        with clock.spent('other'):  # it trains nothing
            return diagnose(step, state)

    def whole(position):
        known = position | steered.state() if steered else position
        return _of_all_hosts(known, state, share(mesh).holders)

    late.diagnose = diagnose and diagnosed
    with jax.set_mesh(mesh), Signals(writer.say, checkpoints.cfg.notices) as signals:
        settings = loss_settings(cfg) | dict(spikes=cfg.spikes)
        train_step = make_train_step(model_cfg, tx, len(tasks), task_scale=task_scale, **settings)
        judge = judging(
            (cfg.validate_every, evaluate_every), cfg.steps, model_cfg, tasks, mesh, validation,
            evaluate, checkpoints.judged, routed, watchdog.beat,
        )  # fmt: skip
        batches, first = _batches(loader, mesh, cfg.prefetch), True
        try:
            state = late.rollbacks.resumed(state)
            while step < cfg.steps and not signals.agreed(step):
                watchdog.beat(f'batch of step {step + 1}', step + 1)
                with clock.spent('data'):
                    item = batches.take(signals.alone)
                if item is None:
                    continue
                batch, position = item
                watchdog.beat(f'step {step + 1}')
                with clock.spent('profiling'):
                    if tracer.step(step, state):
                        writer.pause()
                if not first:
                    writer.resume(step)
                with clock.spent('compiling' if first else 'steps'):
                    state, metrics = train_step(state, batch)
                step += 1
                with clock.spent('steps'):
                    late.push(step, metrics)
                    if first or not cfg.prefetch or (steered and steered.due(step)):
                        late.settle()
                first, before = False, state
                state = late.rollbacks.applied(state)
                if state is not before:
                    writer.pause()
                judged = {}
                with clock.spent('evaluating'), signals.breakable():
                    judged = {} if signals.alone() else judge(step, state.params, late.settle)
                if judged:
                    writer.write(step, judged)
                    figures |= judged
                    writer.pause()
                saving.look()
                if checkpoints.due(step):
                    save()
            signals.saving = True
            if position is not None:
                save()
            with clock.spent('saving'):
                watchdog.beat('saving the last checkpoint')
                saving.wait()
        finally:
            tracer.close()
            if steered:
                steered.close()
            batches.close()
            let_finish(checkpoints)
    stopped = step < cfg.steps or (more and signals.agreed(step))
    if saving.failed and (stopped or not more):
        raise saving.failed
    if stopped:
        status = INTERRUPTED if signals.asked == CTRL_C else REQUEUE
        raise Interrupted(_farewell(signals.asked, step, checkpoints), status)
    return Fitted(state, figures, position and whole(position))


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


def loss_settings(cfg: TrainConfig) -> dict[str, Any]:
    """Those settings of a run that its loss depends on."""
    names = ('z_loss', 'label_smoothing', 'loss_normalizing_factor')
    return {name: getattr(cfg, name) for name in names}


def _farewell(why: str, step: int, checkpoints: Checkpoints) -> str:
    saved = checkpoints.latest()
    if saved is None:
        return f'stopped by {why} before the first step; there was nothing to save'
    return (
        f'stopped by {why} after step {step}; checkpoint {saved} is in {checkpoints.folder}, and '
        'the same command goes on from there'
    )
