"""What a run says: metrics to JSONL and boards, a progress bar or plain lines.

The writer is handed numbers that are on the host already. It sums those of single steps over an
interval and writes one object an interval; whoever reads the file merges objects of the same step.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtpt.config import UserError
from mtpt.watch import boards, memory
from mtpt.watch.speed import Cost, Speed

SUMS = ('train/skipped', 'train/tokens', 'train/encoder_tokens')
SUMS += ('train/spikes', 'train/passed_over')
MEANS = ('train/loss', 'train/accuracy', 'train/z_loss')  # over tokens; others over steps
FILE, FOLLOWED = 'metrics.jsonl', 'eval_metrics.jsonl'
OF_TASKS = ('task/', 'valid/task/')
WAITING = 10_000  # lines at most that wait for a disk to have space again
LAST = ('train/learning_rate', 'train/skipped_in_a_row')


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is logged, how often and where.

    every: steps of an interval. tasks: of how many tasks the figures are written an interval; of
    more they are summed over as many intervals as keep to that on average, and no board (see
    below) is given figures of single tasks. profile: steps that are traced, as the log numbers
    them. tensorboard, wandb: boards that the figures go to beside metrics.jsonl; wandb_mode is
    'online' or 'offline'.
    """

    every: int = 50
    tasks: int = 100
    profile: tuple[int, ...] = ()
    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = 'mtpt'
    wandb_mode: str = 'online'

    def __post_init__(self):
        for name in ('every', 'tasks'):
            if getattr(self, name) < 1:
                raise UserError(f'log.{name}={getattr(self, name)} must be at least 1')
        if any(step < 1 for step in self.profile):
            raise UserError(f'log.profile={self.profile} names steps, which count from 1')
        if self.wandb_mode not in boards.MODES:
            raise UserError(f"log.wandb_mode={self.wandb_mode!r} must be 'online' or 'offline'")


