"""The ids that tasks go by in a model: those of a run's table, and new ones for tasks held out.

A model that routes by task is as large as its run's table, so its config is resolved here, with the
table at hand. A task that is examined and was never trained on has no id in the table; it is given
one above M, which a learnt representation treats as unknown, and by which enforced routing can
still send it where its family or its data set goes.

M tasks of a run's table
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtpt.config import UserError, nearest
from mtpt.data.manifest import ExamEntry, Manifest, TaskEntry
from mtpt.model.config import ModelConfig, resolve
from mtpt.model.parts import named_experts, routers
from mtpt.tasks.families import canonical_dataset, canonical_family

OTHERS = '*'


def resolved(
    cfg: ModelConfig, V: int, M: int, tasks: Sequence[TaskEntry], exams: Sequence[ExamEntry] = ()
) -> ModelConfig:
    """The model of a run: its config with the vocabulary, the table of tasks and what is enforced.

    Args:
      cfg: as the run's config has it.
      V: ids of the vocabulary.
      M: the last id of the table that the model was made for (`last`).
      tasks: that table, which may have grown since.
      exams: evaluation sets whose tasks are to be routed too.

    Raises:
      UserError: the config is wrong, or sends a task nowhere.
    """
    cfg = resolve(cfg, V, M)
    if 'enforced' not in routers(cfg).values():
        return cfg
    moe = dataclasses.replace(cfg.moe, expert_of_task=_enforced(cfg, tasks, exams))
    return resolve(dataclasses.replace(cfg, moe=moe))


def last(tasks: Iterable[TaskEntry]) -> int:
    """The last id of a table."""
    return max((task.id for task in tasks), default=0)


def ids(tasks: Sequence[TaskEntry], exams: Sequence[ExamEntry]) -> dict[str, int]:
    """From the name of a task, or of the Task of one of its prompts, to its id.

    Tasks that only the evaluation sets have come after the table, by name.
    """
    found = {task.name: task.id for task in tasks}
    top = last(tasks)
    new = sorted({e.task for e in exams if e.task not in found and e.name not in found})
    found |= {name: top + 1 + i for i, name in enumerate(new)}
    return found


def of_exams(manifest: Manifest, mixtures: Iterable[str]) -> dict[str, int]:
    """From the name of each evaluation set of some mixtures to the id of its task."""
    exams = asked(manifest, mixtures)
    found = ids(manifest.tasks, exams)
    return {e.name: found[e.name] if e.name in found else found[e.task] for e in exams}


def asked(manifest: Manifest, mixtures: Iterable[str]) -> list[ExamEntry]:
    """The evaluation sets of some mixtures, of any split."""
    mixtures = set(mixtures)
    return [e for e in manifest.exams if mixtures & set(e.mixtures)]


def id_of(tasks: Iterable[TaskEntry], name: str) -> int:
    """The id of a task that the model was trained on.

    Raises:
      UserError: there is none of that name.
    """
    found = {task.name: task.id for task in tasks}
    if name not in found:
        raise UserError(f'the model was not trained on a task {name!r}; {nearest(name, found)}')
    return found[name]


def check_asked(cfg: ModelConfig, task: str | None) -> None:
    """Checks that inputs of no named task go somewhere that the config says.

    Raises:
      UserError: routing is enforced, and nothing is said of tasks that are not known.
    """
    silent = OTHERS not in named_experts(cfg.moe.experts_of)
    if not task and silent and 'enforced' in routers(cfg).values():
        raise UserError(
            'the model goes by what model.moe.experts_of says of a task, and that says nothing of '
            'others; name the task (--task=NAME, or "task" in a line to score)'
        )


def check_names(cfg: ModelConfig, manifest: Manifest) -> None:
    """Checks that every name that experts are given to is one that something has.

    Raises:
      UserError: naming the one that nothing has, and the nearest that there are.
    """
    everything = [*manifest.tasks, *manifest.exams]
    known = {t.name for t in everything} | {e.task for e in manifest.exams}
    known |= {label for t in everything for label in (t.family, t.dataset) if label}
    known |= {*manifest.origin.families, *manifest.origin.datasets, OTHERS}
    for name in named_experts(cfg.moe.experts_of):
        if not known & {name, canonical_family(name), canonical_dataset(name)}:
            raise UserError(
                f'model.moe.experts_of names {name!r}, and no task, family or data set has that '
                f'name; {nearest(name, known - {""})}'
            )


def _enforced(
    cfg: ModelConfig, tasks: Sequence[TaskEntry], exams: Sequence[ExamEntry]
) -> tuple[int, ...]:
    """The expert of each id, 0 (a task that is not known) first."""
    named = named_experts(cfg.moe.experts_of)
    found = ids(tasks, exams)
    table = [named.get(OTHERS, 0)] * (1 + max(found.values(), default=0))
    told = {e.task: e for e in exams} | {t.name: t for t in tasks}
    asked_of = {t.name for t in tasks if t.status == 'ok' and t.id <= cfg.M}
    asked_of |= {e.task for e in exams} | {e.name for e in exams}
    for name, number in found.items():
        task = told[name]
        expert = _expert(named, name, task)
        if expert is None and name in asked_of:
            raise UserError(
                f'model.moe.experts_of sends the task {name!r} (family {task.family!r}, data set '
                f"{task.dataset!r}) nowhere; name one of them, or add '*=EXPERT' for all others"
            )
        table[number] = expert or 0
    return tuple(table)


def _expert(named: Mapping[str, int], name: str, task: Any) -> int | None:
    """The expert of a task: by its name, else its family, else its data set, else that of all."""
    if name in named:
        return named[name]
    for label, canonical in ((task.family, canonical_family), (task.dataset, canonical_dataset)):
        found = {canonical(n): e for n, e in named.items() if n != OTHERS}
        if label in found:
            return found[label]
    return named.get(OTHERS)
