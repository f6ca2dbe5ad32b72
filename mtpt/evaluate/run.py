"""Evaluation: from a model and exam sets to rows of numbers that can be trusted.

A row is one metric of one prompt of one task. Beside its value stand what it must be read against:
its bootstrap interval over examples, chance, the score of always giving the most frequent answer,
the score of answering an empty input (what the model says anyway), and the shares of each answer,
which show a collapse.
"""

import collections
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtpt.config import UserError, choose
from mtpt.evaluate import heads
from mtpt.evaluate.answers import Answers, Row, joined, records, rows
from mtpt.evaluate.generate import generate
from mtpt.evaluate.metrics import METRICS
from mtpt.evaluate.rank_classification import NORMALISATIONS, distinct, predict, scores
from mtpt.files import write
from mtpt.model.task_routing import by_task

FIRST_ROUND = 16  # examples of each exam that are judged before time is looked at


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """How exams are taken.

    `normalisation` names what rank classification compares (`NORMALISATIONS`). `max_examples`
    takes the first so many of every exam, `budget` shares out so many over all exams evenly, and
    `seconds` is time for all exams together, after which they are cut to as many first examples as
    were judged of each, and their rows say so; 0 is no limit. `max_target_length` bounds generated
    answers in tokens; choices are always scored whole. `batch_tokens` bounds the positions of a
    batch on one device; scores do not depend on it. `bootstrap` is the number of resamples, seeded
    by `seed`. `empty_input` adds the score on an empty input, which 'pmi' always needs. `heads`
    lets a head answer what it can say.
    """

    normalisation: str = 'sum'
    batch_tokens: int = 16384
    max_examples: int = 0
    budget: int = 0
    seconds: float = 0.0
    max_target_length: int = 64
    bootstrap: int = 1000
    seed: int = 0
    empty_input: bool = True
    heads: bool = True

    def __post_init__(self):
        choose('normalisation', self.normalisation, NORMALISATIONS)
        for name, least in dict(
            batch_tokens=1,
            max_examples=0,
            budget=0,
            seconds=0,
            max_target_length=1,
            bootstrap=1,
            seed=0,
        ).items():
            if getattr(self, name) < least:
                raise UserError(f'evaluate.{name}={getattr(self, name)} must be at least {least}')


def evaluate(
    model_cfg: Any,
    params: Any,
    exams: Sequence[Any],
    vocabulary: Any,
    cfg: EvaluateConfig = EvaluateConfig(),
    progress: Callable[[int, int], None] | None = None,
    predictions: str | os.PathLike | None = None,
    task_ids: Mapping[str, int] | None = None,
) -> list[Row]:
    """One row for each exam and each of its metrics, in the order of the exams.

    Exams whose examples have choices are ranked, the others answered by greedy decoding; those of
    which a head of the model knows the answers as its labels, by that head. Runs
    under the mesh that is set, or the one that the parameters lie on. Of several processes every
    one must call it with the same exams: its devices compute their share of the rows of each batch,
    and it gets all rows.

    Args:
      model_cfg: a resolved `ModelConfig`.
      params: the model's parameters.
      exams: objects with name, task, prompt, family, dataset, metrics, kind and examples.
      vocabulary: what the exams were tokenised with.
      cfg: how exams are taken.
      progress: called with how much is done, and of how much, in (example, choice) pairs and
        generated answers.
      predictions: a file to write one JSON object an example to: input, answer given, scores,
        references.
      task_ids: from the name of an exam to the id of its task, for models that route by task; one
        that is not named is of a task that is not known.

    Raises:
      UserError: no exams, an exam without examples, an unknown metric, examples that do not fit
        together, scores that are not finite, a predictions file that cannot be written.
    """
    exams = list(exams)
    for exam in exams:
        _check(exam)
    if not exams:
        raise UserError('there is nothing to evaluate: the mixture has no exams; name one that has')
    sizes = limits([len(exam.examples) for exam in exams], cfg)
    taken = [list(exam.examples[:size]) for exam, size in zip(exams, sizes)]
    asked = cfg.heads or model_cfg.kind == 'encoder'
    answering = [
        heads.answering(model_cfg, exam, examples) if asked else None
        for exam, examples in zip(exams, taken)
    ]
    count = _Counter(progress, taken)
    known = dict(task_ids or {}) if by_task(model_cfg) else {}
    ids = [known.get(exam.name, 0) for exam in exams]
    parts: list[list[Answers]] = [[] for _ in exams]
    for first, last in rounds(sizes, cfg.seconds):
        due = [i for i, size in enumerate(sizes) if size > first]
        some = [taken[i][first:last] for i in due]
        told = [[values[i] for i in due] for values in (exams, ids, answering)]
        for i, one in zip(due, _answers(model_cfg, params, *told, some, vocabulary, cfg, count)):
            parts[i].append(one)
    given = [joined(part) for part in parts]
    if predictions is not None and jax.process_index() == 0:
        lines = [json.dumps(record) + '\n' for one in given for record in records(one, vocabulary)]
        write(predictions, ''.join(lines))
    cut = [len(one.examples) < size for one, size in zip(given, sizes)]
    return [row for one, short in zip(given, cut) for row in rows(one, cfg, short)]


