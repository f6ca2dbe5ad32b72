"""How much memory is in use, on the devices of this process and of the process itself."""

import pathlib
import resource
import sys

import jax

GB = 1e9
OF_A_DEVICE = dict(
    peak_bytes_in_use='memory/peak_gb',
    bytes_in_use='memory/in_use_gb',
    bytes_limit='memory/limit_gb',
)


def figures() -> dict[str, float]:
    """GB in use now and at most so far, of the fullest device here, and of this process ('host').

    Where the platform does not count (a CPU), there is the process alone.
    """
    found: dict[str, float] = {}
    for device in jax.local_devices():
        for key, name in OF_A_DEVICE.items():
            value = (device.memory_stats() or {}).get(key)
            if value:
                found[name] = max(found.get(name, 0.0), value / GB)
    return found | {'memory/host_gb': resident() / GB}


def resident() -> int:
    """Bytes that this process holds in memory; where that is not told, the most it has held."""
    try:
        pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == 'darwin' else most * 1024
