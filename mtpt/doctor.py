"""What this machine offers to a run, what is missing, and what to do about it.

Each check is a function that returns findings; none needs the network, and none can hang: the
accelerator is asked in a process of its own with a time limit.
"""

import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

import rich.box
import rich.console
import rich.table
import rich.text

from mtpt import versions
from mtpt.config import UserError
from mtpt.hosts import places, roll_call
from mtpt.versions import Finding

PATIENCE = 90  # seconds until an accelerator that does not answer counts as hanging
GIB = 2**30
TPU_CARDS = ('0x0027', '0x005e', '0x0062', '0x0063', '0x006f', '0x0076')  # PCI, v2 to 7x


def examine(patience: float = PATIENCE) -> list[Finding]:
    """Examines the whole machine; takes the few seconds in which JAX starts.

    Args:
      patience: seconds to wait for JAX to name its devices.
    """
    here = versions.installed()
    environment = os.environ
    return [
        versions.python(platform.python_version()),
        *versions.dependencies(versions.declared(), here),
        *versions.clashes(here),
        *versions.jax_family(here),
        *devices(ask_devices(patience), patience, hardware()),
        disk(pathlib.Path.cwd()),
        memory(free_memory()),
        cores(),
        data_folder(environment),
        *distributed(environment),
    ]


def main() -> int:
    """Prints the findings as a table; the exit status is 1 where something is bad."""
    console = rich.console.Console()
    with console.status('asking Python, JAX and the machine'):
        found = examine()
    console.print(as_table(found))
    bad, warned = (sum(f.level == level for f in found) for level in ('bad', 'warn'))
    console.print(summary(bad, warned))
    return 1 if bad else 0


def summary(bad: int, warned: int) -> str:
    if not bad and not warned:
        return 'Everything is as it should be.'
    parts = [f'{bad} to mend before a run' * bool(bad), f'{warned} to know about' * bool(warned)]
    return 'Findings: ' + ', '.join(filter(None, parts)) + '.'


def as_table(found: list[Finding]) -> rich.table.Table:
    """The findings as a table for the terminal; texts are shown as they are, never as markup."""
    signs = {'ok': ('ok', 'green'), 'warn': ('warn', 'yellow'), 'bad': ('BAD', 'bold red')}
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column('')
    table.add_column('what', overflow='fold')
    table.add_column('found', overflow='fold')
    table.add_column('what to do', overflow='fold')
    for finding in found:
        text = (finding.name, finding.value, finding.cure)
        table.add_row(rich.text.Text(*signs[finding.level]), *map(rich.text.Text, text))
    return table


# The accelerator, asked from outside.

PROBE = """
import json, jax, jax.numpy as jnp
devices = jax.devices()
total = float(jax.jit(jnp.sum)(jnp.ones(8)))
limits = [(d.memory_stats() or {}).get('bytes_limit') for d in jax.local_devices()]
print('DEVICES ' + json.dumps(dict(
    platform=devices[0].platform, kind=devices[0].device_kind, number=len(devices),
    local=len(limits), bytes=limits[0], right=total == 8)))
"""


