"""What was asked of each task and what was trained on: in the log at every interval and in
`tasks.json`.

Examples and target tokens are those of the steps that were taken, on all hosts. Tokens of both
sides, and what was trimmed or dropped, are counted where rows are packed: by the row groups of the
first host, a few batches ahead of the steps.

M tasks (ids count from 1; 0 is padding)
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtpt.data.loader import Loader, realised_shares
from mtpt.data.manifest import Manifest, TaskEntry
from mtpt.files import Unwritten, write
from mtpt.log import read_metrics

FILE = 'tasks.json'


class Shares:
    """Counts by task what steps are taken on, from where the log of the run's folder ends.

    Called with the figures of the steps of an interval, it writes `tasks.json` and returns what the
    log says of it, 'shares/*'.
    """

    def __init__(self, workdir: pathlib.Path, manifest: Manifest, loader: Callable[[], Loader]):
        self.workdir, self.manifest, self.loader = workdir, manifest, loader
        self._examples: np.ndarray | None = None

    def __call__(self, steps: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
        if self._examples is None:
            self._examples, self._targets = logged(self.workdir, self.manifest)
        for step in steps:
            self._examples += np.nan_to_num(step.get('task/segments', 0.0))
            self._targets += np.nan_to_num(step.get('task/tokens', 0.0))
        told = rows(self.manifest, self.loader(), self._examples, self._targets)
        with contextlib.suppress(Unwritten):  # metrics.jsonl says that the disk is full
            _write(self.workdir, told)
        return figures(told)


def save(workdir: pathlib.Path, manifest: Manifest, loader: Loader) -> None:
    """Writes `tasks.json` as the log has it."""
    _write(workdir, rows(manifest, loader, *logged(workdir, manifest)))


def logged(workdir: pathlib.Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Examples and target tokens [M + 1] that a run's log has counted."""
    ids = {name: i for i, name in enumerate(manifest.names)}
    examples, targets = np.zeros((2, len(ids)))
    for line in read_metrics(workdir):
        for key, value in line.items():
            if not key.startswith('task/'):
                continue
            name, _, what = key.removeprefix('task/').rpartition('/')
            if name in ids and what in ('examples', 'tokens'):
                (examples if what == 'examples' else targets)[ids[name]] += value or 0
    return examples, targets


def rows(
    manifest: Manifest, loader: Loader, examples_M: np.ndarray, targets_M: np.ndarray
) -> list[dict[str, Any]]:
    """One dict a task: shares, counts, epochs, and what did not fit.

    `asked` and `share` are of the examples, `token_share` of the tokens of both sides; `truncated`
    and `dropped` are among those that the first host has `drawn`; `epochs` are
    examples by those `available` (pieces, for raw text), None where nobody knows how many.
    """
    left_out = dict(loader.problems)
    position = loader.position()
    packed = {row['task']: row for row in realised_shares(position, manifest)}
    drawn_M = position['counts'].sum(axis=0)
    total = max(float(examples_M[1:].sum()), 1.0)  # 0 is padding
    found = []
    for t in manifest.tasks:
        size, seen = _size(t, loader), int(examples_M[t.id])
        told = dict(
            name=t.name, id=t.id, family=t.family, dataset=t.dataset, kind=t.kind, asked=t.rate,
            share=seen / total, token_share=packed[t.name]['token_share'],
            examples=seen, tokens=int(targets_M[t.id]), all_tokens=packed[t.name]['tokens'],
            status='skipped' if t.name in left_out else t.status,
            reason=left_out.get(t.name, t.reason),
            available=size, epochs=seen / size if size else None,
            drawn=int(drawn_M[t.id]), truncated=packed[t.name]['trimmed'],
            dropped=packed[t.name]['dropped'],
        )  # fmt: skip
        found.append(told)
    return found


def figures(told: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What rows come to: 'shares/off_*' is half the sum of the differences from what was asked, 0
    where all is as asked and at most 1; trimmed and dropped are shares of what the first host drew.
    """
    if not any(row['examples'] for row in told):
        return {}
    asked = sum(row['asked'] for row in told) or 1.0
    off = {
        key: sum(abs(row[share] - row['asked'] / asked) for row in told) / 2
        for key, share in (('examples', 'share'), ('tokens', 'token_share'))
    }
    drawn = sum(row['drawn'] for row in told) or 1
    epochs = [row['epochs'] for row in told if row['epochs'] is not None]
    return {
        'shares/off_examples': off['examples'],
        'shares/off_tokens': off['tokens'],
        'shares/tasks_seen': sum(row['examples'] > 0 for row in told),
        'shares/most_epochs': max(epochs, default=0.0),
        'shares/trimmed': sum(row['truncated'] for row in told) / drawn,
        'shares/dropped': sum(row['dropped'] for row in told) / drawn,
    }


def _size(task: TaskEntry, loader: Loader) -> int | None:
    """How many examples a task has for training: in the cache, else as its source was told or has
    counted, up to `data.max_examples`."""
    sizes = getattr(loader.source, 'sizes', None)
    if sizes is not None and sizes[task.id]:
        return int(sizes[task.id])
    if task.kind == 'text':
        return None  # documents are known, pieces are not
    if 'train' in task.splits:
        return task.splits['train'].examples
    size, limit = (task.source.get('examples') or {}).get('train'), loader.cfg.max_examples
    return min(size, limit) if size and limit else size


def _write(workdir: pathlib.Path, told: list[dict[str, Any]]) -> None:
    write(workdir / FILE, json.dumps(told, indent=1))
