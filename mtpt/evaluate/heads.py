"""Exams answered by heads, and the embeddings of texts.

A head answers an exam of its tasks whose right answers it can say: it knows the choices, or the
references, as its labels. A contrastive head ranks any choices, by the cosine of their embeddings,
where there is no decoder to ask.

B rows  S input positions  O labels or choices  D model width
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mtpt.config import UserError
from mtpt.data.labels import covers, word_starts
from mtpt.evaluate import batches
from mtpt.evaluate.answers import Answers, references
from mtpt.evaluate.rank_classification import predict
from mtpt.model import functional

LEAST = 16


def told(
    cfg: Any,
    params: Any,
    inputs: Sequence[Sequence[int]],
    batch_tokens: int,
    tasks: Sequence[int] | None = None,
) -> list[dict[str, np.ndarray]]:
    """What each head tells of each input, by its name.

    Logits [O] of 'classification' and 'multi_label', [S, O] of 'token_labels', an embedding [D] of
    'contrastive'.

    Args:
      inputs: token ids.
      batch_tokens: the most positions of a batch on one device.
      tasks: the id of the task of each input, for models that route by task; 0 where unknown.
    """
    found: list[dict[str, np.ndarray]] = [{} for _ in inputs]
    mesh = batches.mesh_of(params)
    with jax.set_mesh(mesh):
        work = _batches(inputs, tasks, batch_tokens, batches.shards(mesh))
        results = (
            (part, _told(cfg, params, *[batches.spread(a, mesh) for a in arrays]))
            for part, arrays in work
        )
        for part, told_B in batches.late(results):
            for row, item in enumerate(part):
                for head in cfg.heads:
                    x_B = told_B[head.name]
                    words = head.kind == 'token_labels'
                    found[item][head.name] = x_B[row, : len(inputs[item])] if words else x_B[row, 0]
    return found


@functools.partial(jax.jit, static_argnames='cfg')
def _told(cfg, params, tokens_BS, segments_BS, tasks_BG):
    told = functional.told(cfg, params, tokens_BS, segments_BS, tasks_BG)
    return {name: jax.reshard(x, jax.P()) for name, x in told.items()}


def _batches(inputs, tasks, batch_tokens, n):
    """Batches of inputs of like length, and whose they are; spare rows are empty."""
    groups = batches.grouped(
        [(batches.rounded(len(ids), LEAST),) for ids in inputs],
        weights=[1] * len(inputs),
        fits=lambda a, b: a[0] <= b[0],
        cost=lambda shape: shape[0],
    )
    for (S,), items in groups.items():
        B = n * min(batches.floored(batch_tokens / S), batches.rounded(-(-len(items) // n), 1))
        for start in range(0, len(items), B):
            part = items[start : start + B]
            tokens_BS, segments_BS = np.zeros((2, B, S), np.int32)
            tasks_BG = np.zeros((B, 1), np.int32)
            segments_BS[:, 0] = 1  # attention over nothing has no value
            for row, item in enumerate(part):
                tokens_BS[row, : len(inputs[item])] = inputs[item]
                segments_BS[row, : len(inputs[item])] = 1
                tasks_BG[row] = tasks[item] if tasks is not None else 0
            yield part, (tokens_BS, segments_BS, tasks_BG)


def answering(cfg: Any, exam: Any, examples: Sequence[dict]) -> Any:
    """The first head that can answer an exam, or None.

    Raises:
      UserError: none can, and there is no decoder.
    """
    for head in cfg.heads:
        if covers(head, exam.task, exam.name, exam.family) and SAYS[head.kind](cfg, head, examples):
            return head
    if cfg.kind != 'encoder':
        return None
    raise UserError(
        f'no head can answer exam {exam.name!r} (task {exam.task!r}, family {exam.family!r}), and '
        "model.kind='encoder' has no decoder; take it out of the mixture, or give a head its "
        'task and its labels'
    )


def numbers(head: Any) -> dict[str, int]:
    """From the text of a label to its number."""
    texts = ((text, i) for i, label in enumerate(head.labels) for text in label.split('|'))
    return {text.strip(): i for text, i in texts}


def _wanted(examples):
    """All texts that an answer of each example may be or is compared with."""
    for example in examples:
        yield from example['choice_texts'] if example['choices'] else references(example)


def _says_labels(cfg, head, examples):
    return {text.strip() for text in _wanted(examples)} <= numbers(head).keys()


def _says_sets(cfg, head, examples):
    known = numbers(head).keys() | {head.nothing, ''}
    if examples[0]['choices'] is not None:
        return False
    return all(
        part.strip() in known for text in _wanted(examples) for part in text.split(head.separator)
    )


def _says_words(cfg, head, examples):
    if examples[0]['choices'] is not None:
        return False
    return {word for text in _wanted(examples) for word in text.split()} <= numbers(head).keys()


def _says_choices(cfg, head, examples):
    return cfg.kind == 'encoder' and examples[0]['choices'] is not None


SAYS = dict(
    classification=_says_labels,
    multi_label=_says_sets,
    token_labels=_says_words,
    contrastive=_says_choices,
)


def answer(
    cfg: Any,
    params: Any,
    exams: Sequence[tuple[Any, Sequence[dict], Any]],
    tasks: Sequence[int],
    empties: Sequence[tuple[int, ...]],
    vocabulary: Any,
    batch_tokens: int,
) -> list[Answers]:
    """The answers of heads to exams.

    Args:
      exams: (exam, examples, the head that answers).
      tasks: the id of the task of each exam; 0 where unknown.
      empties: what is asked of each exam beside, an empty input; none of them: nothing is.
    """
    inputs = [(task, tuple(e['inputs'])) for task, (_, es, _) in zip(tasks, exams) for e in es]
    inputs += [
        (task, tuple(choice))
        for task, (_, examples, head) in zip(tasks, exams)
        if head.kind == 'contrastive'
        for example in examples
        for choice in example['choices']
    ]
    inputs += list(zip(tasks, empties))
    asked = list(dict.fromkeys(inputs))
    asked_tasks, asked_ids = [task for task, _ in asked], [ids for _, ids in asked]
    known = dict(zip(asked, told(cfg, params, asked_ids, batch_tokens, asked_tasks)))
    answers = []
    for number, (task, (exam, examples, head)) in enumerate(zip(tasks, exams)):

        def of(ids, head=head, task=task):
            return known[task, tuple(ids)][head.name]

        empty = empties[number] if empties else None
        say = _ranked if examples[0]['choices'] is not None else _written
        answers.append(say(exam, examples, head, of, empty, vocabulary))
    return answers


def _ranked(exam, examples, head, of, empty, vocabulary):
    def scores(inputs, example):
        if head.kind == 'contrastive':
            return np.array([float(of(inputs) @ of(choice)) for choice in example['choices']])
        return of(inputs)[[number_of[text.strip()] for text in example['choice_texts']]]

    number_of = numbers(head)
    offered = [example['choice_texts'] for example in examples]
    kept = [scores(example['inputs'], example) for example in examples]
    bare = None if empty is None else [predict(scores(empty, example)) for example in examples]
    answers = Answers.ranked(exam, examples, offered, kept, [predict(s) for s in kept], bare)
    return dataclasses.replace(answers, method=f'head {head.name}')


def _written(exam, examples, head, of, empty, vocabulary):
    names = [label.split('|')[0] for label in head.labels]

    def say(ids):
        logits = of(ids)
        if head.kind == 'classification':
            return names[int(np.argmax(logits))]
        if head.kind == 'multi_label':
            found = [name for name, logit in zip(names, logits) if logit > 0]
            return head.separator.join(found) or head.nothing
        best = np.argmax(logits, -1)
        return ' '.join(names[int(best[start])] for start in word_starts(vocabulary, ids))

    said = [say(example['inputs']) for example in examples]
    anyway = None if empty is None else [say(empty)] * len(examples)
    finished = [True] * len(examples)
    return Answers(exam, examples, said, anyway, finished, method=f'head {head.name}')
