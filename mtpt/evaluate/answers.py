"""What a model said in one exam, and the rows of numbers that follow from it.

O answer choices  P all pairs of an exam's examples and choices
"""

import collections
import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mtpt.evaluate import intervals
from mtpt.evaluate.metrics import METRICS, Metric

Row = dict[str, Any]
SHOWN = 10  # answers whose shares a row lists


@dataclasses.dataclass(frozen=True)
class Answers:
    """One text an example, and one on an empty input; all choices where they were ranked.

    method: how they were come by, where that is not rank classification or greedy decoding.
    """

    exam: Any
    examples: Sequence[dict]
    texts: Sequence[str]
    empty: Sequence[str] | None
    finished: Sequence[bool] | None = None
    offered: Sequence[Sequence[str]] | None = None
    scores: Sequence[np.ndarray] | None = None
    picked: Sequence[int] | None = None
    empty_picked: Sequence[int] | None = None
    method: str = ''

    @classmethod
    def ranked(cls, exam, examples, offered, scores, picked, empty_picked) -> 'Answers':
        """The answers that picking by index from what is offered gives."""
        said, anyway = (
            None if indices is None else [texts[i] for texts, i in zip(offered, indices)]
            for indices in (picked, empty_picked)
        )
        return cls(exam, examples, said, anyway, None, offered, scores, picked, empty_picked)


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers to consecutive parts of an exam, as one."""
    if len(parts) == 1:
        return parts[0]
    columns = {}
    for field in dataclasses.fields(Answers):
        values = [getattr(part, field.name) for part in parts]
        if field.name not in ('exam', 'method'):
            whole = all(value is not None for value in values)
            columns[field.name] = [x for value in values for x in value] if whole else None
    return dataclasses.replace(parts[0], **columns)


def rows(answers: Answers, cfg: Any, cut: bool = False) -> list[Row]:
    """A row for each metric of an exam; JSON-ready. Shares list the most frequent answers.

    cut: whether time was too short for all examples that were to be judged.
    """
    exam, count = answers.exam, len(answers.examples)
    wanted = [references(example) for example in answers.examples]
    right = [texts[0] for texts in wanted]
    common = collections.Counter(right).most_common(1)[0][0]
    ranked = answers.picked is not None
    fields = ('task', 'prompt', 'kind', 'family', 'dataset')
    out = []
    for name in exam.metrics:
        metric = METRICS[name]
        own, empty, chance = measured(metric, answers, wanted)
        seed = zlib.crc32(f'{cfg.seed} {exam.name} {name}'.encode())
        low, high = intervals.over_examples(own, metric.reduce, cfg.bootstrap, seed)
        row = dict(exam=exam.name, **{field: getattr(exam, field) for field in fields})
        row |= dict(
            metric=name,
            value=metric.reduce(own.sum(0), count),
            low=low,
            high=high,
            chance=metric.reduce(chance, count) if ranked else 0.0,
            majority=metric.reduce(metric.measure([common] * count, wanted).sum(0), count),
            empty=None if empty is None else metric.reduce(empty.sum(0), count),
            examples=count,
            of=max(getattr(exam, 'total', 0), len(exam.examples)),
            cut=cut,
            choices=float(np.mean([len(e['choices'] or ()) for e in answers.examples])),
            method=answers.method or ('rank classification' if ranked else 'greedy decoding'),
            normalisation=cfg.normalisation if ranked and not answers.method else None,
            label_shares=shares(answers.texts),
            answer_shares=shares(right),
            position_shares=shares(map(str, answers.picked)) if ranked else None,
            unfinished=None if ranked else 1 - sum(answers.finished) / count,
        )
        out.append(row)
    return out


def references(example: dict) -> list[str]:
    """What counts as right; of an example with choices the right choice first."""
    if example['choices'] is None:
        return list(example['references'])
    return [example['choice_texts'][example['answer']], *example['references']]


def measured(metric: Metric, answers: Answers, wanted: Sequence[Sequence[str]]) -> tuple:
    """The statistics of the answers, of those on an empty input, and the sum of those of chance.

    Chance picks each choice equally often: 1 / number of choices in accuracy, where they differ.
    """
    if answers.picked is None:
        empty = None if answers.empty is None else metric.measure(answers.empty, wanted)
        return metric.measure(answers.texts, wanted), empty, None
    counts = np.array([len(texts) for texts in answers.offered])
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    texts_P = [text for texts in answers.offered for text in texts]
    wanted_P = [texts for texts, count in zip(wanted, counts) for _ in range(count)]
    all_P = metric.measure(texts_P, wanted_P)
    chance = (np.add.reduceat(all_P, first) / counts[:, None]).sum(0)
    empty = None if answers.empty is None else all_P[first + np.array(answers.empty_picked)]
    return all_P[first + np.array(answers.picked)], empty, chance


def shares(labels: Iterable[str]) -> dict[str, float]:
    """How often each label occurs, the most frequent first; rare ones are left out."""
    counts = collections.Counter(labels)
    return {label: count / counts.total() for label, count in counts.most_common(SHOWN)}


def records(answers: Answers, vocabulary: Any) -> Iterator[dict[str, Any]]:
    """One JSON-ready object an example: what was asked, what was said, what was wanted."""
    for i, example in enumerate(answers.examples):
        record = dict(
            exam=answers.exam.name,
            example=i,
            input=vocabulary.decode(example['inputs']),
            said=answers.texts[i],
            wanted=references(example)[0],
            references=list(example['references']),
        )
        if answers.picked is not None:
            record['choices'] = list(answers.offered[i])
            record['scores'] = [float(score) for score in answers.scores[i]]
        yield record
