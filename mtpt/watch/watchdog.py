"""Notices work that takes too long, writes down what every thread does, and ends the process.

A run tells the watch what it begins to do. Where nothing new is begun for too long, something
hangs: a source, a collective whose partner has gone, a disk. The process then ends with status 75,
at which launchers and schedulers run the same command again; the other hosts of a run notice by
its missing heartbeat. Ending waits for nothing: not for locks, not for a disk that is full or gone.
"""

import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable

from mtpt.config import UserError
from mtpt.statuses import REQUEUE

POLL = 1.0  # seconds between two looks
PATIENCE = 10.0  # seconds for writing the report, whatever the disk does
NAMED = 32  # tasks in a report


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When a run that has stopped moving is ended, so that it can restart.

    seconds: how long a step, a batch, or a batch of an evaluation may take (0: nothing is watched);
    slow: what is done for the first time, and so may compile, a save, and what is done once.
    """

    seconds: float = 1800.0
    slow: float = 7200.0

    def __post_init__(self):
        if self.seconds < 0 or self.slow < self.seconds:
            raise UserError(
                f'watchdog.seconds={self.seconds} must be at least 0 (0: off), and watchdog.slow='
                f'{self.slow} at least as much'
            )


class Watchdog:
    """Ends a process whose work has stopped moving; without a config, watches nothing.

    Args:
      folder: of the run; reports go to its `watchdog/`.
      process: the number of this process.

    Whoever reads data may set `reading`, which gives the name of the task that is being read at
    this moment or '', and `tasks`, which gives the names of those in the batch of a step.
    """

    def __init__(
        self,
        cfg: WatchdogConfig = WatchdogConfig(seconds=0),
        folder: str | os.PathLike | None = None,
        process: int = 0,
    ):
        self.cfg, self.process = cfg, process
        self.folder = None if folder is None else pathlib.Path(folder) / 'watchdog'
        self.reading: Callable[[], str] = str
        self.tasks: Callable[[int], Iterable[str]] = lambda step: ()
        self.step = 0
        self._doing, self._limit, self._spent = 'starting', cfg.slow, 0.0
        self._seen: set[str] = set()
        self._over, self._thread = threading.Event(), None
        if cfg.seconds:
            self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)
            self._thread.start()

    def beat(self, what: str, step: int | None = None, slow: bool = False) -> None:
        """Says that the run is alive and what it begins to do.

        Args:
          what: 'saving step 7'; its first word is its kind, and the first of a kind is given as
            much time as what is slow: it may compile.
          step: of the run, kept until another is told.
          slow: whether it may take as long as what is done once.
        """
        kind = what.partition(' ')[0]
        slow = slow or kind not in self._seen
        if kind != 'saving':
            self._seen.add(kind)
        if step is not None:
            self.step = step
        self._doing, self._limit = what, self.cfg.slow if slow else self.cfg.seconds
        self._spent = 0.0

    def anew(self) -> None:
        """Forgets what was done before: another stage compiles its own."""
        self._seen = set()

    def close(self) -> None:
        """Ends the watch."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=PATIENCE)
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        """Adds up time that this thread saw pass: a process that was stopped or put to sleep has
        not hung, and no clock that jumps is asked."""
        poll = min(POLL, self.cfg.seconds / 4)
        before = time.monotonic()
        while True:
            # Where something keeps Python itself from running, and with it this thread.
            with contextlib.suppress(Exception):
                faulthandler.dump_traceback_later(self.cfg.slow + PATIENCE, exit=True, file=2)
            if self._over.wait(poll):
                return
            now = time.monotonic()
            self._spent += min(now - before, 2 * poll)
            before = now
            if self._spent > self._limit:
                self._end()

    def _end(self) -> None:
        """Ends the process; the report is made elsewhere, so that nothing in it holds this up."""
        try:
            writer = threading.Thread(target=_report, args=(self,), daemon=True)
            writer.start()
            writer.join(timeout=PATIENCE)
        finally:
            os._exit(REQUEUE)

    def told(self) -> str:
        """What is being done, where, and with which tasks."""
        host = socket.gethostname()
        try:
            reading, tasks = self.reading(), list(self.tasks(self.step))
        except Exception:  # whatever is wrong with them, the report is to be written
            reading, tasks = '', []
        more = f' and {len(tasks) - NAMED} more' if len(tasks) > NAMED else ''
        return '\n'.join(
            [
                f'mtpt: the watchdog ends process {self.process} (pid {os.getpid()}) on host '
                f'{host}: "{self._doing}" has taken more than {self._limit:g} s',
                f'step: {self.step}',
                f'task being read: {reading}' if reading else 'no task is being read',
                f'tasks of its batch: {", ".join(tasks[:NAMED])}{more}'
                if tasks
                else 'no batch yet',
                f'status {REQUEUE}: the same command goes on from the last checkpoint; where the '
                'work is slow and sound, raise watchdog.seconds or watchdog.slow',
            ]
        )

    def path(self) -> pathlib.Path | None:
        """Where a report goes: `watchdog/STEP-HOST-PROCESS.txt`."""
        host = ''.join(c if c.isalnum() or c in '-_.' else '_' for c in socket.gethostname())
        return self.folder and self.folder / f'{self.step}-{host}-{self.process}.txt'


def _report(dog: Watchdog) -> None:
    """Writes to the terminal and to the file; neither waits for the other."""
    text, path = dog.told(), dog.path()
    where = f'\nwhere every thread stands is in {path}\n' if path else '\n'
    terminal = threading.Thread(target=_write_all, args=(2, text + where), daemon=True)
    terminal.start()
    text = f'{text}\n\n{_stacks()}'
    try:
        if path is None:
            raise OSError(0, 'there is no folder')
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        _write_all(file, text)
        os.fsync(file)
    except OSError as error:  # a full disk: the terminal is what is left
        _write_all(2, f'no report was written ({error.strerror})\n\n{text}')
    terminal.join()


def _write_all(file: int, text: str) -> None:
    """Straight to the descriptor: Python's own streams have locks, which a thread may hold."""
    left = text.encode('utf-8', 'replace')
    while left:
        left = left[os.write(file, left) :]


def _stacks() -> str:
    """Where every thread is, the innermost call first; reads no source file."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    told = []
    for number, frame in sys._current_frames().items():
        told.append(f'thread {names.get(number, number)}:')
        while frame is not None:
            code = frame.f_code
            told.append(f'  {code.co_filename}:{frame.f_lineno} in {code.co_qualname}')
            frame = frame.f_back
        told.append('')
    return '\n'.join(told)
