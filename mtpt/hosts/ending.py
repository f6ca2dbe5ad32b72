"""How the processes of a run end together: one that fails says why, and the others hear it."""

import contextlib
import json
import os
import sys
import time

import jax

from mtpt import statuses
from mtpt.config import UserError
from mtpt.hosts import roll_call
from mtpt.hosts.service import HOUR, index, number, spelled, tell, told, wait_for_all

LINGER = 5.0  # seconds in which the others hear why this process ends
LOST = ('Gloo', 'UNAVAILABLE', 'Connection', 'Socket', 'DEADLINE_EXCEEDED', 'NCCL', 'heartbeat')

_broken = False


def leave(status: int) -> None:
    """Ends this process, if it is one of several, with a status.

    At once where its run broke off, since the usual end waits for all others in vain. Else all
    leave the service together; but even then not through Python's own end, which would tear threads
    that listen to the service out of its calls, and abort.
    """
    if number() == 1:
        return
    if not _broken:
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def ended(error: BaseException) -> BaseException:
    """Tells the others why this process ends; gives what is to be raised here."""
    global _broken
    _broken = True
    status, text = status_of(error), sentence(error)
    together = getattr(error, 'agreed', False)
    if _is_lost(error):
        status = statuses.REQUEUE
        text = f'another process of the run is gone ({text[:200]}); started again, it goes on'
        roll_call.on_stderr(text)
        error, together = SystemExit(status), False
    with contextlib.suppress(Exception):
        if not together:  # one that all agreed on is no news
            tell('left', json.dumps([status, text]))
        wait_for_all('end', HOUR if together else LINGER)
        _broken = False
    return error


def listen() -> None:
    """Ends this process when another one has ended by an error: it would wait for it in vain."""
    while True:
        time.sleep(max(1.0, number() / 500))  # process 0 answers all of them
        try:
            left = told('left')
        except Exception:
            return  # the service has ended, and with it the run
        gone = sorted(left.keys() - {index()})
        if not gone or index() in left:
            continue
        # It may come to an end of its own, with its own words. Process 0 has the service: last out.
        time.sleep(LINGER * (0.5 if index() else 1.5))
        if index() in told('left'):
            return
        status, text = json.loads(left[gone[0]])
        roll_call.on_stderr(f'{spelled(gone[:1])} has ended: {text}')
        sys.stdout.flush()
        os._exit(status or statuses.FAULT)


def status_of(error: BaseException) -> int:
    """The exit status that an error means."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else statuses.FAULT
    if isinstance(error, KeyboardInterrupt):
        return statuses.INTERRUPTED
    if isinstance(error, UserError | statuses.Ended):
        return getattr(error, 'status', statuses.BAD_INPUT)
    return statuses.FAULT


def _is_lost(error: BaseException) -> bool:
    known = isinstance(error, jax.errors.JaxRuntimeError | ValueError | OSError)
    return known and any(word in str(error) for word in LOST)


def sentence(error: BaseException) -> str:
    """An error on one line."""
    said = ' '.join(str(error).split())[:1000]
    plain = isinstance(error, UserError | statuses.Ended)
    return said if plain else f'{type(error).__name__}: {said}'
