"""Random numbers by counter: each is a pure function of what it is for, so no state has to be
saved.

K how many numbers are made at once
"""

from typing import Any

import numpy as np

# What a number is for. Two purposes never share a stream.
TASK, ORDER, EXAMPLE, MASK, SHUFFLE = range(1, 6)

_STEP = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): each input bit reaches each output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(*parts: Any) -> np.ndarray:
    """Returns 64 random bits for each tuple of integers; the parts broadcast against each other."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        word = np.uint64(part & _WORD) if isinstance(part, int) else np.asarray(part).astype('u8')
        state = _mix((state ^ word) + np.uint64(_STEP))
    return state


def uniform(*parts: Any) -> np.ndarray:
    """Returns float64 numbers in [0, 1), one for each tuple of integers."""
    return (bits(*parts) >> np.uint64(11)) * 2.0**-53


def permute(x_K: np.ndarray, n_K: np.ndarray, key_K: np.ndarray) -> np.ndarray:
    """Sends x in [0, n) to its place in a random order of n things, without writing the order down.

    A Feistel network over the next power of four, walked until the place lies below n (Black and
    Rogaway 2002). Each element may have its own n and key.
    """
    n_K = n_K.astype(np.uint64)
    top = np.maximum(n_K, 2) - np.uint64(1)
    half = ((np.floor(np.log2(top.astype(np.float64))) + 2) // 2).astype(np.uint64)
    out = _feistel(x_K.astype(np.uint64), half, key_K)
    outside = np.flatnonzero(out >= n_K)
    while outside.size:
        out[outside] = _feistel(out[outside], half[outside], key_K[outside])
        outside = outside[out[outside] >= n_K[outside]]
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for turn in range(1, 7):
        word = _mix(right + key + np.uint64(turn * _STEP & _WORD)) & mask
        left, right = right, left ^ word
    return (left << half) | right


def pick(rates: np.ndarray, u_K: np.ndarray) -> np.ndarray:
    """Picks an index for each u in [0, 1) in proportion to `rates`; never one of rate 0."""
    edges = np.cumsum(rates, dtype=np.float64)
    return np.searchsorted(edges, u_K * edges[-1], side='right')


def rank(x_K: np.ndarray) -> np.ndarray:
    """Counts, for each element, the equal ones before it."""
    order = np.argsort(x_K, kind='stable')
    ordered = x_K[order]
    first = np.searchsorted(ordered, ordered, side='left')
    out = np.empty(x_K.size, np.int64)
    out[order] = np.arange(x_K.size) - first
    return out
