"""The log-probability of each token of given targets, in batches of few shapes.

B rows  S encoder positions  T decoder positions  G segments of a row  V vocabulary
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtpt.evaluate import batches
from mtpt.model.decode import log_probs
from mtpt.model.functional import decode, encode

LEAST = 16, 4  # the shortest padded lengths of inputs and targets
MOST_LOGITS = 1 << 26  # of one batch on one device: 256 MB in float32

Pair = tuple[Sequence[int], Sequence[int]]


@functools.partial(jax.jit, static_argnames='cfg')
def target_log_probs(cfg, params, inputs_BS, targets_BT, tasks_BG) -> jax.Array:
    """log p(t | inputs, the targets before it) of each target token [B, T], in float32.

    One example a row; 0 is padding, where the result means nothing.
    """
    encoded = encode(cfg, params, inputs_BS, (inputs_BS > 0).astype(jnp.int32), tasks_BG)
    before_BT = jnp.pad(targets_BT, ((0, 0), (1, 0)))[:, :-1]
    real_BT = (targets_BT > 0).astype(jnp.int32)
    logits_BTV = decode(cfg, params, encoded, before_BT, real_BT)
    return jax.reshard(log_probs(logits_BTV, targets_BT), jax.P())


def by_token(
    cfg: Any,
    params: Any,
    pairs: Sequence[Pair],
    batch_tokens: int,
    tasks: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """For each pair of inputs and targets, the log-probability of each token of the targets.

    Natural logarithms, float32.

    Args:
      cfg: the model's.
      params: the model's, on the mesh that is set.
      pairs: token ids of inputs and targets, which hold no padding; EOS is a token like others.
      batch_tokens: the most positions of a batch on one device, of both sides.
      tasks: the id of the task of each pair, for models that route by task; 0 where unknown.
      progress: called after each batch with the number of pairs it scored.
    """
    found = [np.zeros(0, np.float32) for _ in pairs]
    mesh = batches.mesh_of(params)
    with jax.set_mesh(mesh):
        work = _batches(pairs, tasks, batch_tokens, mesh, cfg.V)
        results = ((items, target_log_probs(cfg, params, *arrays)) for items, arrays in work)
        for items, log_p_BT in batches.late(results):
            for item, log_p_T in zip(items, log_p_BT):
                found[item] = log_p_T[: len(pairs[item][1])]
            if progress:
                progress(len(items))
    return found


def _batches(pairs, tasks, batch_tokens, mesh, V) -> Iterator[tuple[list[int], list]]:
    """Whose the rows are, and inputs, targets and tasks; spare rows ask nothing."""
    n = batches.shards(mesh)
    groups = batches.grouped(
        [tuple(batches.rounded(len(ids), at) for ids, at in zip(pair, LEAST)) for pair in pairs],
        weights=[1] * len(pairs),
        fits=lambda a, b: a[0] <= b[0] and a[1] <= b[1],
        cost=sum,
    )
    for (S, T), items in groups.items():
        most = batches.floored(min(batch_tokens / (S + T), MOST_LOGITS / (T * V)))
        B = n * min(most, batches.rounded(-(-len(items) // n), 1))
        for start in range(0, len(items), B):
            part = items[start : start + B]
            inputs_BS, targets_BT = np.zeros((B, S), np.int32), np.zeros((B, T), np.int32)
            tasks_BG = np.zeros((B, 1), np.int32)
            inputs_BS[:, 0] = 1  # attention over nothing has no value
            for row, item in enumerate(part):
                inputs, targets = pairs[item]
                inputs_BS[row, : len(inputs)] = inputs
                targets_BT[row, : len(targets)] = targets
                tasks_BG[row] = tasks[item] if tasks is not None else 0
            yield part, [batches.spread(x, mesh) for x in (inputs_BS, targets_BT, tasks_BG)]
