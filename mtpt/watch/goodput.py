"""Where the time of a run goes, over all its restarts: goodput is the share that went into steps.

Every process of a run is a life. Each logging interval it appends what it has spent to
`lives.jsonl`, cumulatively, so that a life that was killed is known up to its last whole line.
What a life did after the checkpoint that the next one began at was done again: it counts as lost
to restarts, as does the time between the last line of a life and the start of the next.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

FILE = 'lives.jsonl'
KINDS = ('steps', 'compiling', 'data', 'saving', 'evaluating', 'profiling', 'starting', 'other')
LONGEST_GAP = 90 * 86400.0  # seconds; a longer one is taken for a clock that was wrong
SLACK = 60.0  # seconds that a wall clock may be set by in a life and still be believed

_born: list[float] = []


def from_the_start() -> None:
    """Lets the next run begin with the start of this process, so that its imports count."""
    _born[:] = [time.perf_counter() - process_age()]


def begun() -> float:
    """When a run begins, for `Goodput`: now, unless `from_the_start` was said before."""
    return _born.pop() if _born else time.perf_counter()


def process_age() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        fields = pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2].split()
        started = int(fields[19]) / os.sysconf('SC_CLK_TCK')
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


class Goodput:
    """Adds up seconds by what they were spent on, and keeps them in a folder.

    Until the first `spent` the run is starting; what is in no `spent` is 'other'. It is for one
    thread.

    Args:
      workdir: the folder of the run; without one nothing is kept.
      step: the step that this life goes on from.
      primary: whether this process writes.
      born: when it began, by `begun`; now by default.
    """

    def __init__(
        self,
        workdir: str | os.PathLike | None = None,
        step: int = 0,
        primary: bool = True,
        born: float | None = None,
    ):
        self._path = pathlib.Path(workdir) / FILE if workdir is not None and primary else None
        self._born = time.perf_counter() if born is None else born
        self._stack, self._at, self._starting = ['starting'], self._born, True
        self.seconds: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._whole = self._path is None or not self._path.exists() or _ends(self._path)
        self._past = lives(self._path.parent) if self._path else []
        age = time.perf_counter() - self._born
        self._life = dict(
            life=uuid.uuid4().hex[:8],
            began=step,
            started=time.time() - age,
            boot=_boot(),
            boottime=_boottime() - age,
        )

    @contextlib.contextmanager
    def spent(self, on: str) -> Iterator[None]:
        """Counts the time inside for `on`; what is inside of it counts for itself alone."""
        self._credit()
        if self._starting:
            self._starting, self._stack = False, ['other']
        self._stack.append(on)
        try:
            yield
        finally:
            self._credit()
            self._stack.pop()

    def log(self, step: int) -> dict[str, float]:
        """Keeps what was spent up to `step`; gives what it comes to.

        Returns:
          'goodput/KIND': the share of the time since the last call; 'goodput/run': the share of
          the whole life of the run, over all restarts, that went into steps that were kept.
        """
        self._credit()
        since = {k: v - self._told.get(k, 0.0) for k, v in self.seconds.items()}
        self._told, whole = dict(self.seconds), sum(since.values())
        line = self._line(step)
        self._append(line)
        found = {f'goodput/{k}': v / whole for k, v in since.items() if whole and v}
        here = Life.of([line])
        account = summed([*self._past, here] if here else self._past)
        if account.total:
            found['goodput/run'] = account.seconds.get('steps', 0.0) / account.total
        return found

    def _credit(self) -> None:
        now = time.perf_counter()
        on = self._stack[-1]
        self.seconds[on] = self.seconds.get(on, 0.0) + now - self._at
        self._at = now

    def _line(self, step: int) -> dict[str, Any]:
        spent = {k: round(v, 3) for k, v in self.seconds.items()}
        alive = round(time.perf_counter() - self._born, 3)
        return self._life | dict(
            step=int(step), written=time.time(), uptime=_boottime(), alive=alive, seconds=spent
        )

    def _append(self, line: dict[str, Any]) -> None:
        """Adds a line; where there is no room, the next one says as much."""
        if self._path is None:
            return
        text = ('' if self._whole else '\n') + json.dumps(line) + '\n'
        self._whole = False
        with contextlib.suppress(OSError), open(self._path, 'a', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            self._whole = True


@dataclasses.dataclass(frozen=True)
class Life:
    """A process of a run: its marks are (step, seconds by kind so far), in order of time.

    Times are of the wall clock; `boot` names the boot of the machine that `uptime` counts from.
    """

    name: str
    began: int
    started: float
    ended: float
    alive: float
    boot: str
    boottime: float
    uptime: float
    marks: tuple[tuple[int, dict[str, float]], ...]

    @classmethod
    def of(cls, lines: list[dict[str, Any]]) -> 'Life | None':
        """A life from its lines; None where none of them can be read as one."""
        good = [line for line in lines if _sound(line)]
        if not good:
            return None
        first, last = good[0], good[-1]
        return cls(
            str(first['life']),
            int(first['began']),
            float(first['started']),
            float(last['written']),
            float(last['alive']),
            str(first['boot']),
            float(first['boottime']),
            float(last['uptime']),
            tuple((int(line['step']), _seconds(line['seconds'])) for line in good),
        )

    @property
    def steady(self) -> bool:
        """Whether its wall clock went on as time did."""
        return abs((self.ended - self.started) - self.alive) <= SLACK

    def split(self, kept: float) -> tuple[dict[str, float], float]:
        """What it spent up to step `kept` by kind, and the seconds of what it did after that."""
        spent = next((s for step, s in reversed(self.marks) if step <= kept), None)
        whole = self.marks[-1][1]
        if spent is None:  # not one step of it was kept; what it took to start is no work
            spent = {k: v for k, v in whole.items() if k in ('starting', 'compiling')}
        return spent, max(0.0, sum(whole.values()) - sum(spent.values()))


@dataclasses.dataclass(frozen=True)
class Account:
    """The whole life of a run in seconds.

    seconds: by kind, of what was kept; lost: work that was done again; down: between processes;
    unknown: how many of the pauses between processes no clock could tell.
    """

    seconds: dict[str, float]
    lost: float
    down: float
    restarts: int
    unknown: int

    @property
    def total(self) -> float:
        return sum(self.seconds.values()) + self.lost + self.down

    @property
    def steps(self) -> float:
        """The share that went into steps that were kept."""
        return self.seconds.get('steps', 0.0) / self.total if self.total else 0.0


def lives(workdir: str | os.PathLike) -> list[Life]:
    """The lives of a run in the order they began; lines that were cut off are left out."""
    path = pathlib.Path(workdir) / FILE
    try:
        texts = path.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return []
    found: dict[str, list[dict[str, Any]]] = {}
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get('life'), str):
            found.setdefault(line['life'], []).append(line)
    return [life for life in map(Life.of, found.values()) if life]


def summed(of: Iterable[Life]) -> Account:
    """Adds up the lives of a run."""
    of = list(of)
    seconds: dict[str, float] = {}
    lost, down, unknown = 0.0, 0.0, 0
    for i, life in enumerate(of):
        kept = min((later.began for later in of[i + 1 :]), default=math.inf)
        spent, again = life.split(kept)
        lost += again
        for kind, value in spent.items():
            seconds[kind] = seconds.get(kind, 0.0) + value
        if i:
            pause = gap(of[i - 1], life)
            unknown += pause is None
            down += pause or 0.0
    return Account(seconds, lost, down, max(len(of) - 1, 0), unknown)


def gap(before: Life, after: Life) -> float | None:
    """Seconds from the last line of a life to the start of the next; None where nobody can tell.

    On a machine that was not booted in between its uptime says; else the wall clocks do, unless
    one of them jumped or they contradict each other.
    """
    if before.boot and before.boot == after.boot:
        seconds = after.boottime - before.uptime
    elif before.steady and after.steady:
        seconds = after.started - before.ended
    else:
        return None
    if -1 <= seconds <= LONGEST_GAP:  # the age of a process is told in hundredths
        return max(seconds, 0.0)
    return None


def _sound(line: dict[str, Any]) -> bool:
    numbers = ('began', 'step', 'started', 'written', 'alive', 'boottime', 'uptime')
    told = all(_finite(line.get(name)) for name in numbers)
    return told and isinstance(line.get('seconds'), dict) and isinstance(line.get('boot'), str)


def _seconds(told: dict[str, Any]) -> dict[str, float]:
    return {str(k): float(v) for k, v in told.items() if _finite(v) and v >= 0}


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _ends(path: pathlib.Path) -> bool:
    """Whether a file ends with a whole line."""
    try:
        with open(path, 'rb') as file:
            if not file.seek(0, os.SEEK_END):
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b'\n'
    except OSError:
        return False


def _boot() -> str:
    try:
        return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    except OSError:
        return ''


def _boottime() -> float:
    """Seconds since the machine was booted, whatever its clock was set to; 0 if not told."""
    clock: Callable[[int], float] | None = getattr(time, 'clock_gettime', None)
    return clock(time.CLOCK_BOOTTIME) if clock and hasattr(time, 'CLOCK_BOOTTIME') else 0.0