def rounds(
    sizes: Sequence[int], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> Iterator[tuple[int, int]]:
    """Which examples of each exam are judged next, from and up to, for as long as there is time.

    Without a limit all at once. Else a few first and then as many as what was done says there is
    time for, up to twice as many as before; how long they took is asked between rounds of the
    first process alone, so that all processes cut alike.
    """
    longest = max(sizes)
    if not seconds:
        yield 0, longest
        return
    begun, done, step = clock(), 0, min(FIRST_ROUND, longest)
    while step and done < longest:
        before = clock()
        yield done, done + step
        asked = sum(min(size, done + step) - min(size, done) for size in sizes)
        done += step
        left, rate = seconds - (clock() - begun), asked / max(clock() - before, 1e-9)
        next_ones = sum(size > done for size in sizes)
        step = int(min(2 * step, longest - done, max(left * rate, 0) / max(next_ones, 1)))
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))


def _answers(
    model_cfg, params, exams, ids, answering, taken, vocabulary, cfg, count
) -> list[Answers]:
    """The answers to some examples of each exam, all that can be asked together at once."""
    headed = [i for i, head in enumerate(answering) if head]
    ranked = [i for i, examples in enumerate(taken) if examples[0]['choices'] is not None]
    ranked = [i for i in ranked if not answering[i]]
    generated = [i for i in range(len(exams)) if i not in {*ranked, *headed}]
    answers: dict[int, Answers] = {}
    for indices, answer in ((ranked, _rank), (generated, _generate)):
        pairs, of = [(exams[i], taken[i]) for i in indices], [ids[i] for i in indices]
        answers |= zip(indices, answer(model_cfg, params, pairs, of, vocabulary, cfg, count))
    if headed:
        by_heads = [(exams[i], taken[i], answering[i]) for i in headed]
        empties = [empty_input(taken[i], vocabulary) for i in headed] if cfg.empty_input else []
        of = [ids[i] for i in headed]
        found = heads.answer(model_cfg, params, by_heads, of, empties, vocabulary, cfg.batch_tokens)
        count(sum(len(distinct(e['choices'] or [()])) for i in headed for e in taken[i]))
        answers |= zip(headed, found)
    return [answers[i] for i in range(len(exams))]


def _check(exam):
    if not exam.metrics:
        raise UserError(f'exam {exam.name!r} names no metric; give its task one of {list(METRICS)}')
    for name in exam.metrics:
        choose(f'metric (of exam {exam.name!r})', name, METRICS)
    if not exam.examples:
        raise UserError(
            f'exam {exam.name!r} has no examples; leave it out, or mend its source or prompt'
        )
    for i, example in enumerate(exam.examples):
        where = f'example {i} of exam {exam.name!r}'
        if (example['choices'] is None) != (exam.examples[0]['choices'] is None):
            raise UserError(
                f'{where} and its first one differ in having choices; split the prompt in two'
            )
        if example['choices'] is None:
            if not example['references']:
                raise UserError(f'{where} has no reference to be judged by')
        elif not example['choices']:
            raise UserError(f'{where} has an empty list of choices')
        elif not 0 <= example['answer'] < len(example['choices']):
            raise UserError(
                f'{where} has answer {example["answer"]} and {len(example["choices"])} choices; '
                'the answer must be the index of a choice'
            )


def limits(sizes: Sequence[int], cfg: EvaluateConfig) -> list[int]:
    """How many examples of each exam are taken: at least one, the budget shared out evenly."""
    sizes = [min(size, cfg.max_examples or size) for size in sizes]
    left, cap = cfg.budget, max(sizes, default=0)
    if left and sum(sizes) > left:
        for place, size in enumerate(sorted(sizes)):
            share = left // (len(sizes) - place)
            if size > share:
                cap = max(1, share)
                break
            left -= size
    return [min(size, cap) for size in sizes]


class _Counter:
    """Adds up what is done and tells the caller."""

    def __init__(self, progress, taken):
        self.progress, self.done = progress, 0
        self.total = sum(
            len(distinct(e['choices'] or [()])) for examples in taken for e in examples
        )

    def __call__(self, number):
        self.done += number
        if self.progress:
            self.progress(self.done, self.total)


def empty_input(examples: Iterable[dict], vocabulary: Any) -> tuple[int, ...]:
    """What is left of inputs without their text: a mode token that all begin with, and EOS.

    Where inputs have neither, the empty input is EOS, since attention needs something to look at.
    """
    inputs = [tuple(example['inputs']) for example in examples]
    first = {ids[:1] for ids in inputs}
    mode = first.pop() if len(first) == 1 else ()
    mode = mode if set(mode) <= set(vocabulary.modes.values()) else ()
    ends = all(ids[-1:] == (vocabulary.eos,) for ids in inputs)
    return mode + ((vocabulary.eos,) if ends or not mode else ())