class Writer:
    """Writes the figures of one run into its folder.

    Args:
      workdir: the run's folder.
      tasks: the names of the tasks with ids 1, 2, ...
      total_steps: where the progress bar ends.
      step: the step that the run goes on from; what the file says about later ones is dropped.
      primary: whether this process is the one that writes.
      figures: gives more figures of an interval from those of its steps.
      clock: the `goodput.Goodput` that is told of each interval, and gives more figures of it.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        tasks: Sequence[str],
        total_steps: int,
        cfg: LogConfig = LogConfig(),
        *,
        step: int = 0,
        primary: bool = True,
        figures: Callable[[Sequence[Mapping[str, np.ndarray]]], Mapping[str, float]] | None = None,
        clock: Any = None,
        console: Console | None = None,
    ):
        self.cfg, self.tasks, self.total, self.primary = cfg, list(tasks), total_steps, primary
        self._figures, self._goodput, self.cost = figures, clock, Cost(0.0)
        self._sums, self._intervals = TaskSums(), 0
        self._stride = max(1, math.ceil(len(self.tasks) / cfg.tasks))  # intervals between tasks
        self.path = pathlib.Path(workdir) / FILE
        self._console = console or Console(stderr=True)
        self._last, self._steps, self._speed = step, [], Speed()
        self._bar = self._boards = None
        self._unwritten, self._torn = list[str](), False
        if primary:
            with _explained(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                trim(self.path, step)
            self._boards = boards.Boards(_boards(self.path.parent, step, cfg), self.say)
            self._bar = self._start_bar(step)

    def add(self, step: int, metrics: Mapping[str, Any], seen: bool = True) -> None:
        """Takes the figures of a step, [M + 1] of each 'task/*'; writes when an interval ends.

        seen: whether they were read when the step ended, and not later (see `Speed.read`).
        """
        sides = (metrics.get(f'train/{name}', 0) for name in ('tokens', 'encoder_tokens'))
        self._speed.read(step, sum(map(float, sides)), seen)
        self._steps.append({k: np.asarray(v) for k, v in metrics.items()})
        self._sums.add(self._steps[-1])
        self._last = step
        self._show(step)
        if step % self.cfg.every == 0:
            self._intervals += 1
            self._write_interval(tasks=self._intervals % self._stride == 0)

    def flush(self) -> None:
        """Writes the figures of the interval so far and those of its tasks, if there are any."""
        self._write_interval(tasks=True)

    def _write_interval(self, tasks: bool) -> None:
        timed = bool(self._steps)
        if timed or (tasks and self._sums):
            values = interval(self._steps) | self._speed.figures(self.cost)
            values |= memory.figures()
            if tasks:
                values |= self._sums.figures(self.tasks)
                self._sums = TaskSums()
            if self.primary and self._figures and timed:
                values |= self._figures(self._steps)
            if self._goodput:
                values |= self._goodput.log(self._last)
            self._steps = []
            self._speed.clear()
            self.write(self._last, values)
            if timed:
                self._plain_line(values)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one object at once: figures of validation or evaluation."""
        if not self.primary:
            return
        line = {'step': int(step)} | {name: finite(value) for name, value in values.items()}
        self._unwritten.append(json.dumps(line, allow_nan=False) + '\n')
        self._append()
        if self._boards is not None:
            told = {k: v for k, v in line.items() if k != 'step' and v is not None}
            if len(self.tasks) > self.cfg.tasks:
                told = {k: v for k, v in told.items() if not k.startswith(OF_TASKS)}
            if told:
                self._boards.write(int(step), told)

    def _append(self) -> None:
        """Writes the lines that wait; a disk that is full stops no run, and is tried again."""
        try:
            with open(self.path, 'a', encoding='utf-8') as file:
                file.write('\n' * self._torn + ''.join(self._unwritten))
        except OSError as error:
            if not self._torn:
                self.say(
                    f'WARNING: {self.path} cannot be written ({error.strerror or error}); training '
                    'goes on, and its lines wait until there is space again'
                )
            self._torn = True
            del self._unwritten[:-WAITING]
        else:
            if self._torn:
                self.say(f'{self.path} is written again')
            self._torn = False
            self._unwritten.clear()

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self.primary:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def pause(self) -> None:
        """Keeps what happens until `resume` (validation, a save) out of the time of a step."""
        self._speed.pause()

    def resume(self, step: int) -> None:
        """Says that the step after `step` is dispatched now; steps without a pause go on."""
        self._speed.resume(step)

    def close(self) -> None:
        """Writes what is left and takes the bar down."""
        self.flush()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._goodput:
            self._goodput.log(self._last)
        if self._boards is not None:
            self._boards.close()
            self._boards = None

    def __enter__(self) -> 'Writer':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start_bar(self, step: int) -> Progress | None:
        if not (self._console.is_terminal or self._console.is_jupyter):
            return None
        bar = Progress(
            TextColumn('step'),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn('loss {task.fields[loss]}  {task.fields[speed]}  left'),
            TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=2,
        )
        self._task = bar.add_task('train', total=self.total, completed=step, loss='-', speed='-')
        bar.start()
        return bar

    def _show(self, step: int) -> None:
        if self._bar is None:
            return
        losses = [float(s['train/loss']) for s in self._steps[-10:] if 'train/loss' in s]
        speed = self._speed.figures(self.cost)
        shown = {'speed': _speed_text(speed)} if speed else {}
        self._bar.update(
            self._task, completed=step, loss=f'{np.mean(losses or [math.nan]):.3f}', **shown
        )

    def _plain_line(self, values: Mapping[str, float]) -> None:
        if self._bar is not None:
            return
        line = f'step {self._last}/{self.total}  loss {values.get("train/loss", math.nan):.3f}'
        if 'time/step' in values:
            left = round(values['time/step'] * (self.total - self._last))
            line += f'  {_speed_text(values)}  {left // 60}:{left % 60:02d} left'
        self.say(line)


def table_console() -> Console:
    """A console for tables: a pipe has no width of its own, and a table needs about this much."""
    return Console(width=None if sys.stdout.isatty() else 150)


def _speed_text(values: Mapping[str, float]) -> str:
    """Tokens a second, and what share of the devices' FLOP/s that is, or how many FLOP/s."""
    text = f'{values["time/tokens_per_s"]:,.0f} tokens/s'
    if 'time/mfu' in values:
        return f'{text}  MFU {values["time/mfu"]:.1%}'
    if 'time/flops_per_s' in values:
        return f'{text}  {values["time/flops_per_s"] / 1e9:,.1f} GFLOP/s'
    return text


