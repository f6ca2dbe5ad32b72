"""Answers to many inputs, in batches of a few shapes: greedy, drawn, searched for, or chosen.

B rows  S encoder positions  T decoder positions  G segments of a row  O answer choices
n answers of a row
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtpt.config import UserError
from mtpt.evaluate import batches
from mtpt.model.decode import Sampling, greedy, sample
from mtpt.model.search import beam_search

LEAST = 16
LEAST_CHOICES = 4, 2  # the shortest padded lengths of choices, and the fewest
# What a setting is at least and at most. Lengths to the power of a larger penalty leave float32,
# and of larger seeds the generator would take a part.
RANGES = dict(
    seed=(0, (1 << 32) - 1),
    beams=(0, math.inf),
    number=(1, math.inf),
    temperature=(1e-4, 1e4),
    length_penalty=(-5.0, 5.0),
)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are written; as it stands, the likeliest token each time.

    sample: draw tokens instead, after `temperature`, `top_k` and `top_p` (`decode.Sampling`), from
      `seed`.
    beams: look for the likeliest answer with so many beams; 0 does not, and among choices takes as
      many as there are choices, which finds the likeliest choice.
    length_penalty: what is compared is the log-probability over length ** length_penalty; None is
      1, and 0 among choices.
    early_stopping: a search ends with as many answers as beams, and not when none can be better.
    number: answers to an input, the best first where they are searched for.
    """

    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    beams: int = 0
    length_penalty: float | None = None
    early_stopping: bool = False
    number: int = 1

    def __post_init__(self):
        _ = self.sampling
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # NaN is in no range
                bounds = f'at least {least}' + (f' and at most {most}' if most < math.inf else '')
                raise UserError(f'{name}={value} must be {bounds}')
        if self.sample and (self.beams or self.length_penalty is not None or self.early_stopping):
            raise UserError(
                'sample draws tokens and beams, length_penalty and early_stopping are of a search '
                'that draws nothing; leave one or the other out'
            )
        drawing = [f for f in ('temperature', 'top_k', 'top_p', 'seed') if self._set(f)]
        if drawing and not self.sample:
            raise UserError(f'{drawing[0]} is of drawn answers; add sample, or leave it out')

    def _set(self, name: str) -> bool:
        return getattr(self, name) != getattr(type(self), name)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)

    def check(self, choices: int, vocabulary: int | None = None) -> None:
        """Checks what hangs on the choices of an input (0: answers are free) and the vocabulary.

        Raises:
          UserError: settings that say nothing without beams, or with choices; too many answers or
            beams.
        """
        if choices and self.sample:
            raise UserError('sample draws tokens freely and choices bind them; leave one out')
        if choices and self.number > choices:
            raise UserError(
                f'number={self.number} answers cannot be had from {choices} choices; set '
                f'number={choices}'
            )
        if choices or self.sample:
            most = self.beams or self.number
        else:
            most = max(self.beams, 1)
        if self.number > most:
            raise UserError(
                f'number={self.number} answers need sample, or at least beams={self.number}'
            )
        if not choices and self.beams < 2:
            for name in ('length_penalty', 'early_stopping'):
                if self._set(name):
                    raise UserError(f'{name} is of a search; set beams=2 or more, or leave it out')
        if vocabulary and not choices and 2 * self.beams > vocabulary:
            raise UserError(
                f'beams={self.beams} must be at most {vocabulary // 2}, half of the vocabulary'
            )


GREEDY = Decoding()


class Answer(NamedTuple):
    """Token ids up to EOS, which is included where it was reached, and a score from a search."""

    ids: list[int]
    score: float | None = None


def generate(
    cfg: Any,
    params: Any,
    inputs: Sequence[Sequence[int]],
    max_length: int,
    batch_tokens: int,
    eos: int,
    progress: Callable[[int], None] | None = None,
    tasks: Sequence[int] | None = None,
) -> list[list[int]]:
    """The greedy answer to each input, as `answers` gives it."""
    found = answers(
        cfg, params, inputs, max_length, batch_tokens, eos, progress=progress, tasks=tasks
    )
    return [answer.ids for (answer,) in found]


