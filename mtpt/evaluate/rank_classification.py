"""Rank classification: the answer is the choice that the model finds likeliest.

As T0 has it (Sanh et al. 2021, section 5): the score of a choice c for an input x is the sum over
its tokens, EOS included, of log p(c_t | x, c_<t), and nothing is divided by its length unless
asked for. An input is encoded once for all its choices; their number may differ from one example
to the next.

B rows  S encoder positions  T decoder positions  Q (example, choice) pairs  D model width
G segments of a row
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtpt.config import UserError
from mtpt.evaluate import batches
from mtpt.mesh import act
from mtpt.model.decode import log_probs
from mtpt.model.functional import decode, encode

Item = tuple[Sequence[int], Sequence[Sequence[int]]]  # input ids, the ids of each choice with EOS
Progress = Callable[[int], None]

LEAST = 16, 4  # the shortest padded lengths of inputs and choices
MOST_CHOICES = 64  # of one encoded row; an example with more is encoded again
MOST_LOGITS = 1 << 26  # of one batch on one device: 256 MB in float32


@functools.partial(jax.jit, static_argnames='cfg')
def log_likelihood(
    cfg, params, inputs_BS, segments_BS, row_Q, targets_QT, real_QT, tasks_BG=None
) -> jax.Array:
    """The log-likelihood of each pair's target, given the row of `inputs_BS` that `row_Q` names.

    Args:
      cfg: the model's.
      params: the model's.
      inputs_BS: token ids of the inputs.
      segments_BS: 1 on tokens, 0 on padding.
      row_Q: for each pair the row of its input, counted within the device's own rows: encoded
        inputs never cross devices.
      targets_QT: token ids of the choices, EOS included.
      real_QT: 1 on the tokens of a choice, 0 on padding.
      tasks_BG: the id of the task of each input, 0 where unknown (G = 1).
    """
    encoded = encode(cfg, params, inputs_BS, segments_BS, tasks_BG)

    @functools.partial(jax.shard_map, out_specs=act('B'))
    def share(encoded, row_Q):
        return jax.tree.map(lambda x: x[row_Q], encoded)

    before_QT = jnp.pad(targets_QT, ((0, 0), (1, 0)))[:, :-1]
    logits_QTV = decode(cfg, params, share(encoded, row_Q), before_QT, real_QT)
    log_p_QT = log_probs(logits_QTV, targets_QT)
    return jax.reshard(jnp.sum(jnp.where(real_QT > 0, log_p_QT, 0), -1), jax.P())


def scores(
    cfg: Any,
    params: Any,
    items: Sequence[Item],
    batch_tokens: int,
    progress: Progress | None = None,
    tasks: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """The log-likelihood of every choice of every item, float32.

    Equal choices of an item are computed once, so that they tie exactly.

    Args:
      cfg: the model's.
      params: the model's, on the mesh that is set.
      items: for each example its input ids and the ids of its choices (EOS included).
      batch_tokens: the most positions of a batch on one device: encoder and decoder, summed over
        pairs.
      progress: called after each batch with the number of pairs it scored.
      tasks: the id of the task of each item, for models that route by task; 0 where unknown.

    Raises:
      UserError: an item without choices, a choice without tokens, a score that is not finite.
    """
    choices = [distinct(options) for _, options in items]
    if not all(options and all(options) for options in choices):
        raise UserError(
            'rank classification needs at least one choice, and no choice without tokens'
        )
    found = [np.full(len(options), -np.inf, np.float32) for options in choices]
    mesh = batches.mesh_of(params)
    with jax.set_mesh(mesh):
        work = _batches(
            [ids for ids, _ in items], choices, batch_tokens, batches.shards(mesh), cfg.V, tasks
        )
        results = (
            (owners, log_likelihood(cfg, params, *[batches.spread(a, mesh) for a in arrays]))
            for owners, arrays in work
        )
        for owners, value_Q in batches.late(results):
            for slot, item, first, last in owners:
                found[item][first:last] = value_Q[slot : slot + last - first]
            if progress:
                progress(sum(last - first for _, _, first, last in owners))
    if not all(np.isfinite(values).all() for values in found):
        raise UserError(
            'the log-likelihood of a choice is not finite: the parameters hold NaN or infinite '
            'numbers; evaluate an earlier checkpoint'
        )
    return [_spell_out(*pair) for pair in zip(found, (options for _, options in items))]


def distinct(choices: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The choices that differ, in the order of their first appearance."""
    return list(dict.fromkeys(map(tuple, choices)))


