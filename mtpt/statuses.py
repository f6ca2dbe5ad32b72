"""What the exit status of `mtpt` means: schedulers and the supervisor go by it.

Numbers above 63 are those of sysexits.h where one fits.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

FAULT = 1
BAD_INPUT = 2
NOT_SAVED = 74
REQUEUE = 75
INTERRUPTED = 130

MEANING = {
    0: 'done',
    FAULT: 'a fault of mtpt or of a library, or another host that went away',
    BAD_INPUT: 'bad input; one sentence says what is wrong',
    NOT_SAVED: 'trained to the end, but the last checkpoint could not be written',
    REQUEUE: 'ended from outside (SIGTERM, maintenance, the watchdog): the same command goes on',
    INTERRUPTED: 'Ctrl-C, after saving',
}


def table() -> str:
    """The statuses and what they mean, a line each."""
    return '\n'.join(f'  {status:>3}  {meaning}' for status, meaning in MEANING.items())


class Ended(BaseException):
    """SIGTERM came while nothing was to be saved; no error, that some task could be blamed for."""

    status = REQUEUE


@contextlib.contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Gives SIGTERM its status also before and after the steps of a run, which have their own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: object) -> None:
    raise Ended('stopped by SIGTERM between steps; the same command goes on')
