"""The metrics of a step, read while the next one runs, and what follows from them."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError
from mtpt.log import Writer
from mtpt.train.saving import let_finish
from mtpt.train.spikes import Rollbacks
from mtpt.watch.watchdog import Watchdog


class Late:
    """Reads the metrics of a step during the next one, and stops a run that has gone wrong.

    most: updates in a row that may be left out for not being finite.
    """

    def __init__(
        self,
        most: int,
        tasks: Sequence[str],
        writer: Writer,
        checkpoints: Checkpoints,
        steered: Any = None,
        watchdog: Watchdog | None = None,
    ):
        self.most, self.tasks, self.writer, self.checkpoints = most, tasks, writer, checkpoints
        self.steered, self.watchdog = steered, watchdog or Watchdog()
        self.diagnose: Callable[[int], str | None] | None = None
        self.rollbacks: Rollbacks | None = None
        self._pending, self._over = None, False
        self._suspects = collections.Counter()
        self._known = ''  # what is behind the updates that were left out in a row

    def push(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes the metrics of the step just dispatched, and reads those of the one before."""
        before, self._pending, self._over = self._pending, (step, metrics), False
        if before is not None:
            self._read(*before)
            self._over = metrics['train/loss'].is_ready()

    def settle(self) -> None:
        """Reads what is pending; waits for the device."""
        if self._pending is not None:
            before, self._pending = self._pending, None
            self._read(*before, seen=not self._over)

    def _read(self, step: int, metrics: Mapping[str, jax.Array], seen: bool = True) -> None:
        self.watchdog.beat(f'reading the figures of step {step}')
        metrics = jax.device_get(metrics)
        self.writer.add(step, metrics, seen)
        if self.steered:
            sums = (metrics[name].astype(np.float64) for name in ('task/loss_sum', 'task/tokens'))
            if shares := self.steered.heard(step, *sums):
                self.writer.write(step, shares)
        if self.rollbacks:
            self.rollbacks.heard(step, metrics)
        in_a_row = int(metrics['train/skipped_in_a_row'])
        if not in_a_row:
            self._suspects.clear()
            self._known = ''
            return
        flagged = np.flatnonzero(metrics['task/nonfinite'])
        there = np.flatnonzero(metrics['task/segments'])
        guilty = flagged if flagged.size else there
        self._suspects.update(self.tasks[i - 1] for i in guilty if i)
        if self.diagnose and not self._known:
            self._look_into(step)
        if in_a_row >= self.most:
            self._stop(step, in_a_row, whole=not flagged.size)

    def _look_into(self, step: int) -> None:
        """Takes the step again; what goes wrong with that is told, and stops nothing."""
        self.watchdog.beat(f'replaying step {step}', slow=True)
        try:
            said = self.diagnose(step)
        except FloatingPointError:  # of who debugs
            raise
        except Exception as error:
            said = f'step {step} could not be replayed ({type(error).__name__}: {error})'
        if said:
            self.writer.say(said)
            self.writer.pause()
            self._known = said

    def _stop(self, step: int, in_a_row: int, whole: bool) -> None:
        let_finish(self.checkpoints)
        saved = self.checkpoints.latest()
        where = (
            f'checkpoint {saved} in {self.checkpoints.folder}' if saved is not None else 'none yet'
        )
        what = 'the gradient' if whole else 'the loss'
        names = ', '.join(f'{name} ({n}x)' for name, n in self._suspects.most_common(8))
        raise UserError(
            f'{what} was not finite {in_a_row} steps in a row, up to step {step}, in batches of '
            f'these tasks: {names}; look at their data (mtpt tasks show NAME) or lower '
            f'optimizer.schedule.rate; saved last: {where}'
            + (f'; {self._known}' if self._known else '')
        )
