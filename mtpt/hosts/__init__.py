"""One process of many: how the processes of a run join, wait for and hear each other.

JAX finds the coordinator by itself on TPU pods, under SLURM, Open MPI and in Kubernetes; elsewhere
three flags or variables say it. What may take long (a cache that is prepared, a report) is waited
for here, on JAX's coordination service: the collectives of devices give up sooner and say less.
"""

import contextlib
import itertools
import json
import os
import pathlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import P
from jax._src import clusters  # has no public name; only this package asks it

from mtpt.config import UserError
from mtpt.hosts import places, roll_call
from mtpt.hosts.ending import ended, leave, listen, sentence, status_of
from mtpt.hosts.service import (
    HOUR,
    forget,
    heard,
    index,
    number,
    spelled,
    synced,
    tell,
    told,
    turn_of,
    wait_for_all,
)

__all__ = [
    'HOUR', 'agree', 'check_shared', 'first', 'forget', 'heard', 'index', 'join', 'joined', 'leave',
    'meet', 'number', 'one_at_a_time', 'spelled', 'synced', 'tell', 'told', 'wait_for_all',
]  # fmt: skip


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
        raise ended(error) from error
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
    # Programs under way at once may meet in another order in each process; Gloo then waits forever.
    jax.config.update('jax_cpu_enable_async_dispatch', False)
    jax.distributed.initialize(
        address, processes, process, local,
        cluster_detection_method='deactivate',
        initialization_timeout=max(60, int(join_seconds)),
        heartbeat_timeout_seconds=heartbeat,
    )  # fmt: skip
    tell('host', me.host)
    wait_for_all('joined', join_seconds)
    threading.Thread(target=listen, daemon=True).start()


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


def first(name: str, does: Callable[[], Any], seconds: float = 24 * HOUR) -> None:
    """Process 0 does something while the others wait, however long that takes or how it ends.

    Raises:
      UserError: on the others, what went wrong in process 0.
    """
    if number() == 1:
        does()
        return
    name = f'done/{turn_of(name)}'
    if index() == 0:
        try:
            does()
        except BaseException as error:
            tell(name, json.dumps([status_of(error), sentence(error)]))
            raise
        tell(name, '')
    elif wrong := heard(name, 0, seconds):
        status, text = json.loads(wrong)
        error = UserError(f'{spelled([0])}: {text}')
        error.status = status
        raise error


def agree(name: str, facts: Mapping[str, str], seconds: float = HOUR) -> None:
    """Compares facts that are known only now with those of process 0.

    Raises:
      UserError: on all processes, who differs and in what.
    """
    if number() == 1:
        return
    name = f'facts/{turn_of(name)}'
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
    name, token = f'folder/{turn_of("folder")}', f'.seen-by-all-{secrets.token_hex(8)}'
    if index() == 0:
        marked = [i for i, folder in enumerate(folders) if _marked(folder, token)]
        tell(name, json.dumps([token, marked, [str(folders[i]) for i in marked]]))
    token, marked, written = json.loads(heard(name, 0, HOUR))
    files = [folders[i] / token for i in marked]
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
            f'{spelled(blind)} cannot see there what {spelled([0])} writes into its '
            f'{", ".join(written)}: {spelled(blind[:1])} looked into '
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


def one_at_a_time() -> bool:
    """Whether programs that could be under way at once have to be waited for, each.

    On CPUs of several processes they may meet in another order in each, and wait forever.
    """
    return number() > 1 and jax.default_backend() == 'cpu'


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
