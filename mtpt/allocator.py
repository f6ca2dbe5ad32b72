"""Memory that a step frees is kept for the next one, not given back and faulted in again."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # from malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed, in one arena; whether it could be told.

    On a CPU, XLA takes the temporary memory of every step from malloc, and glibc gives so much back
    to the system at once: a third of a small model's step goes into faulting pages in again.
    Call it before JAX starts its threads. On anything but glibc it does nothing.
    """
    if not sys.platform.startswith('linux'):
        return False
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))
    return all([mallopt(name, value) for name, value in settings])
