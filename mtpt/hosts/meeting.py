"""How the processes of a run come to do something at the same step, holding none of them up.

Each process says before every step how far it is, to itself. When one of them wants something, all
say it to process 0, which names the step after the furthest: none has begun that one yet. Devices
take no part in it, and a process that asks nothing pays nothing. (JAX's preemption sync point works
alike, for SIGTERM alone.)
"""

import atexit
import functools
import threading

from mtpt import hosts

PATIENCE = 600.0  # seconds in which a process that lives answers


class Meeting:
    """Finds the step before which all processes do what one of them has asked for.

    A meeting is over once `reached` has said so; the next may be asked for then. One name has one
    meeting in a process, made by `called`.
    """

    def __init__(self, name: str, period: float = 0.25):
        self._name, self._period = name, period
        self._lock = threading.Lock()
        self._step, self._at, self._round = -1, None, 0
        self._asked: str | None = None
        self._why = ''
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        atexit.register(self._close)  # a thread inside JAX's client when Python ends aborts it

    def ask(self, why: str) -> None:
        """Asks all to meet, as soon as can be; safe in a signal handler."""
        self._asked = self._asked or why

    def reached(self, step: int) -> str | None:
        """Whether all meet before this step, and if so why; called once a step by all, upwards."""
        with self._lock:
            self._step = max(step, self._step)
            if self._at is None or step < self._at:
                return None
            self._at = self._asked = None
            self._round += 1
            return self._why

    def _close(self) -> None:
        self._done.set()
        self._thread.join(timeout=10)

    def _listen(self) -> None:
        """Looks for a wish of another process, and agrees on the step."""
        period = max(self._period, hosts.number() / 1000)  # the service answers all of them
        said = -1
        while not self._done.wait(period):
            try:
                now = self._round
                if self._at is not None:
                    continue
                if self._asked and said < now:
                    hosts.tell(f'{self._name}/{now}/why', self._asked)
                    said = now
                if wishes := hosts.told(f'{self._name}/{now}/why'):
                    self._agree(now, wishes[min(wishes)])
            except Exception:
                return  # the service has ended, and with it the run

    def _agree(self, now: int, why: str) -> None:
        key = f'{self._name}/{now}'
        with self._lock:  # no step is begun meanwhile
            hosts.tell(f'{key}/step', str(self._step))
            if hosts.index() == 0:
                steps = [
                    int(hosts.heard(f'{key}/step', i, PATIENCE)) for i in range(hosts.number())
                ]
                hosts.tell(f'{key}/at', f'{max(steps) + 1} {why}')
            at, _, self._why = hosts.heard(f'{key}/at', 0, PATIENCE).partition(' ')
            self._at = int(at)


@functools.cache
def called(name: str) -> Meeting:
    """The meeting of a name: what is asked for in one leg of a run may be reached in the next."""
    return Meeting(name)
