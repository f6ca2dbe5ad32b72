"""One run a folder: who trains there says so in a file, and a second one stops with a sentence.

The file holds host, process and start, and is touched every few seconds. On one machine a process
is asked for directly, so that what a kill has left is taken over at once. The process of another
machine counts as gone when the file stands still for a while by our own clock: no two clocks are
compared, and none can be set wrong. `flock` settles who comes first where two begin together.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from mtpt import hosts, statuses
from mtpt.config import UserError

NAME = '.lock'
BEAT = 5.0  # seconds between two touches
PATIENCE = 25.0  # seconds without one after which the owner counts as gone


@contextlib.contextmanager
def held(folder: str | os.PathLike, patience: float = PATIENCE) -> Iterator[None]:
    """Keeps other runs out of a folder; of several processes the first does it for all.

    Raises:
      UserError: another run trains there.
    """
    lock = Lock(folder, patience)
    hosts.first(f'lock/{pathlib.Path(folder).absolute()}', lock.take)
    try:
        yield
    finally:
        lock.release()


class Lock:
    """The lock of one folder; free again when its process ends, however it ends."""

    def __init__(self, folder: str | os.PathLike, patience: float = PATIENCE):
        self.path, self.patience = pathlib.Path(folder) / NAME, patience
        self._file, self._done, self._mine = None, threading.Event(), {}

    def take(self) -> None:
        """Takes the folder; waits a while where another machine had it and may be gone.

        Raises:
          UserError: another run trains there, or the folder cannot be written.
        """
        try:
            self._file = open(self.path, 'a+b')
            if not _first_here(self._file):
                time.sleep(1)  # for whoever was first to say who it is
            owner = self._owner()
            if owner and self._lives(owner):
                self._file.close()
                self._file = None
                raise UserError(
                    f'{self.path.parent} is being trained in by process {owner["pid"]} on '
                    f'{owner["host"]}, since {owner["start"]}; wait for it or end it, or choose '
                    'another --workdir'
                )
            self._mine = _me()
            self._write(json.dumps(self._mine))
        except OSError as error:
            raise UserError(
                f'cannot write {self.path}: {error.strerror or error}; free some space there or '
                'choose another --workdir'
            ) from error
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Gives the folder back."""
        self._done.set()
        if self._file is None:
            return
        with contextlib.suppress(OSError), self._file:
            if self._owner() == self._mine:
                self._write('')
        self._file = None

    def _write(self, text: str) -> None:
        os.ftruncate(self._file.fileno(), 0)
        os.pwrite(self._file.fileno(), text.encode(), 0)

    def _owner(self) -> dict[str, Any] | None:
        """Who the file says has the folder; opened anew, as shared file systems look again then."""
        try:
            told = json.loads(self.path.read_text(encoding='utf-8'))
            return told if {'pid', 'host', 'start', 'machine', 'born'} <= told.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def _lives(self, owner: dict[str, Any]) -> bool:
        if owner['machine'] == _machine():
            return _born(int(owner['pid'])) == owner['born'] != ''
        print(
            f'mtpt: process {owner["pid"]} on {owner["host"]} trained in {self.path.parent}; '
            f'looking for {self.patience:g} s whether it still does',
            file=sys.stderr,
        )
        seen, until = self._touched(), time.monotonic() + self.patience
        while time.monotonic() < until:
            time.sleep(min(1.0, self.patience / 10))
            if self._touched() != seen:
                return True
        return False

    def _touched(self) -> tuple[int, bytes]:
        with open(self.path, 'rb') as file:
            return os.fstat(file.fileno()).st_mtime_ns, file.read()

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                owner = self._owner()
                if owner and owner != self._mine and not self._done.is_set():
                    self._lost(owner)
                os.utime(self.path)

    def _lost(self, owner: dict[str, Any]) -> None:
        """This process stood still for so long that another has taken over: two cannot write."""
        print(
            f'mtpt: process {owner["pid"]} on {owner["host"]} has taken over {self.path.parent} '
            'while this one stood still; this one ends and leaves the folder alone',
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(statuses.BAD_INPUT)


def _first_here(file: Any) -> bool:
    """Whether nobody else has the file; where locks are not supported, nobody knows."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def _me() -> dict[str, Any]:
    return dict(
        host=socket.gethostname(),
        pid=os.getpid(),
        start=time.strftime('%Y-%m-%d %H:%M:%S'),
        machine=_machine(),
        born=_born(os.getpid()),
    )


def _machine() -> str:
    """Within what the number of a process means the same: a start of a machine, a container."""
    try:
        boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{boot} {os.readlink("/proc/self/ns/pid")}'
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str:
    """When a process began, in ticks of its machine; '' where there is none (any more)."""
    try:
        told = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        return '' if told[0] in 'ZX' else told[19]
    except OSError:
        pass
    if pathlib.Path('/proc/self/stat').exists():
        return ''
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return ''
    except OSError:
        pass
    return 'alive'
