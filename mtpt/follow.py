"""A second process that examines a run's checkpoints while it trains, on devices of its own.

It waits for whole checkpoints and takes the exams of each that it finds, oldest first. What it
measures goes to `eval/` as the trainer's own does, and as metrics to `eval_metrics.jsonl`, since
`metrics.jsonl` is the trainer's. A step is judged once: the file of its scores names the very
checkpoint that they are of, so that a follower may be ended and started at any time.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import rich.console

from mtpt import files, opened, record, stages
from mtpt import run as runs
from mtpt.checkpoint import Checkpoints
from mtpt.checkpoint.damaged import steps_in
from mtpt.config import UserError
from mtpt.exams import Exams, averages_of, place_of
from mtpt.log import FOLLOWED, finite
from mtpt.settings import Run

TRIES = 3  # to read a checkpoint that is still there, before it is left out


@dataclasses.dataclass(frozen=True)
class FollowConfig:
    """poll: seconds between looks into the folder; patience: seconds without a new checkpoint after
    which the follower ends (0: it ends with the run only)."""

    poll: float = 10.0
    patience: float = 0.0

    def __post_init__(self):
        if not self.poll > 0 or self.patience < 0:
            raise UserError(
                f'--poll={self.poll} must be above 0, and --patience={self.patience} at least 0'
            )


class Follower:
    """Follows one run.

    Args:
      workdir: the run's folder, which may not be there yet.
      mixture: what to examine on; by default the exams that the run leaves to a follower
        (`exams.NAME.elsewhere`), or all that it plans where it leaves none.
      split, overrides: as `run.evaluate` has them.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        mixture: str | None = None,
        cfg: FollowConfig = FollowConfig(),
        *,
        split: str | None = None,
        overrides: Iterable[str] = (),
        say: Callable[[str], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.workdir, self.mixture, self.cfg = pathlib.Path(workdir), mixture, cfg
        self._split, self._overrides = split, list(overrides)
        self._say, self._sleep = say or _printed, sleep
        self._failed: dict[int, int] = {}
        self._judged: dict[pathlib.Path, str] = {}
        self._past = -1

    def follow(self) -> int:
        """Examines checkpoint after checkpoint to the end of the run; gives how many it judged.

        Raises:
          UserError: no exam to take, or one that cannot be taken; the patience is at an end.
        """
        count, waited = 0, 0.0
        while True:
            run = self._run()
            step = self._next(run) if run else None
            if run and step is not None:
                count += self._judge(run, step)
                self._past, waited = max(step, self._past), 0.0
            elif run and self._past >= run.train.steps:
                return count
            else:
                if self.cfg.patience and waited >= self.cfg.patience:
                    raise UserError(
                        f'no new checkpoint in {self.workdir} for {waited:.0f} s, and the run is '
                        'not over; see whether it still trains, and follow again: what is judged '
                        'stays so'
                    )
                self._sleep(self.cfg.poll)
                waited += self.cfg.poll

    def _run(self) -> Run | None:
        """The run as its folder has it by now: it may have been made longer."""
        if not (self.workdir / 'config.json').exists():
            return None
        return stages.ended(record.run_of(self.workdir))

    def _plans(self, run: Run) -> list[str]:
        if self.mixture:
            return [self.mixture]
        left = [name for name, plan in run.exams.items() if plan.elsewhere]
        if not run.exams:
            raise UserError(f'the run in {self.workdir} plans no exams; name one by --mixture=NAME')
        return left or list(run.exams)

    def _next(self, run: Run) -> int | None:
        """The oldest checkpoint that is whole and not judged."""
        try:
            steps = Checkpoints(self.workdir, run.checkpoint, read_only=True).steps()
        except UserError:
            return None  # none was saved yet
        for step in steps:
            if self._failed.get(step, 0) < TRIES and self._due(run, step):
                return step
            self._past = max(step, self._past)
        return None

    def _due(self, run: Run, step: int) -> list[str]:
        return [name for name in self._plans(run) if not self._is_judged(run, step, name)]

    def _is_judged(self, run: Run, step: int, name: str) -> bool:
        """Whether scores of this very checkpoint are there; the trainer's own are."""
        place = self._place(run, step, name)
        if place not in self._judged:
            found = _scores(place)
            if not found:
                return False
            self._judged[place] = found.get('checkpoint') or ''
        return self._judged[place] in ('', mark(self.workdir, step))

    def _place(self, run: Run, step: int, name: str) -> pathlib.Path:
        _, tag = runs.plan_of(run, name, self._split, self._overrides)
        return place_of(self.workdir, step, name, tag)

    def _judge(self, run: Run, step: int) -> bool:
        """Takes what is due of a checkpoint; whether it could be read."""
        due, known = self._due(run, step), mark(self.workdir, step)
        for name in due:
            asked = runs.asked(self.workdir, name, self._split, self._overrides)
            try:
                model = opened.restored(asked.run, self.workdir, step, asked.manifest)
            except UserError as error:
                self._leave(step, error)
                return False
            vocabulary, model_cfg, mesh, params, _ = model
            told = (asked.manifest, vocabulary, model_cfg, mesh, self.workdir)
            exams = Exams(asked.run, *told, whole=False, tag=asked.tag)
            exams.about = dict(checkpoint=known)
            exams.take(step, params, [name])
            self._judged[self._place(run, step, name)] = known
            self._write_metrics()
        return True

    def _leave(self, step: int, error: UserError) -> None:
        """A checkpoint that cannot be read: pruned under our hands, or damaged."""
        self._failed[step] = self._failed.get(step, 0) + 1
        if step not in steps_in(self.workdir / 'checkpoints'):
            self._failed[step] = TRIES
            self._say(f'checkpoint {step} was removed before it could be examined; going on')
        elif self._failed[step] >= TRIES:
            self._say(f'checkpoint {step} is left out: {error}')
        else:
            self._sleep(self.cfg.poll)

    def _write_metrics(self) -> None:
        """Writes the averages of all that followers have judged, a line a step."""
        lines: dict[int, dict[str, Any]] = {}
        for path in sorted((self.workdir / 'eval').glob('*.json')):
            found = _scores(path)
            if found.get('checkpoint') and '@' not in path.name:
                step, summary = int(found['step']), found['summary']
                told = averages_of(found['mixture'], summary)
                line = lines.setdefault(step, {'step': step})
                line |= {name: finite(value) for name, value in told.items()}
        text = ''.join(json.dumps(lines[step]) + '\n' for step in sorted(lines))
        files.write(self.workdir / FOLLOWED, text)


def _printed(text: str) -> None:
    console = rich.console.Console(stderr=True)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def mark(workdir: pathlib.Path, step: int) -> str:
    """What tells a checkpoint from another of the same step: a hash of what was written last."""
    folder = workdir / 'checkpoints' / str(step)
    for name in ('checksums.json', '_CHECKPOINT_METADATA'):
        try:
            return hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
        except OSError:
            continue
    return 'unmarked'


def _scores(path: pathlib.Path) -> dict[str, Any]:
    """What a file of scores holds; nothing if it is not there or not one."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    sound = isinstance(found, dict) and {'step', 'mixture', 'summary', 'rows'} <= found.keys()
    return found if sound else {}
