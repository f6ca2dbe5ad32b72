"""What goes on beside the device: batches made ahead in a thread, and the wish to stop."""

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from mtpt import hosts
from mtpt.config import UserError
from mtpt.hosts import maintenance, meeting


class Prefetch:
    """Draws and places batches in the background, `depth` ahead; errors surface in `take`."""

    def __init__(self, loader: Iterator[tuple[Any, Any]], place: Callable[[Any], Any], depth: int):
        self._queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(loader, place), daemon=True)
        self._thread.start()

    def take(self, given_up: Callable[[], Any] = lambda: False) -> tuple[Any, Any] | None:
        """The next (batch on the devices, position); None once `given_up()` is true.

        Raises:
          UserError: the loader has ended. What the loader raised is raised here.
        """
        while not given_up():
            try:
                item, error = self._queue.get(timeout=0.5)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            return item
        return None

    def close(self) -> None:
        """Ends the thread; a batch that is being drawn is waited for a little."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _work(self, loader, place):
        try:
            for batch, position in loader:
                if not self._put((place(batch), position), None):
                    return
            error = UserError('the data ended before the run did; repeat it, or lower train.steps')
        except BaseException as caught:
            error = caught
        self._put(None, error)

    def _put(self, item, error) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


CTRL_C = 'Ctrl-C'


class _Broken(Exception):
    """What was going on is left, so that a save can begin."""


class Straight:
    """Draws and places each batch when it is asked for, in the thread that asks."""

    def __init__(self, loader: Iterator[tuple[Any, Any]], place: Callable[[Any], Any]):
        self._items, self._place = iter(loader), place

    def take(self, given_up: Callable[[], Any] = lambda: False) -> tuple[Any, Any] | None:
        """As that of `Prefetch`, but that a batch that is being drawn is waited for."""
        if given_up():
            return None
        if (item := next(self._items, None)) is None:
            raise UserError('the data ended before the run did; repeat it, or lower train.steps')
        return self._place(item[0]), item[1]

    def close(self) -> None:
        """Nothing is drawn ahead."""


class Signals:
    """Turns the first Ctrl-C, SIGTERM or notice into a wish to stop; a second Ctrl-C stops at once.

    Several processes stop before the same step, whichever of them was asked. While the last
    checkpoint is written one more Ctrl-C is let pass, with a word; schedulers repeat SIGTERM, and
    it stays one wish. A checkpoint becomes visible only when whole, so that even stopping at once
    breaks none.

    notices: where those of the machine come from (see `maintenance.server`).
    """

    def __init__(self, say: Callable[[str], None], notices: str = 'off'):
        self.asked: str | None = None
        self.saving = False
        self._say, self._warned, self._before = say, False, {}
        self._breakable, self._broken, self._left = False, False, False
        self._meeting = meeting.called('stop') if jax.process_count() > 1 else None
        self._notices, self._end = maintenance.server(notices), lambda: None

    def alone(self) -> str | None:
        """Why this process, if it is the only one, should stop waiting for data."""
        return None if self._meeting else self.asked

    def agreed(self, step: int) -> bool:
        """Whether all processes stop before this step; each asks before every step."""
        if self._meeting is None:
            return self.asked is not None
        if why := self._meeting.reached(step):
            self.asked = why
            return True
        # JAX's own: its service may be off, and may hear of more than SIGTERM.
        if hosts.synced() and multihost_utils.reached_preemption_sync_point(step):
            self.asked = 'a preemption notice'
            return True
        return False

    def ask(self, why: str) -> None:
        """Asks to stop as soon as the step under way is done; from any thread."""
        self.asked = self.asked or why
        if self._meeting:
            self._meeting.ask(why)

    @contextlib.contextmanager
    def breakable(self) -> Iterator[None]:
        """What is inside is left as it is when a process that is alone is asked to stop."""
        try:
            try:
                self._breakable = self._meeting is None
                yield
            finally:
                self._breakable = False
        except Exception:  # _Broken, or what a library in whose midst it came has made of it
            if not self._broken:
                raise
            self._broken = False

    def __enter__(self) -> 'Signals':
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._heard)
        if self._notices:
            self._end = maintenance.listen(self._notices, self._noticed)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self._end()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._left and isinstance(error, Exception):  # as a library has it
            raise KeyboardInterrupt from error

    def _noticed(self, what: str) -> None:
        self._say(f'{what} came: finishing this step and saving')
        self.ask(what)

    def _heard(self, number: int, frame: Any) -> None:
        name = CTRL_C if number == signal.SIGINT else 'SIGTERM'
        if number == signal.SIGTERM and self.asked:
            return
        if self.saving and not self._warned:
            self._warned = True
            self.ask(name)
            self._say('the checkpoint is being written; once more to leave without it')
        elif self.asked or self._warned:
            self._left = True
            raise KeyboardInterrupt
        else:
            self.ask(name)
            self._say('finishing this step and saving; Ctrl-C once more to stop at once')
            if self._breakable:
                self._breakable, self._broken = False, True
                raise _Broken
