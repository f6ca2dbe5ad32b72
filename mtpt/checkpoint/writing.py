"""How the processes of a run write one checkpoint: when one of them fails, all hear of it.

Orbax lets the others wait for the one that failed: for twenty minutes in the background, and for
ever where it has the devices meet. Here they stop waiting as soon as it says so, and all are ready
for the next save.
"""

import collections
import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

from orbax.checkpoint._src.multihost import multihost

from mtpt import hosts

_counted = itertools.count()  # of folders that a process writes to, each with keys of its own
_saving: list['Together'] = []  # whose `saving` the main thread is in
_on_devices = multihost.sync_global_processes


class Together:
    """Where the processes that write meet, save by save."""

    def __init__(self):
        self._name, self._save = f'writing/{next(_counted)}', 0
        self._met: collections.Counter[str] = collections.Counter()
        self._heard = False

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Begins another save, on all processes; within, Orbax has them meet here."""
        self._save += 1
        self._met.clear()
        self._heard = False
        if hosts.number() > 1 and hosts.index() == 0:  # what is over by now fills the service
            hosts.forget(f'{self._name}/{self._save - 2}')
        _saving.append(self)
        try:
            yield
        finally:
            _saving.remove(self)

    def failed(self, why: str) -> None:
        """Tells the others that this process could not write its part."""
        if hosts.number() > 1 and not self._heard:
            hosts.tell(f'{self._name}/{self._save}/failed', why)

    def meet(self, *, key: str, timeout_ms: int) -> None:
        """Returns once all processes have come here; for Orbax to call, also in its threads.

        Raises:
          OSError: another process has failed.
          TimeoutError: another process has not come.
        """
        if hosts.number() == 1 or 'ThreadSave' in key:  # of a flag that each looks at for itself
            return
        at, until = f'{self._name}/{self._save}', time.monotonic() + timeout_ms / 1000
        self._met[key] += 1
        here = f'{at}/{key}/{self._met[key]}'
        hosts.tell(here, '')
        pause, longest = 0.002, max(0.1, hosts.number() / 500)
        while len(hosts.told(here)) < hosts.number():
            for process, why in hosts.told(f'{at}/failed').items():
                self._heard = True
                raise OSError(f'{hosts.spelled([process])} could not write: {why}')
            if time.monotonic() > until:
                raise TimeoutError(f'a process did not come to {key}')
            time.sleep(pause)
            pause = min(longest, 2 * pause)


def _meet(name: str, *, timeout: int | None = None, **how: Any) -> None:
    """In Orbax's place: by the service while a save begins, so that one that fails is heard."""
    if _saving:
        _saving[-1].meet(key=name, timeout_ms=1000 * (timeout or int(hosts.HOUR)))
    else:
        _on_devices(name, timeout=timeout, **how)


multihost.sync_global_processes = _meet