def _spell_out(values, choices):
    """From the scores of the distinct choices to those of all choices."""
    place = {choice: i for i, choice in enumerate(distinct(choices))}
    return values[[place[tuple(choice)] for choice in choices]]


def _batches(inputs, choices, batch_tokens, n, V, tasks) -> Iterator[tuple[list, tuple]]:
    """Batches of few shapes, each with the (slot, item, first choice, last choice) it holds."""
    shapes = [
        (
            batches.rounded(len(ids), LEAST[0], steps=2),
            batches.rounded(max(map(len, options)), LEAST[1]),
        )
        for ids, options in zip(inputs, choices)
    ]
    groups = batches.grouped(
        shapes,
        weights=[len(options) for options in choices],
        fits=lambda a, b: a[0] <= b[0] and a[1] <= b[1],
        cost=sum,
    )
    for (S, T), items in groups.items():
        needed = sum(len(choices[i]) for i in items)
        Q = batches.floored(min(batch_tokens / (S + T), MOST_LOGITS / (T * V)))
        Q = min(Q, batches.rounded(-(-needed // n), 1))
        most = min(Q, MOST_CHOICES)
        parts = [
            (i, first, min(first + most, len(choices[i])))
            for i in items
            for first in range(0, len(choices[i]), most)
        ]
        # Examples of few and of many choices are mixed: each batch needs as many rows as the next.
        np.random.default_rng(0).shuffle(parts)
        step = max(8, Q // 16)
        B = min(Q, -(-len(parts) * Q // (needed * step)) * step)
        bins = list(_bins(parts, B, Q))
        for start in range(0, len(bins), n):
            yield _batch(bins[start : start + n], inputs, choices, tasks, (n, B, Q, S, T))


def _bins(parts, B, Q) -> Iterator[list[tuple[int, int, int]]]:
    """What each device takes at a time, as (item, first choice, last choice): B items, Q pairs."""
    held, room = [], Q
    for part in parts:
        need = part[2] - part[1]
        if need > room or len(held) == B:
            yield held
            held, room = [], Q
        held.append(part)
        room -= need
    yield held


def _batch(bins, inputs, choices, tasks, shape):
    """The arrays of `log_likelihood` for n devices, and who owns which slot of them."""
    n, B, Q, S, T = shape
    inputs_BS, segments_BS = np.zeros((n * B, S), np.int32), np.zeros((n * B, S), np.int32)
    targets_QT, real_QT = np.zeros((n * Q, T), np.int32), np.zeros((n * Q, T), np.int32)
    row_Q, owners = np.zeros(n * Q, np.int32), []
    tasks_BG = np.zeros((n * B, 1), np.int32)
    segments_BS[:, 0] = 1  # attention over nothing has no value
    for d, held in enumerate(bins):
        slot = d * Q
        for row, (item, first, last) in enumerate(held):
            ids = inputs[item]
            inputs_BS[d * B + row, : len(ids)] = ids
            segments_BS[d * B + row, : len(ids)] = 1
            tasks_BG[d * B + row] = tasks[item] if tasks is not None else 0
            owners.append((slot, item, first, last))
            for choice in choices[item][first:last]:
                targets_QT[slot, : len(choice)] = choice
                real_QT[slot, : len(choice)] = 1
                row_Q[slot] = row
                slot += 1
    return owners, (inputs_BS, segments_BS, row_Q, targets_QT, real_QT, tasks_BG)


def predict(score_O: np.ndarray) -> int:
    """The index of the best choice; of equal ones the lowest."""
    return int(np.argmax(score_O))


def _sum(score_O, empty_O, tokens_O, bytes_O):
    return score_O


def _mean(score_O, empty_O, tokens_O, bytes_O):
    return score_O / tokens_O


def _bytes(score_O, empty_O, tokens_O, bytes_O):
    return score_O / np.maximum(bytes_O, 1)


def _pmi(score_O, empty_O, tokens_O, bytes_O):
    return score_O - empty_O


# What is compared: the sum of log-probabilities (T0), its mean over tokens (EOS included), over
# the bytes of the choice's text, or what the input adds to the score of the choice after an empty
# input (Holtzman et al. 2021).
NORMALISATIONS = dict(sum=_sum, mean=_mean, bytes=_bytes, pmi=_pmi)
