"""Packs short examples into rows, and writes the batch.

B rows  S encoder positions  T decoder positions  G segments of a row at most
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]


class Example(NamedTuple):
    """One example ready to be placed; `inputs` is None where it had to be dropped."""

    task: int
    counter: int
    inputs: np.ndarray | None
    targets: np.ndarray | None
    trimmed: bool = False


class Shape(NamedTuple):
    """The shape of a batch. `lookahead` is how many examples may wait for the next batch."""

    B: int
    S: int
    T: int
    G: int
    lookahead: int
    pack: bool = True


def fill(
    waiting: list[Example], fresh: Iterator[Example], shape: Shape
) -> tuple[list[list[Example]], list[Example]]:
    """Takes examples in order, each into the first row with room, until `lookahead` of them found
    none.

    `fresh` is advanced exactly as far as needed and must not end. Every example fits an empty row.

    Returns:
      the rows and the examples left over, which come first in the next batch.
    """
    if not shape.pack:
        return [[next(fresh)] for _ in range(shape.B)], []
    G, lookahead = shape.G, shape.lookahead
    rows: list[list[Example]] = [[] for _ in range(shape.B)]
    room_S, room_T = [shape.S] * shape.B, [shape.T] * shape.B
    free = list(range(shape.B))
    left: list[Example] = []
    for example in chain(waiting, fresh):
        S, T = len(example.inputs), len(example.targets)
        for row in free:
            if room_S[row] >= S and room_T[row] >= T:
                break
        else:
            left.append(example)
            if len(left) >= lookahead:
                break
            continue
        rows[row].append(example)
        room_S[row] -= S
        room_T[row] -= T
        if len(rows[row]) == G or room_S[row] <= 1 or room_T[row] <= 1:
            free.remove(row)
    return rows, left


def pack_all(examples: Iterable[Example], shape: Shape) -> list[list[Example]]:
    """Packs a finite set of examples into as many rows as it takes, looking at the last B rows."""
    rows: list[list[Example]] = []
    free: list[tuple[list[Example], list[int]]] = []
    for example in examples:
        S, T = len(example.inputs), len(example.targets)
        for row, room in free:
            if room[0] >= S and room[1] >= T and len(row) < shape.G:
                break
        else:
            row, room = [], [shape.S, shape.T]
            rows.append(row)
            if shape.pack:
                free = [*free[1 - shape.B :], (row, room)] if shape.B > 1 else [(row, room)]
        row.append(example)
        room[0] -= S
        room[1] -= T
    return rows


def assemble(rows: list[list[Example]], shape: Shape) -> Batch:
    """Writes rows of examples as one batch of int32 arrays; segments count from 1, 0 is padding."""
    B = len(rows)
    counts = np.array([len(row) for row in rows])
    total = int(counts.sum())
    row_of = np.repeat(np.arange(B), counts)
    segment = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    tasks = np.zeros((B, shape.G), np.int32)
    tasks[row_of, segment] = [example.task for row in rows for example in row]
    inputs = [example.inputs for row in rows for example in row]
    targets = [example.targets for row in rows for example in row]
    tokens, segments, positions, _ = _lay(inputs, row_of, segment, B, shape.S)
    batch = dict(
        encoder_input_tokens=tokens, encoder_segment_ids=segments, encoder_positions=positions
    )
    tokens, segments, positions, place = _lay(targets, row_of, segment, B, shape.T)
    shifted, weights = np.zeros((2, B * shape.T), np.int32)
    shifted[place[1:]] = tokens.reshape(-1)[place[:-1]]
    shifted[place[positions.reshape(-1)[place] == 0]] = 0
    weights[place] = 1
    return batch | dict(
        decoder_input_tokens=shifted.reshape(B, shape.T),
        decoder_target_tokens=tokens,
        decoder_loss_weights=weights.reshape(B, shape.T),
        decoder_segment_ids=segments,
        decoder_positions=positions,
        segment_task_ids=tasks,
    )


def _lay(parts: list[np.ndarray], row_of, segment, B: int, length: int):
    """Lays sequences side by side in rows: tokens, segment ids, positions, and the places used."""
    sizes = np.array([len(part) for part in parts], np.int64)
    total = int(sizes.sum())
    before = np.cumsum(sizes) - sizes
    first = before[segment == 0]
    within = np.arange(total) - np.repeat(before, sizes)
    start = row_of * length + before
    start -= np.repeat(first, np.bincount(row_of, minlength=B)[np.unique(row_of)])
    place = np.repeat(start, sizes) + within
    out = np.zeros((3, B * length), np.int32)
    if parts:
        out[0, place] = np.concatenate(parts)
        out[1, place] = np.repeat(segment + 1, sizes)
        out[2, place] = within
    tokens, segments, positions = out.reshape(3, B, length)
    return tokens, segments, positions, place
