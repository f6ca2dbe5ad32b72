"""Greedy answers to many inputs, in batches of a few shapes.

B rows  S encoder positions  T decoder positions
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mtpt.evaluate import batches
from mtpt.model import decode

LEAST = 16


def generate(
    cfg: Any,
    params: Any,
    inputs: Sequence[Sequence[int]],
    max_length: int,
    batch_tokens: int,
    eos: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The greedy answer to each input: token ids up to EOS, which is included where it was reached.

    Args:
      cfg: the model's.
      params: the model's, on the mesh that is set.
      inputs: token ids.
      max_length: the most tokens of an answer.
      batch_tokens: the most positions of a batch on one device, of inputs and answers together.
      eos: the id that ends an answer.
      progress: called after each batch with the number of answers it made.
    """
    answers: list[list[int]] = [[] for _ in inputs]
    mesh = batches.mesh_of(params)
    with jax.set_mesh(mesh):
        work = _batches(inputs, max_length, batch_tokens, batches.shards(mesh), eos)
        results = (
            (
                items,
                jax.reshard(
                    decode.greedy(cfg, params, batches.spread(rows, mesh), max_length, eos), jax.P()
                ),
            )
            for items, rows in work
        )
        for items, tokens_BT in batches.late(results):
            for item, row in zip(items, tokens_BT):
                end = np.flatnonzero(row == eos)
                answers[item] = row[: end[0] + 1 if len(end) else len(row)].tolist()
            if progress:
                progress(len(items))
    return answers


def _batches(inputs, max_length, batch_tokens, n, eos):
    """Batches of inputs of like length, and whose they are; spare rows ask nothing."""
    groups = batches.grouped(
        [(batches.rounded(len(ids), LEAST),) for ids in inputs],
        weights=[1] * len(inputs),
        fits=lambda a, b: a[0] <= b[0],
        cost=lambda shape: shape[0] + max_length,
    )
    for (S,), items in groups.items():
        B = n * min(
            batches.floored(batch_tokens / (S + max_length)),
            batches.rounded(-(-len(items) // n), 1),
        )
        for start in range(0, len(items), B):
            part = items[start : start + B]
            rows = np.zeros((B, S), np.int32)
            rows[:, 0] = eos
            for row, item in zip(rows, part):
                row[: len(inputs[item])] = inputs[item]
            yield part, rows