def _rank(model_cfg, params, exams, ids, vocabulary, cfg, count) -> list[Answers]:
    """Ranks the choices of all exams at once, so that they share batches and compilations."""
    items = [(e['inputs'], e['choices']) for _, examples in exams for e in examples]
    tasks = [number for number, (_, examples) in zip(ids, exams) for _ in examples]
    if not items:
        return []
    empties = None
    if cfg.empty_input or cfg.normalisation == 'pmi':
        empties = _EmptyInputs(exams, ids, vocabulary)
    extra = empties.items if empties else []
    count.total += sum(len(choices) for _, choices in extra)
    tasks += empties.tasks if empties else []
    found = scores(model_cfg, params, items + extra, cfg.batch_tokens, count, tasks)
    if empties:
        empties.learn(found[len(items) :])
    found, answers = iter(found), []
    for number, (exam, examples) in enumerate(exams):
        told = []
        for example in examples:
            texts = example['choice_texts']
            empty = empties.of(number, example['choices']) if empties else None
            told.append((texts, *_compared(example['choices'], texts, next(found), empty, cfg)))
        offered, kept, bare = zip(*told)
        picked = [predict(values) for values in kept]
        empty_picked = [predict(values) for values in bare] if cfg.empty_input else None
        answers.append(Answers.ranked(exam, examples, offered, kept, picked, empty_picked))
    return answers


def _compared(choices, texts, score_O, empty_O, cfg):
    """What the choices are ranked by, and what they are ranked by after an empty input."""
    tokens_O = np.array([len(ids) for ids in choices])
    bytes_O = np.array([len(text.encode('utf-8', 'replace')) for text in texts])
    own = NORMALISATIONS[cfg.normalisation](score_O, empty_O, tokens_O, bytes_O)
    # What an empty input adds to itself is nothing: beside 'pmi' stands the plain preference.
    name = 'sum' if cfg.normalisation == 'pmi' else cfg.normalisation
    return own, NORMALISATIONS[name](empty_O, None, tokens_O, bytes_O) if cfg.empty_input else None


class _EmptyInputs:
    """The choices of all exams after an empty input: each distinct one is scored once.

    Where routing goes by task, an empty input is one of a task.
    """

    def __init__(self, exams, tasks, vocabulary):
        inputs = [empty_input(examples, vocabulary) for _, examples in exams]
        self.asked = list(zip(tasks, inputs))
        choices = collections.defaultdict(dict)
        for asked, (_, examples) in zip(self.asked, exams):
            for example in examples:
                for choice in map(tuple, example['choices']):
                    # By length, so that one long choice does not pad them all.
                    choices[asked, (len(choice) - 1).bit_length()][choice] = None
        self.groups = [(asked, list(group)) for (asked, _), group in choices.items()]
        self.items = [(ids, group) for (_, ids), group in self.groups]
        self.tasks = [task for (task, _), _ in self.groups]

    def learn(self, found):
        pairs = zip(self.groups, found)
        self.score = {(at, c): s for (at, group), values in pairs for c, s in zip(group, values)}

    def of(self, number, choices):
        asked = self.asked[number]
        return np.array([self.score[asked, tuple(choice)] for choice in choices])


def _generate(model_cfg, params, exams, ids, vocabulary, cfg, count) -> list[Answers]:
    """Answers the inputs of all exams at once, and an empty input for each that asks for one."""
    inputs = [e['inputs'] for _, examples in exams for e in examples]
    if not inputs:
        return []
    tasks = [number for number, (_, examples) in zip(ids, exams) for _ in examples]
    empties = []
    if cfg.empty_input:
        empties = [(n, empty_input(examples, vocabulary)) for n, (_, examples) in zip(ids, exams)]
    bare = list(dict.fromkeys(empties))
    count.total += len(bare)
    made = generate(
        model_cfg,
        params,
        inputs + [ids for _, ids in bare],
        cfg.max_target_length,
        cfg.batch_tokens,
        vocabulary.eos,
        count,
        tasks + [number for number, _ in bare],
    )
    texts = [vocabulary.decode(row) for row in made]
    ended = [vocabulary.eos in row for row in made]
    anyway = dict(zip(bare, texts[len(inputs) :]))
    start, answers = 0, []
    for number, (exam, examples) in enumerate(exams):
        stop = start + len(examples)
        empty = [anyway[empties[number]]] * len(examples) if empties else None
        said = texts[start:stop]
        answers.append(Answers(exam, examples, said, empty, finished=ended[start:stop]))
        start = stop
    return answers


def save(
    path: str | os.PathLike, rows: Sequence[Row], summary: dict[str, Any], meta: dict[str, Any]
) -> None:
    """Writes `meta`, `summary` and `rows` as one JSON object, or nothing.

    Raises:
      UserError: the file cannot be written.
    """
    write(path, json.dumps({**meta, 'summary': summary, 'rows': list(rows)}, indent=1) + '\n')
