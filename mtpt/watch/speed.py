"""How long steps take, from when their figures are read, which is a step late.

Only what was seen counts: a stretch of steps is timed from before its first is dispatched, so that
neither what lay between two stretches (a save, a validation) nor a step that had been dispatched
before is in it.
"""

import dataclasses
import time


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs of a step, and the FLOP/s that all devices are good for (None where unknown)."""

    flops: float
    peak: float | None = None


class Speed:
    """Times the steps of an interval."""

    def __init__(self):
        self._clock: float | None = None
        self._before = 0  # steps up to this one were dispatched before the clock was started
        self.clear()

    def resume(self, step: int) -> None:
        """Starts the clock, if it stands, before the step after `step` is dispatched."""
        if self._clock is None:
            self._clock, self._before = time.perf_counter(), step

    def pause(self) -> None:
        """Stops the clock until the next `resume`, or until figures are read."""
        self._clock = None

    def read(self, step: int, tokens: float, seen: bool = True) -> None:
        """The figures of a step were read just now.

        seen: whether its end was not over already when those of the step before were read: where
        it was, both together took what is counted for the one before.
        """
        now = time.perf_counter()
        if self._clock is None:
            self._clock, self._before = now, step
        elif step > self._before:
            self._seconds, self._tokens = self._seconds + now - self._clock, self._tokens + tokens
            self._steps, self._seen = self._steps + 1, self._seen or seen
            self._clock = now

    def clear(self) -> None:
        """Begins another interval."""
        self._seconds, self._tokens, self._steps, self._seen = 0.0, 0.0, 0, False

    def figures(self, cost: Cost) -> dict[str, float]:
        """Seconds a step, real tokens (both sides) a second and MFU; {} where none was seen."""
        if not self._seen or not self._seconds:
            return {}
        step = self._seconds / self._steps
        found = {'time/step': step, 'time/tokens_per_s': self._tokens / self._seconds}
        if cost.flops and cost.peak:
            found['time/mfu'] = cost.flops / step / cost.peak
        elif cost.flops:
            found['time/flops_per_s'] = cost.flops / step
        return found