def answers(
    cfg: Any,
    params: Any,
    inputs: Sequence[Sequence[int]],
    max_length: int,
    batch_tokens: int,
    eos: int,
    how: Decoding = GREEDY,
    choices: Sequence[Sequence[Sequence[int]]] | None = None,
    progress: Callable[[int], None] | None = None,
    tasks: Sequence[int] | None = None,
) -> list[list[Answer]]:
    """`how.number` answers to each input, or as many as were found.

    What is drawn for an input hangs on the seed and on its place among the inputs, and not on how
    they are put into batches.

    Args:
      cfg: the model's.
      params: the model's, on the mesh that is set.
      inputs: token ids.
      max_length: the most tokens of an answer; with choices, the longest of them sets it.
      batch_tokens: the most positions of a batch on one device, of inputs and answers together.
      eos: the id that ends an answer.
      how: greedy decoding, sampling or beam search.
      choices: for each input the only answers allowed, token ids that end with `eos`.
      progress: called after each batch with the number of inputs it answered.
      tasks: the id of the task of each input, for models that route by task; 0 where unknown.

    Raises:
      UserError: settings that do not go together, an input without choices, or one to which no
        answer has a finite score.
    """
    if choices is not None and not all(options and all(options) for options in choices):
        raise UserError('an input needs at least one choice to choose from, each with tokens')
    for count in {0} if choices is None else {len(set(map(tuple, c))) for c in choices}:
        how.check(count, cfg.V)
    found: list[list[Answer]] = [[] for _ in inputs]
    mesh = batches.mesh_of(params)
    with jax.set_mesh(mesh):
        work = _batches(inputs, choices, max_length, batch_tokens, mesh, eos, how, tasks)
        results = (
            (items, jax.reshard(_decoded(cfg, params, arrays, T, eos, how), jax.P()))
            for items, T, arrays in work
        )
        for items, (tokens_BnT, score_Bn) in batches.late(results):
            for row, item in enumerate(items):
                scores = [None] * how.number if score_Bn is None else score_Bn[row]
                found[item] = [_answer(*pair, eos) for pair in zip(tokens_BnT[row], scores)]
                found[item] = [a for a in found[item] if a.score != -np.inf]
                if not found[item]:
                    raise UserError(
                        f'input {item + 1} has no answer of finite probability: the parameters '
                        'hold NaN or infinite numbers; take an earlier checkpoint'
                    )
            if progress:
                progress(len(items))
    return found


def _answer(tokens_T: np.ndarray, score: float | None, eos: int) -> Answer:
    end = np.flatnonzero(tokens_T == eos)
    ids = tokens_T[: end[0] + 1 if len(end) else len(tokens_T)].tolist()
    return Answer(ids, None if score is None else float(score))


def _decoded(cfg, params, arrays, T, eos, how) -> tuple[jax.Array, jax.Array | None]:
    """Tokens_BnT of a batch, and scores_Bn where something was searched for."""
    tokens_BS, tasks_BG, item_B, choices_BOT = arrays
    if choices_BOT is not None or how.beams > 1:
        beams = how.beams or choices_BOT.shape[1]
        penalty = how.length_penalty
        if penalty is None:
            penalty = 1.0 if choices_BOT is None else 0.0
        return beam_search(
            *(cfg, params, tokens_BS, T, beams, penalty, how.early_stopping),
            choices_BOT=choices_BOT,
            answers=min(how.number, beams),
            eos=eos,
            tasks_BG=tasks_BG,
        )
    if how.sample:
        key = jax.random.key(how.seed)
        tokens_BnT = sample(
            *(cfg, params, tokens_BS, T, key, item_B, how.sampling, how.number),
            eos=eos,
            tasks_BG=tasks_BG,
        )
    else:
        tokens_BnT = greedy(cfg, params, tokens_BS, T, eos, tasks_BG=tasks_BG)[:, None]
    return tokens_BnT, None


def _batches(
    inputs, choices, max_length, batch_tokens, mesh, eos, how, tasks
) -> Iterator[tuple[list[int], int, tuple]]:
    """Whose the rows are, the length of answers, and arrays; spare rows ask nothing.

    The arrays are the inputs, their tasks, their numbers, and choices or None.
    """
    n = batches.shards(mesh)
    shapes = []
    for item, ids in enumerate(inputs):
        shape = (batches.rounded(len(ids), LEAST),)
        if choices is not None:
            longest = max(map(len, choices[item]))
            shape += (batches.rounded(longest, LEAST_CHOICES[0]),)
            shape += (batches.rounded(len(choices[item]), LEAST_CHOICES[1]),)
        shapes.append(shape)

    def width(shape):
        free = how.number if how.sample else 1
        return how.beams or (shape[2] if choices is not None else free)

    def cost(shape):
        return width(shape) * (shape[0] + (max_length if choices is None else shape[1]))

    groups = batches.grouped(
        shapes,
        weights=[1] * len(inputs),
        fits=lambda a, b: all(x <= y for x, y in zip(a, b)),
        cost=cost,
    )
    for shape, items in groups.items():
        B = n * min(
            batches.floored(batch_tokens / cost(shape)),
            batches.rounded(-(-len(items) // n), 1),
        )
        for start in range(0, len(items), B):
            part = items[start : start + B]
            arrays = [
                _padded([inputs[i] for i in part], (B, shape[0])),
                _padded([[tasks[i] if tasks is not None else 0] for i in part], (B, 1)),
                _padded(part, (B,)),
            ]
            arrays[0][arrays[0][:, 0] == 0, 0] = eos  # attention over nothing has no value
            T = max_length
            if choices is not None:
                _, T, most = shape
                each = [_padded(choices[i], (most, T)) for i in part]
                arrays.append(_padded(each, (B, most, T)))
            arrays = [batches.spread(x, mesh) for x in arrays]
            yield part, T, (*arrays, *[None] * (4 - len(arrays)))


def _padded(values: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Numbers, or rows of them, with zeros behind."""
    out = np.zeros(shape, np.int32)
    for i, value in enumerate(values):
        if len(shape) == 1:
            out[i] = value
        else:
            out[i][: len(value)] = value
    return out
