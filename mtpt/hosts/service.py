"""What the processes of a run say to each other, and waiting for all: JAX's coordination service.

Asks no devices, and serves a process that is alone.
"""

import collections

import jax
from jax._src import distributed  # has no public name; only this package asks it

from mtpt.config import UserError

HOUR = 3600.0

_turns: collections.Counter[str] = collections.Counter()


def number() -> int:
    """How many processes there are; asks no devices."""
    return distributed.global_state.num_processes if client() else 1


def index() -> int:
    """Which process this is, from 0."""
    return distributed.global_state.process_id if client() else 0


def synced() -> bool:
    """Whether JAX listens for preemption here, and has a step at which all processes may stop."""
    return distributed.global_state.preemption_sync_manager is not None


def wait_for_all(name: str, seconds: float = HOUR) -> None:
    """Returns once every process has called it with this name, as often as this one.

    Raises:
      UserError: who did not come within `seconds`.
    """
    if number() == 1:
        return
    turn = turn_of(name)
    tell(f'came/{turn}', '')
    try:
        client().wait_at_barrier(f'mtpt/{turn}', _milliseconds(seconds))
    except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE' not in str(error):
            raise
        late = sorted(set(range(number())) - set(told(f'came/{turn}')))
        raise UserError(
            f'{spelled(late)} did not come to {name!r} within {seconds:g} s; look at what it last '
            'wrote, and start all processes again'
        ) from None


def tell(key: str, text: str) -> None:
    """Says something to the other processes, under a key of this process's own."""
    client().key_value_set(f'mtpt/{key}/{index()}', text, allow_overwrite=True)


def forget(key: str) -> None:
    """Clears what was said under a key, and under all that begin with it and a slash."""
    client().key_value_delete(f'mtpt/{key}')


def told(key: str) -> dict[int, str]:
    """What was said so far under a key, by the number of who said it."""
    found = client().key_value_dir_get(f'mtpt/{key}/')
    keys = {name.removeprefix(f'mtpt/{key}/'): text for name, text in found}
    return {int(name): text for name, text in keys.items() if name.isdecimal()}


def heard(key: str, process: int, seconds: float) -> str:
    """What a process says under a key; waits until it does.

    Raises:
      UserError: it said nothing within `seconds`.
    """
    try:
        return client().blocking_key_value_get(f'mtpt/{key}/{process}', _milliseconds(seconds))
    except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE' not in str(error):
            raise
        raise UserError(
            f'{spelled([process])} said nothing of {key!r} within {seconds:g} s; look at what it '
            'last wrote, and start all processes again'
        ) from None


def spelled(processes: list[int]) -> str:
    """Processes by number and host: 'process 3 on node-b'."""
    names = told('host')
    each = [f'process {i} on {names[i]}' if i in names else f'process {i}' for i in processes]
    return ', '.join(each)


def client():
    """JAX's client of the service, None for a process that is alone."""
    return distributed.global_state.client


def turn_of(name: str) -> str:
    """Names serve once in the service: the next use has the next number."""
    _turns[name] += 1
    return f'{name}/{_turns[name]}'


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
