"""One process of many: how the processes of a run join, wait for and hear each other.

JAX finds the coordinator by itself on TPU pods, under SLURM, Open MPI and in Kubernetes; elsewhere
three flags or variables say it. What may take long (a cache that is prepared, a report) is waited
for here, on JAX's coordination service: the collectives of devices give up sooner and say less.
"""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import P
from jax._src import clusters, distributed  # neither has a public name; only this file asks them

from mtpt import statuses
from mtpt.config import UserError
from mtpt.hosts import places, roll_call

HOUR = 3600.0
LINGER = 5.0  # seconds in which the others hear why this process ends
LOST = ('Gloo', 'UNAVAILABLE', 'Connection', 'Socket', 'DEADLINE_EXCEEDED', 'NCCL', 'heartbeat')

_turns: collections.Counter[str] = collections.Counter()
_broken = False


@contextlib.contextmanager
def joined(
    facts: Callable[[], Mapping[str, str]] = dict,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    join_seconds: float = 300.0,
    heartbeat: int = 60,
) -> Iterator[None]:
    """Within it this process is one of those of a run; all end it together.

    If one ends it by an error, all others end too and say which, and why.

    Args:
      facts: gives what must be the same on all hosts, by name; asked only where there are several.
      coordinator: HOST:PORT of process 0.
      processes: how many there are; 1 for alone, whatever the surroundings say.
      process: which one this is, from 0.
      join_seconds: how long the processes wait for each other to start.
      heartbeat: seconds of silence after which a process counts as dead, and all others end.

    Raises:
      UserError: part of a place is known; processes are missing, twice there or different.
    """
    join(facts, coordinator, processes, process, join_seconds, heartbeat)
    try:
        yield
    except BaseException as error:
        if number() == 1:
            raise
        raise _ended(error) from error
    wait_for_all('end')


def join(
    facts: Callable[[], Mapping[str, str]] = dict,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    join_seconds: float = 300.0,
    heartbeat: int = 60,
) -> None:
    """Joins the other processes of a run, if there are any; before anything asks for devices.

    Args and raises: as `joined`, which also ends together.
    """
    for name, value, least in (('join_seconds', join_seconds, 1), ('heartbeat', heartbeat, 5)):
        if value < least:
            raise UserError(f'--{name}={value:g} must be at least {least} (seconds)')
    found = _place(coordinator, processes, process, join_seconds)
    if found is None or found[1] == 1:
        return
    address, processes, process, local = found
    nodes = os.environ.get('SLURM_STEP_NODELIST') or os.environ.get('TPU_WORKER_HOSTNAMES', '')
    where = f'; the launcher names {nodes[:200]}' if nodes else ''
    me = roll_call.entry(process, processes, facts())
    roll_call.take(address, me, join_seconds, roll_call.on_stderr, where)
    jax.distributed.initialize(
        address, processes, process, local,
        cluster_detection_method='deactivate',
        initialization_timeout=max(60, int(join_seconds)),
        heartbeat_timeout_seconds=heartbeat,
    )  # fmt: skip
    tell('host', me.host)
    wait_for_all('joined', join_seconds)
    threading.Thread(target=_listen, daemon=True).start()


def _place(coordinator, processes, process, seconds) -> tuple[str, int, int, Any] | None:
    """(address, number of processes, this one, its devices or None for all), None where alone."""
    if processes == 1 and coordinator is None and not process:
        return None
    given = [x is not None for x in (coordinator, processes, process)]
    if any(given):
        if not all(given):
            raise UserError(
                '--coordinator, --processes and --process go together; give all three, or '
                '--processes=1 to run alone'
            )
        if not 0 <= process < processes:
            raise UserError(f'--process={process} must be from 0, below --processes={processes}')
        return coordinator, processes, process, _local_devices()
    if found := places.said(os.environ):
        return *found, _local_devices() or places.local_device(os.environ)
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, _local_devices(), None, int(seconds)
        )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        said = ' '.join(str(error).split())
        raise UserError(
            f'the launcher of this process does not tell its place: {said}; give --coordinator, '
            '--processes and --process'
        ) from error
    if None in found[:3]:
        places.check_alone(os.environ)
        return None
    return found


def _local_devices() -> list[int] | None:
    said = os.environ.get('JAX_LOCAL_DEVICE_IDS')
    try:
        return [int(n) for n in said.split(',')] if said else None
    except ValueError:
        raise UserError(f'JAX_LOCAL_DEVICE_IDS={said} must be numbers with commas') from None


# Who there is, and waiting for them.


def number() -> int:
    """How many processes there are; asks no devices."""
    return distributed.global_state.num_processes if _client() else 1


def index() -> int:
    """Which process this is, from 0."""
    return distributed.global_state.process_id if _client() else 0


def wait_for_all(name: str, seconds: float = HOUR) -> None:
    """Returns once every process has called it with this name, as often as this one.

    Raises:
      UserError: who did not come within `seconds`.
    """
    if number() == 1:
        return
    turn = _turn(name)
    tell(f'came/{turn}', '')
    try:
        _client().wait_at_barrier(f'mtpt/{turn}', _milliseconds(seconds))
    except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE' not in str(error):
            raise
        late = sorted(set(range(number())) - set(told(f'came/{turn}')))
        raise UserError(
            f'{spelled(late)} did not come to {name!r} within {seconds:g} s; look at what it last '
            'wrote, and start all processes again'
        ) from None


def first(name: str, does: Callable[[], Any], seconds: float = 24 * HOUR) -> None:
    """Process 0 does something while the others wait, however long that takes or how it ends.

    Raises:
      UserError: on the others, what went wrong in process 0.
    """
    if number() == 1:
        does()
        return
    name = f'done/{_turn(name)}'
    if index() == 0:
        try:
            does()
        except BaseException as error:
            tell(name, _text(error) or 'it ended')
            raise
        tell(name, '')
    elif wrong := heard(name, 0, seconds):
        raise UserError(f'{spelled([0])}: {wrong}')