def ask_devices(patience: float, probe: str = PROBE) -> dict:
    """What JAX says of its devices, in a process of its own: 'hangs', an 'error', or the answer."""
    process = subprocess.Popen(
        [sys.executable, '-c', probe],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            pass  # stuck inside a driver: it is left behind rather than waited for
        return dict(hangs=True)
    for line in out.splitlines():
        if line.startswith('DEVICES '):
            return json.loads(line.removeprefix('DEVICES '))
    last = (err.strip().splitlines() or [f'status {process.returncode}'])[-1]
    return dict(error=last[:300])


def hardware(root: pathlib.Path = pathlib.Path('/')) -> list[str]:
    """Accelerators that the operating system shows, whether or not JAX can use them."""
    found = []
    if list(root.glob('dev/nvidia[0-9]*')):
        found.append('gpu')
    for vendor in root.glob('sys/bus/pci/devices/*/vendor'):
        try:
            card = vendor.read_text().strip(), (vendor.parent / 'device').read_text().strip()
        except OSError:
            continue
        if card[0] == '0x1ae0' and card[1] in TPU_CARDS:
            found.append('tpu')
            break
    return found


def devices(answer: Mapping, patience: float, present: list[str]) -> list[Finding]:
    """What to make of JAX's answer on a machine where the operating system shows `present`."""
    asked = os.environ.get('JAX_PLATFORMS')
    if answer.get('hangs'):
        cure = (
            'so looks a TPU that another process holds, or one host that waits for the others: end '
            'the other process (lsof /dev/accel* /dev/vfio/* names it), start all hosts together, '
            'or set JAX_PLATFORMS=cpu'
        )
        return [Finding('devices', f'JAX did not answer in {patience:g} s', 'bad', cure)]
    if 'error' in answer:
        cure = 'mend the versions above'
        if asked:
            cure = f'JAX_PLATFORMS={asked} asks for it; unset it to take what is there'
        return [Finding('devices', answer['error'], 'bad', cure)]
    each = f', {answer["bytes"] / GIB:.1f} GiB each' if answer['bytes'] else ''
    value = f'{answer["number"]} x {answer["kind"]} ({answer["platform"]}){each}'
    if answer['local'] != answer['number']:
        value += f', {answer["local"]} of them on this host'
    if not answer['right']:
        return [Finding('devices', value, 'bad', 'a sum of eight ones came out wrong; replace it')]
    if answer['platform'] != 'cpu' or not present:
        return [Finding('devices', value)]
    kind = present[0]
    if asked:
        cure = f'JAX_PLATFORMS={asked} hides the {kind.upper()} of this machine; unset it to use it'
    else:
        extra = {'gpu': 'cuda12', 'tpu': 'tpu'}[kind]
        cure = (
            f"this machine has a {kind.upper()} that JAX does not use: pip install 'jax[{extra}]'"
        )
    return [Finding('devices', value, 'warn', cure)]


# The machine around it.


def disk(folder: pathlib.Path) -> Finding:
    """Room where runs are written by default: the current folder."""
    free = shutil.disk_usage(folder).free
    value = f'{free / GIB:.1f} GiB free in {folder}'
    if not os.access(folder, os.W_OK):
        return Finding(
            'disk', value, 'bad', 'nothing can be written here; give --workdir elsewhere'
        )
    if free < GIB:
        return Finding(
            'disk', value, 'bad', 'a checkpoint may not fit; make room or give --workdir'
        )
    if free < 10 * GIB:
        return Finding('disk', value, 'warn', 'enough for small models; put others elsewhere')
    return Finding('disk', value)


def free_memory() -> int | None:
    """Bytes that a new process may take: of the machine, or of the control group it lives in."""
    found = []
    try:
        lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
        found += [int(s.split()[1]) * 1024 for s in lines if s.startswith('MemAvailable:')]
    except (OSError, ValueError):
        pass
    group = pathlib.Path('/sys/fs/cgroup')
    for limit, used in (
        ('memory.max', 'memory.current'),
        ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes'),
    ):
        try:
            allowed, taken = (int((group / name).read_text()) for name in (limit, used))
        except (OSError, ValueError):
            continue
        found.append(max(0, allowed - taken))
    return min(found, default=None)


def memory(free: int | None) -> Finding:
    if free is None:
        return Finding('memory', 'unknown on this system')
    value = f'{free / GIB:.1f} GiB free'
    if free < 2 * GIB:
        return Finding(
            'memory', value, 'bad', 'the quickstart needs up to 3 GiB; end other programs'
        )
    if free < 4 * GIB:
        return Finding(
            'memory', value, 'warn', 'enough for the quickstart and for little beside it'
        )
    return Finding('memory', value)


def cores() -> Finding:
    has_affinity = hasattr(os, 'sched_getaffinity')
    number = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    machine = platform.machine()
    if number < 2:
        return Finding(
            'cores', f'1 ({machine})', 'warn', 'data and training share it; expect half the speed'
        )
    return Finding('cores', f'{number} ({machine})')


def data_folder(environment: Mapping[str, str]) -> Finding:
    """The folder with data that mixtures on real tasks read."""
    folder = environment.get('MTPT_DATA')
    if not folder:
        return Finding('MTPT_DATA', 'not set; only mixtures of downloaded data need it')
    path = pathlib.Path(folder)
    if not path.is_dir():
        cure = 'no such folder; mend the variable or unset it'
        return Finding('MTPT_DATA', folder, 'bad', cure)
    if not os.access(path, os.R_OK | os.X_OK):
        return Finding('MTPT_DATA', folder, 'bad', 'cannot be read; mend its permissions')
    names = sorted(p.name for p in path.iterdir() if not p.name.startswith('.'))
    if not names:
        return Finding('MTPT_DATA', folder, 'warn', 'the folder is empty')
    more = ', ...' if len(names) > 6 else ''
    return Finding('MTPT_DATA', f'{folder}: {", ".join(names[:6])}{more}')


# Several hosts.


def distributed(environment: Mapping[str, str]) -> list[Finding]:
    """One finding for each set of variables of which something is there, and for process 0."""
    found = []
    for name, launcher in places.PLACES.items():
        here, missing = places.parts(environment, name)
        if not here:
            continue
        if missing:
            value = f'{", ".join(here)} set, {", ".join(missing)} missing'
            bad = set(missing) & set(launcher.needed)
            cure = launcher.cure if bad else places.ALONE + launcher.cure
            found.append(Finding(name, value, 'bad' if bad else 'warn', cure))
            continue
        found.append(_place(name, environment))
    if address := environment.get(places.ADDRESS):
        found.append(coordinator(address, places.value(environment, places.INDEX) == '0'))
    return found


def _place(name: str, environment: Mapping[str, str]) -> Finding:
    """A whole set of variables; its numbers must fit each other."""
    variable, place, number = places.numbers(environment, name)
    if not (place.isdecimal() and number.isdecimal() and int(place) < int(number)):
        cure = f'{variable} must be a number below that of the processes'
        return Finding(name, f'{variable}={place} of {number}', 'bad', cure)
    return Finding(name, f'process {place} of {number}')


def coordinator(address: str, here: bool, seconds: float = 5) -> Finding:
    """Whether process 0 can be reached, from another host; on its own, whether its port is free."""
    try:
        host, port = roll_call.split(address)
        if here:
            with socket.create_server(('', port)):
                return Finding('coordinator', f'{address}: the port is free on this host')
        with socket.create_connection((host, port), timeout=seconds):
            return Finding('coordinator', f'{address} answers')
    except UserError as error:
        return Finding('coordinator', address, 'bad', str(error))
    except ConnectionRefusedError:
        value = f'{address} refuses: the host is there, and no run has begun'
        return Finding('coordinator', value, 'ok')
    except OSError as error:
        cure = 'the address is that of process 0, and firewalls let its port through'
        if here:
            cure = 'end what has the port, or choose another'
        return Finding('coordinator', f'{address}: {error.strerror or error}', 'bad', cure)
