"""`mtpt train --restarts=N`: starts a run again that a crash has ended, from its last checkpoint.

The parent holds no device and imports no JAX. It passes signals on, once each, and what it has
passed on ends it too; everything that the run writes goes where it went without a parent.
"""

import contextlib
import ctypes
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from mtpt import statuses
from mtpt.config import UserError

FLAG = '--restarts'
CRASHED = (statuses.FAULT, statuses.REQUEUE, 128 + signal.SIGABRT, 128 + signal.SIGKILL)
LONGEST = 60.0  # seconds between an end and the next start
PDEATHSIG = 1  # prctl's number


def asked(argv: Sequence[str]) -> tuple[int, list[str]]:
    """How many restarts the words of a command ask for, and the words without that.

    Raises:
      UserError: not a number of restarts.
    """
    words, number, rest = iter(argv), 0, []
    for word in words:
        name, equals, value = word.partition('=')
        if name != FLAG:
            rest.append(word)
            continue
        value = value if equals else next(words, '')
        if not value.isdigit():
            raise UserError(f'{FLAG}={value} must be a number, 0 for none')
        number = int(value)
    return number, rest


def supervise(
    argv: Sequence[str],
    restarts: int,
    start: Sequence[str] = (sys.executable, '-m', 'mtpt'),
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Runs `mtpt` with the words `argv`, again after each crash; returns the last status.

    Args:
      restarts: how many in a row may bring no new checkpoint.
    """
    folder, tried = _workdir(argv) / 'checkpoints', 0
    with _Signals() as signals:
        while True:
            reached = _newest(folder)
            status = signals.run([*start, *argv])
            if signals.passed or not _crashed(status):
                return status if status >= 0 else 128 - status
            newest = _newest(folder)
            tried = 0 if newest > reached else tried
            if tried == restarts:
                return _given_up(status, tried, newest)
            tried += 1
            pause = min(LONGEST, 2.0 ** (tried - 1))
            step = f'from checkpoint {newest}' if newest >= 0 else 'from the beginning'
            _say(
                f'the run ended {_spelled(status)}; starting it again {step} in {pause:g} s '
                f'(restart {tried} of {restarts} since a checkpoint was written)'
            )
            if signals.passed or not _slept(pause, signals, sleep):
                return statuses.INTERRUPTED if signals.passed == signal.SIGINT else status


class _Signals:
    """Gives the run, in a process group of its own, each signal that the parent is given."""

    def __init__(self):
        self.passed: int | None = None
        self._child: subprocess.Popen | None = None
        self._before = {}

    def run(self, command: Sequence[str]) -> int:
        """Runs a command to its end; its status, minus a signal's number if that ended it."""
        self._child = subprocess.Popen(command, process_group=0, preexec_fn=_ends_with_parent)
        if self.passed:  # before there was a child
            self._child.send_signal(self.passed)
        try:
            return self._child.wait()
        finally:
            self._child = None

    def __enter__(self) -> '_Signals':
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: object) -> None:
        if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.passed = number
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)


def _ends_with_parent() -> None:
    """A run whose parent was killed is asked to save and end (Linux only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGTERM)


def _slept(seconds: float, signals: _Signals, sleep: Callable[[float], None]) -> bool:
    """Waits; False if a signal came meanwhile."""
    until = time.monotonic() + seconds
    while not signals.passed and (left := until - time.monotonic()) > 0:
        sleep(min(left, 0.2))
        if sleep is not time.sleep:
            break
    return not signals.passed


def _crashed(status: int) -> bool:
    return status < 0 or status in CRASHED


def _spelled(status: int) -> str:
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        return f'by signal {number} ({signal.Signals(number).name})'
    return f'with status {status}'


def _given_up(status: int, tried: int, newest: int) -> int:
    since = f'checkpoint {newest}' if newest >= 0 else 'the beginning'
    _say(
        f'the run ended {_spelled(status)}, {tried + 1} times now without a new checkpoint since '
        f'{since}; it is not started again: look at what it wrote last'
    )
    return status if status >= 0 else 128 - status


def _workdir(argv: Sequence[str]) -> pathlib.Path:
    for word, after in zip(argv, [*argv[1:], '']):
        name, equals, value = word.partition('=')
        if name in ('--workdir', '-workdir'):
            return pathlib.Path(value if equals else after)
    raise UserError('--workdir is missing; add --workdir=runs/NAME')


def _newest(folder: pathlib.Path) -> int:
    """The step of the last checkpoint, -1 for none."""
    with contextlib.suppress(OSError):
        return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=-1)
    return -1


def _say(text: str) -> None:
    print(f'mtpt: {text}', file=sys.stderr, flush=True)
