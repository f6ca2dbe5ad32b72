"""How the processes of a run write one checkpoint: when one of them fails, all hear of it.

Orbax lets the others wait for the one that failed, for twenty minutes. Here they stop waiting as
soon as it says so, and all are ready for the next save.
"""

import itertools
import time

from mtpt import hosts

_counted = itertools.count()  # of folders that a process writes to, each with keys of its own


class Together:
    """Where the processes that write meet, save by save."""

    def __init__(self):
        self._name, self._save = f'writing/{next(_counted)}', 0

    def begin(self) -> None:
        """Begins another save, on all processes."""
        self._save += 1

    def failed(self, why: str) -> None:
        """Tells the others that this process could not write its part."""
        if hosts.number() > 1:
            hosts.tell(f'{self._name}/{self._save}/failed', why)

    def meet(self, *, key: str, timeout_ms: int) -> None:
        """Returns once all processes have come here; for Orbax to call, in its threads.

        Raises:
          OSError: another process has failed.
          TimeoutError: another process has not come.
        """
        if hosts.number() == 1 or 'ThreadSave' in key:  # of a flag that each looks at for itself
            return
        at, until = f'{self._name}/{self._save}', time.monotonic() + timeout_ms / 1000
        hosts.tell(f'{at}/{key}', '')
        while len(hosts.told(f'{at}/{key}')) < hosts.number():
            for process, why in hosts.told(f'{at}/failed').items():
                raise OSError(f'{hosts.spelled([process])} could not write: {why}')
            if time.monotonic() > until:
                raise TimeoutError(f'a process did not come to {key}')
            time.sleep(max(0.1, hosts.number() / 500))
