"""Draws batches from a cache in an order that is exact on any number of hosts and after any stop.

The rows of the global batch are cut into R groups. Each group draws tasks by the rates in force,
takes the next example of each, and packs its own rows; a host runs the groups that are its share.
The k-th example of a task that group g draws is number c = k R + g of that task's endless order, a
new random order of its examples each epoch. A group's state is a few integers: its draws, its draws
of each task, and the examples that found no room yet.

B rows  M tasks  R row groups  W examples waiting  A accumulation
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mtpt.config import UserError
from mtpt.data import draws
from mtpt.data.config import DataConfig
from mtpt.data.manifest import Manifest
from mtpt.data.packing import Batch, Example, assemble, fill, pack_all
from mtpt.data.shards import Cached

Position = dict[str, Any]

SHARED = ('rates', 'hosts', 'learnt', 'learnt_sums')  # alike on every host
BLOCK = 512, 4096  # draws that are looked up at once, at first and at most; no part of the order


class Broken(Exception):
    """A task that could not be read on: its id and why."""

    def __init__(self, task: int, reason: str):
        super().__init__(reason)
        self.task, self.reason = task, reason


class Loader:
    """An endless iterator of (batch, position); `position` is the state after that batch.

    A loader made with a position goes on from there: exactly, with any number of hosts that divides
    the row groups. In a position only the rows of this host's groups are filled; `merge_positions`
    joins the hosts' parts into the one to save. Position arrays: draws [R], counts, trimmed,
    dropped and tokens (of inputs and targets laid into rows) [R, M + 1], held [R, W, 2] (task,
    counter), aside [R, any, 2] (the same, of tasks that another stage draws), broken [M + 1], and
    rates [M + 1], zeros unless `set_rates` was used.

    `problems` lists the tasks left out, as (name, reason). `laid` holds the examples of each row of
    the last batch, part after part where gradients are accumulated.
    """

    def __init__(
        self,
        manifest: Manifest,
        cfg: DataConfig,
        seed: int = 0,
        host: int = 0,
        hosts: int = 1,
        position: Position | None = None,
        rates: Sequence[float] | None = None,
        source: Any = None,
    ):
        R = cfg.row_groups
        if R % hosts:
            raise UserError(
                f'{hosts} hosts do not divide data.row_groups={R}; make it a multiple of {hosts}'
            )
        self.manifest, self.cfg, self.seed = manifest, cfg, seed
        self.groups = range(host * R // hosts, (host + 1) * R // hosts)
        self.source = source or Cached(manifest, cfg, seed)
        self.problems = [(task.name, task.reason) for task in manifest.skipped]
        M = len(manifest.names) - 1
        self._draws = np.zeros(R, np.int64)
        self._counts, self._trimmed, self._dropped = np.zeros((3, R, M + 1), np.int64)
        self._tokens = np.zeros((R, M + 1), np.int64)
        self._broken = np.zeros(M + 1, np.int64)
        self._asked = np.zeros(M + 1)
        self._waiting: dict[int, list[Example]] = {g: [] for g in self.groups}
        self.laid: list[list[Example]] = []
        self._width, self._aside = cfg.lookahead, np.zeros((R, 0, 2), np.int64)
        if position is not None:
            self._restore(position)
        for task, reason in self.source.broken.items():
            self._leave_out(task, reason)
        if rates is not None:
            self._asked = self._checked(rates)
        self._begin()

    def __iter__(self) -> 'Loader':
        return self

    def __next__(self) -> tuple[Batch, Position]:
        rows = {}
        shape = self.cfg.shape()
        for g in self.groups:
            rows[g], self._waiting[g] = fill(self._waiting[g], self._fresh[g], shape)
            laid = [e for row in rows[g] for e in row]
            sizes = [len(e.inputs) + len(e.targets) for e in laid]
            np.add.at(self._tokens[g], [e.task for e in laid], sizes)
        A, b = self.cfg.accumulation, shape.B // self.cfg.accumulation
        ordered = [rows[g][a * b + i] for a in range(A) for g in self.groups for i in range(b)]
        self.laid = ordered
        batch = assemble(ordered, shape)
        if A > 1:
            batch = {key: x.reshape(A, -1, x.shape[-1]) for key, x in batch.items()}
        return batch, self.position()

    def position(self) -> Position:
        """The state after the last batch, as arrays that JSON can hold (`.tolist()`)."""
        held = np.zeros((self.cfg.row_groups, self._width, 2), np.int64)
        for g, waiting in self._waiting.items():
            if waiting:
                held[g, : len(waiting)] = [(e.task, e.counter) for e in waiting]
        state = dict(
            draws=self._draws,
            counts=self._counts,
            trimmed=self._trimmed,
            dropped=self._dropped,
            tokens=self._tokens,
            broken=self._broken,
            rates=self._asked,
            held=held,
            aside=self._aside,
        )
        return {key: x.copy() for key, x in state.items()} | self.source.state()

    @property
    def reading(self) -> str:
        """The task that is being read at this moment, '' for none."""
        task = getattr(self.source, 'reading', 0)
        return self.manifest.names[task] if task else ''

    @property
    def rates(self) -> np.ndarray:
        """float64 [M + 1]: the rates in force; they sum to 1 over the tasks that are left."""
        rates = self._asked if self._asked.any() else self.manifest.rates
        rates = rates * (self._broken == 0)
        if not rates.sum() > 0:
            raise UserError(
                f'mixture {self.manifest.mixture!r} has no task left to train on: '
                + '; '.join(f'{name}: {reason}' for name, reason in self.problems)
            )
        return rates / rates.sum()

    def set_rates(self, rates: Sequence[float]) -> None:
        """Puts new rates in force from the next draw on; [M + 1] by task id, in any scale."""
        self._asked = self._checked(rates)
        self._begin()

    def _checked(self, rates: Sequence[float]) -> np.ndarray:
        rates = np.asarray(rates, np.float64)
        if rates.shape != self._broken.shape or not np.isfinite(rates).all() or (rates < 0).any():
            raise UserError(
                f'rates must be {len(self._broken)} numbers of at least 0, one a task id, '
                f'got {rates}'
            )
        return np.where(self.manifest.drawable, rates, 0.0)

    def _begin(self) -> None:
        """Forgets what was looked up ahead."""
        self._in_force = self.rates
        self._fresh = {g: self._pull(g) for g in self.groups}

    def _pull(self, g: int) -> Iterator[Example]:
        """Draws without end for one group; its counters say how far it was consumed."""
        counts, (size, most) = self._counts[g], BLOCK
        while True:
            draw_K = self._draws[g] + np.arange(size)
            size = min(2 * size, max(BLOCK[0], min(4 * len(counts), most)))
            task_K = draws.pick(self._in_force, draws.uniform(self.seed, draws.TASK, g, draw_K))
            try:
                for example in self.source.block(g, task_K, counts.copy()):
                    self._draws[g] += 1
                    counts[example.task] += 1
                    if example.inputs is None:
                        self._dropped[g, example.task] += 1
                        continue
                    if example.trimmed:
                        self._trimmed[g, example.task] += 1
                    yield example
            except Broken as broken:
                self._draws[g] += 1
                self._leave_out(broken.task, broken.reason)
                self._in_force = self.rates
                self._fresh |= {other: self._pull(other) for other in self.groups if other != g}

    def _leave_out(self, task: int, reason: str) -> None:
        self._broken[task] = 1
        self.problems.append((self.manifest.names[task], reason))

    def _restore(self, position: Position) -> None:
        R, width = self._counts.shape
        own = list(self.groups)
        state = {key: np.asarray(value) for key, value in position.items()}
        if len(state['draws']) != R:
            raise UserError(
                f'the saved position has {len(state["draws"])} row groups and data.row_groups '
                f'is {R}; set data.row_groups={len(state["draws"])}'
            )
        if state['counts'].shape[1] > width:
            raise UserError(
                'the saved position knows more tasks than the table, which may grow but not shrink'
            )
        known = state['counts'].shape[1]
        self._draws[own] = state['draws'][own]
        self._counts[own, :known] = state['counts'][own]
        self._trimmed[own, :known] = state['trimmed'][own]
        self._dropped[own, :known] = state['dropped'][own]
        if 'tokens' in state:  # positions of older checkpoints have none
            self._tokens[own, :known] = state['tokens'][own]
        self._asked[:known] = state['rates']
        held = self._split(state['held'], state.get('aside', np.zeros((R, 0, 2))))
        self._waiting = self.source.restore({g: held[g] for g in own}, state)

    def _split(self, held: np.ndarray, aside: np.ndarray) -> list[np.ndarray]:
        """What waits in each group, the oldest first; what no task of this table may draw is put
        aside, for a later stage that may."""
        waits, rest = [], []
        for of_group in zip(aside.reshape(len(aside), -1, 2), held):
            pairs = np.concatenate(of_group).astype(np.int64)
            pairs = pairs[pairs[:, 0] > 0]
            now = self.manifest.drawable[pairs[:, 0]]
            waits.append(pairs[now])
            rest.append(pairs[~now])
        self._width = max(self.cfg.lookahead, *map(len, waits))
        self._aside = np.zeros((len(held), max(map(len, rest)), 2), np.int64)
        for g in self.groups:
            self._aside[g, : len(rest[g])] = rest[g]
        return waits


def merge_positions(positions: Sequence[Position]) -> Position:
    """Joins the positions of all hosts after the same batch into the one of the global batch."""
    whole = {}
    for key in positions[0]:
        parts = [np.asarray(position[key]) for position in positions]
        joined = dict(broken=np.max(parts, axis=0)) | dict.fromkeys(SHARED, parts[0])
        whole[key] = joined.get(key, np.sum(parts, axis=0))
    return whole


def realised_shares(position: Position, manifest: Manifest) -> list[dict[str, Any]]:
    """Tells for each task the share asked for and those trained on, in examples and in tokens."""
    told = ('counts', 'dropped', 'trimmed', 'tokens')
    counts, dropped, trimmed, tokens = (np.asarray(position[key]).sum(axis=0) for key in told)
    waits = [np.reshape(position.get(key, ()), (-1, 2)) for key in ('held', 'aside')]
    held = np.bincount(np.concatenate(waits)[:, 0].astype(np.int64), minlength=len(counts))
    held[0] = 0
    used = counts - dropped - held
    asked = manifest.rates
    return [
        dict(
            task=entry.name,
            asked=float(asked[entry.id]),
            realised=float(used[entry.id] / max(used.sum(), 1)),
            examples=int(used[entry.id]),
            tokens=int(tokens[entry.id]),
            token_share=float(tokens[entry.id] / max(tokens.sum(), 1)),
            trimmed=int(trimmed[entry.id]),
            dropped=int(dropped[entry.id]),
            status=entry.status,
        )
        for entry in manifest.tasks
    ]


def validation_batches(
    manifest: Manifest,
    cfg: DataConfig,
    examples: int = 64,
    host: int = 0,
    hosts: int = 1,
    split: str = 'validation',
) -> list[Batch]:
    """Packs the first examples of each task's validation split, always the same way.

    Batches are [B / A, ...] in rows over all hosts, the last one filled up with empty rows.
    """
    source = Cached(manifest, cfg, seed=0, split=split)
    chosen: list[Example] = []
    for task, reader_size in enumerate(source.sizes.tolist()):
        number = np.arange(min(examples, reader_size))
        same = np.full_like(number, task)
        chosen += source.read(same, number, number, np.zeros_like(number))
    shape = cfg.shape()._replace(B=cfg.batch_size // cfg.accumulation)
    rows = pack_all((e for e in chosen if e.inputs is not None), shape)
    rows += [[]] * (-len(rows) % shape.B)
    if shape.B % hosts:
        raise UserError(f'{hosts} hosts do not divide the {shape.B} rows of a validation batch')
    share = shape.B // hosts
    return [
        assemble(rows[i + host * share : i + (host + 1) * share], shape)
        for i in range(0, len(rows), shape.B)
    ]
