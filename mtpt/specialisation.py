"""Which experts serve which tasks: counts by family, and how much an expert tells of the family.

Validation counts tokens by sparse layer, task and expert; a run's folder keeps the last count in
`routing.json`, from which the report draws its heat maps.

N sparse layers of a stack  M tasks  E experts  L families
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtpt import files
from mtpt.data.manifest import TaskEntry
from mtpt.model.blocks import kinds
from mtpt.model.config import ModelConfig

FILE = 'routing.json'
NO_FAMILY = 'no family'


def mutual_information(counts: np.ndarray) -> float:
    """Of the row and the column of a table of counts, in nats: 0 where they are independent.

    sum p(r, c) log(p(r, c) / (p(r) p(c))) with the frequencies as probabilities; biased upwards by
    about (rows - 1)(columns - 1) / (2 n) where the n things counted are few.
    """
    p = np.asarray(counts, np.float64)
    p = p / max(p.sum(), 1.0)
    apart = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    there = p > 0
    return float(max(np.sum(p[there] * np.log(p[there] / apart[there])), 0.0))


def entropy(counts: np.ndarray) -> float:
    """In nats, of frequencies."""
    p = np.asarray(counts, np.float64)
    p = p / max(p.sum(), 1.0)
    return float(-np.sum(p[p > 0] * np.log(p[p > 0])))


def by_family(counts_ME: np.ndarray, tasks: Sequence[TaskEntry]) -> tuple[list[str], np.ndarray]:
    """The names of the families that were counted, and their tokens by expert [L, E].

    counts_ME: row i is of the task with id i; row 0 (padding, unknown tasks) is left out.
    """
    rows: dict[str, np.ndarray] = {}
    for task in tasks:
        if task.id < len(counts_ME) and counts_ME[task.id].sum():
            family = task.family or NO_FAMILY
            rows[family] = rows.get(family, 0) + np.asarray(counts_ME[task.id], np.float64)
    names = sorted(rows)
    return names, np.stack([rows[n] for n in names]) if rows else np.zeros((0, counts_ME.shape[1]))


def tables(
    cfg: ModelConfig, tasks: Sequence[TaskEntry], counts: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """One table a sparse layer: who went where, and what an expert tells of the family.

    Args:
      cfg: the model's.
      tasks: the run's table.
      counts: 'routing/encoder' and 'routing/decoder', [N, M + 1, E] tokens each.

    Returns:
      For each layer `stack`, `layer` (counted from 0), `families`, `counts` [L, E], `tasks` (tokens
      by expert of each), `information` (nats), `family_entropy` (nats, its upper bound) and
      `share`, the one divided by the other (None where only one family was seen).
    """
    found = []
    for stack in ('encoder', 'decoder'):
        counted = counts.get(f'routing/{stack}', ())
        if not len(counted):
            continue
        sparse = [i for i, kind in enumerate(kinds(cfg, stack == 'decoder')) if kind.sparse]
        for layer, counts_ME in zip(sparse, np.asarray(counted, np.float64)):
            names, counts_LE = by_family(counts_ME, tasks)
            information, bound = mutual_information(counts_LE), entropy(counts_LE.sum(1))
            found.append(
                dict(
                    stack=stack,
                    layer=layer,
                    families=names,
                    counts=counts_LE.tolist(),
                    tasks={
                        t.name: counts_ME[t.id].tolist()
                        for t in tasks
                        if t.id < len(counts_ME) and counts_ME[t.id].sum()
                    },
                    information=information,
                    family_entropy=bound,
                    share=information / bound if bound > 0 else None,
                )
            )
    return found


def figures(told: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mutual information of expert and family as metrics: a mean over the layers of a stack."""
    found = {}
    for stack in dict.fromkeys(table['stack'] for table in told):
        layers = [table['information'] for table in told if table['stack'] == stack]
        found[f'valid/moe/information/{stack}'] = float(np.mean(layers))
    return found


def write(workdir: pathlib.Path, step: int, told: Sequence[Mapping[str, Any]]) -> None:
    """Writes `routing.json`, in place of that of an earlier step."""
    files.write(workdir / FILE, json.dumps(dict(step=step, layers=list(told))))