def interval(steps: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The figures of an interval from those of its steps, without those of single tasks.

    Losses and accuracies are means over the tokens of finite steps; counts are sums over all of
    them.
    """
    values = {}
    tokens = np.array([float(s.get('train/tokens', 1)) for s in steps])
    for name in [n for n in steps[-1] if not n.startswith('task/')] if steps else ():
        column = np.array([float(s[name]) for s in steps])
        if name in SUMS:
            values[name] = int(np.nansum(column))
        elif name in LAST:
            values[name] = float(column[-1])
        else:
            values[name] = _mean(column, tokens if name in MEANS else np.ones(len(steps)))
    return values


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    good = np.isfinite(values) & (weights > 0)
    return float(np.average(values[good], weights=weights[good])) if good.any() else math.nan


class TaskSums:
    """Sums over steps of the figures [M + 1] of each task; a loss counts where it is finite."""

    def __init__(self):
        self._sums: dict[str, np.ndarray] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Adds those of a step."""
        if 'task/loss_sum' not in metrics:
            return
        losses, correct, tokens, segments = (
            np.asarray(metrics[f'task/{name}'], np.float64)
            for name in ('loss_sum', 'correct', 'tokens', 'segments')
        )
        good = np.isfinite(losses)
        told = dict(counted=tokens, losses=losses, correct=correct)
        told = {name: np.where(good, x, 0) for name, x in told.items()}
        for name, x in (told | dict(tokens=np.nan_to_num(tokens), segments=segments)).items():
            self._sums[name] = self._sums[name] + x if name in self._sums else x

    def figures(self, tasks: Sequence[str]) -> dict[str, float]:
        """Those of the tasks that were seen, to six digits."""
        if not self._sums:
            return {}
        values = {}
        counted = self._sums['counted']
        for i in np.flatnonzero(self._sums['segments'][1:]) + 1:
            name = f'task/{tasks[i - 1]}'
            for what, sums in (('loss', 'losses'), ('accuracy', 'correct')):
                mean = self._sums[sums][i] / counted[i] if counted[i] else math.nan
                values[f'{name}/{what}'] = float(f'{mean:.6g}')
            values[f'{name}/tokens'] = int(self._sums['tokens'][i])
            values[f'{name}/examples'] = int(self._sums['segments'][i])
        return values


def finite(value: Any) -> int | float | None:
    """A number as JSON has it: NaN and infinities become null."""
    if isinstance(value, (int, np.integer)):
        return int(value)
    return float(value) if math.isfinite(value) else None


def trim(path: str | os.PathLike, step: int) -> None:
    """Drops the lines of a metrics file that are past `step` or were cut off in writing."""
    path = pathlib.Path(path)
    if not path.exists():
        return
    kept = [line for line in _lines(path) if line['step'] <= step] if step else []
    beside = path.with_suffix('.tmp')
    beside.write_text(''.join(json.dumps(line) + '\n' for line in kept), encoding='utf-8')
    os.replace(beside, path)


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a run's metrics, those of the same step merged, ascending by step.

    What a follower measured (`mtpt evaluate --follow`) stands in a file of its own.
    """
    merged: dict[int, dict[str, Any]] = {}
    for name in (FILE, FOLLOWED):
        path = pathlib.Path(workdir) / name
        for line in _lines(path) if path.exists() else ():
            merged.setdefault(line['step'], {}).update(line)
    return [merged[step] for step in sorted(merged)]


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get('step'), int):
            lines.append(line)
    return lines


def _boards(folder: pathlib.Path, step: int, cfg: LogConfig) -> dict[str, Any]:
    found = {}
    if cfg.tensorboard:
        found['TensorBoard'] = boards.TensorBoard(folder, step)
    if cfg.wandb:
        found['Weights & Biases'] = boards.WandB(folder, cfg.wandb_project, cfg.wandb_mode)
    return found


@contextlib.contextmanager
def _explained(path: pathlib.Path):
    """Says of a failed write which file it was and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'{path} cannot be written ({error.strerror or error}); free some space or take '
            'another folder, and run again: what is saved already is whole'
        ) from error