def agree(name: str, facts: Mapping[str, str], seconds: float = HOUR) -> None:
    """Compares facts that are known only now with those of process 0.

    Raises:
      UserError: on all processes, who differs and in what.
    """
    if number() == 1:
        return
    name = f'facts/{_turn(name)}'
    tell(name, json.dumps(dict(facts)))
    wait_for_all(name, seconds)
    names = told('host')
    wrong = roll_call.different(
        {
            i: roll_call.Entry(i, number(), names.get(i, '?'), 0, json.loads(text))
            for i, text in told(name).items()
        }
    )
    if wrong:
        raise UserError(wrong)


def check_shared(*folders: pathlib.Path, seconds: float = 30.0) -> None:
    """Checks that all hosts see one folder under each of these paths.

    Args:
      folders: paths of folders that exist on process 0.
      seconds: in which what process 0 writes must be seen; network file systems take their time.

    Raises:
      UserError: on all processes, who does not see which folder.
    """
    if number() == 1:
        return
    name, token = f'folder/{_turn("folder")}', f'.seen-by-all-{secrets.token_hex(8)}'
    if index() == 0:
        written = [i for i, folder in enumerate(folders) if _marked(folder, token)]
        tell(name, json.dumps([token, written]))
    token, written = json.loads(heard(name, 0, HOUR))
    files = [folders[i] / token for i in written]
    end = time.monotonic() + seconds
    while not all(file.exists() for file in files) and time.monotonic() < end:
        for file in files:
            with contextlib.suppress(OSError):
                os.listdir(file.parent)  # makes NFS look again
        time.sleep(0.2)
    tell(f'{name}/unseen', json.dumps([str(f.parent) for f in files if not f.exists()]))
    wait_for_all(name)
    found = {i: json.loads(text) for i, text in told(f'{name}/unseen').items()}
    for file in files if index() == 0 else ():
        file.unlink(missing_ok=True)
    blind = sorted(i for i, paths in found.items() if paths)
    if blind:
        raise UserError(
            f'{spelled(blind)} do not see what {spelled([0])} writes into '
            f'{", ".join(found[blind[0]])}; give a folder that all hosts share (NFS, Lustre, a '
            'mounted bucket)'
        )


def _marked(folder: pathlib.Path, token: str) -> bool:
    """Leaves a mark in a folder; False where nothing can be written: whoever must will say so."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / token).touch()
    except OSError:
        return False
    return True


def meet(mesh: jax.sharding.Mesh) -> None:
    """Has the devices of all groups that the axes make talk once, while all processes are there.

    Gloo, which the collectives of CPUs go through, waits for 30 s when a group first meets, and
    later as long as it takes; accelerators need none of it. Also checks that all hosts have the
    same devices.
    """
    if number() == 1:
        return
    local = mesh.local_devices
    agree('devices', dict(devices=f'{len(local)} x {local[0].device_kind}' if local else 'none'))
    if mesh.devices.flat[0].platform != 'cpu':
        return
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    groups = [g for n in range(len(axes)) for g in itertools.combinations(axes, n + 1)]

    def talk(x):
        return sum((jax.lax.psum(x, group) for group in groups), x)

    spec = P(tuple(mesh.axis_names))
    x = jax.make_array_from_callback(
        (mesh.size,), jax.sharding.NamedSharding(mesh, spec), lambda i: jnp.ones(1)
    )
    talk = jax.shard_map(talk, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    ready = jax.jit(talk).lower(x).compile()
    wait_for_all('meet')
    jax.block_until_ready(ready(x))


# What processes say to each other.


def tell(key: str, text: str) -> None:
    """Says something to the other processes, under a key of this process's own."""
    _client().key_value_set(f'mtpt/{key}/{index()}', text, allow_overwrite=True)


def told(key: str) -> dict[int, str]:
    """What was said so far under a key, by the number of who said it."""
    found = _client().key_value_dir_get(f'mtpt/{key}/')
    keys = {name.removeprefix(f'mtpt/{key}/'): text for name, text in found}
    return {int(name): text for name, text in keys.items() if name.isdecimal()}


def heard(key: str, process: int, seconds: float) -> str:
    """What a process says under a key; waits until it does.

    Raises:
      UserError: it said nothing within `seconds`.
    """
    try:
        return _client().blocking_key_value_get(f'mtpt/{key}/{process}', _milliseconds(seconds))
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


def _client():
    return distributed.global_state.client


def _turn(name: str) -> str:
    """Names serve once in the service: the next use has the next number."""
    _turns[name] += 1
    return f'{name}/{_turns[name]}'


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


# Ending together.


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


def _ended(error: BaseException) -> BaseException:
    """Tells the others why this process ends; gives what is to be raised here."""
    global _broken
    _broken = True
    status, text = _status(error), _text(error)
    together = status in (statuses.REQUEUE, statuses.INTERRUPTED)
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


def _listen() -> None:
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


def _status(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else statuses.FAULT
    if isinstance(error, KeyboardInterrupt):
        return statuses.INTERRUPTED
    if isinstance(error, UserError):
        return getattr(error, 'status', statuses.BAD_INPUT)
    return statuses.FAULT


def _is_lost(error: BaseException) -> bool:
    known = isinstance(error, jax.errors.JaxRuntimeError | ValueError | OSError)
    return known and any(word in str(error) for word in LOST)


def _text(error: BaseException) -> str:
    said = ' '.join(str(error).split())[:1000]
    return said if isinstance(error, UserError) else f'{type(error).__name__}: {said}'
