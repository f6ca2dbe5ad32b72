"""The same batches from iterators that are handed in, one a task, opened when the task is first
drawn.

A stream cannot jump: it resumes by reading on to where it was, on the same number of hosts. Of each
task's examples host h of n takes the h-th, the (h + n)-th and so on.

M tasks  R row groups  W examples waiting  L tokens of a piece of text
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from mtpt.config import UserError
from mtpt.data import draws, shards
from mtpt.data.config import DataConfig
from mtpt.data.loader import Broken, Loader, Position
from mtpt.data.manifest import Manifest, TaskEntry
from mtpt.data.packing import Example

Pairs = Iterator[tuple[Any, Any]]

DROPPED = 10_000  # targets too long in a row before a task is held to have no other


class Streamed:
    """Examples in the order in which each task's iterator gives them."""

    def __init__(
        self,
        manifest: Manifest,
        cfg: DataConfig,
        open_task: Callable[[str], Pairs],
        host: int = 0,
        hosts: int = 1,
    ):
        self.manifest, self.cfg, self.open_task = manifest, cfg, open_task
        self.host, self.hosts = host, hosts
        self.names = manifest.names
        self.taken = np.zeros(len(self.names), np.int64)
        self._dropped = np.zeros(len(self.names), np.int64)
        self.broken: dict[int, str] = {}
        self.reading = 0  # the id of the task that is being read, for whoever watches
        self._open: dict[int, Pairs] = {}
        for entry in manifest.tasks:
            if manifest.drawable[entry.id]:
                shards.check_lengths(entry, manifest, cfg, 'train')
        self._modes = {t.id: shards.mode_of(t, manifest, cfg) for t in manifest.tasks}

    def block(self, group: int, task_K: np.ndarray, counts: np.ndarray) -> Iterator[Example]:
        """Gives the next example of each task as it is asked for."""
        return map(self._take, task_K.tolist())

    def number(self, task: int, counter: int) -> tuple[int, int]:
        """0, as a stream knows no epochs, and the number of an example in the task's stream."""
        return 0, counter * self.hosts + self.host

    def state(self) -> Position:
        return {'hosts': np.int64(self.hosts)}

    def restore(self, held: dict[int, np.ndarray], state: Position) -> dict[int, list[Example]]:
        """Reads on to where the position is and picks up the examples that were waiting."""
        then = int(state.get('hosts', 0))
        if then != self.hosts:
            was = f'of a stream on {then} hosts' if then else 'of a cache'
            raise UserError(
                f'the saved position is that {was} and this is a stream on {self.hosts}; '
                'a stream resumes on the same number of hosts, a cache (data.mode=cached) on any'
            )
        taken = state['counts'][list(held)].sum(axis=0)
        for task in np.flatnonzero(state['broken']).tolist():
            self.broken[task] = 'left out earlier in this run'
        found: dict[tuple[int, int], Example] = {}
        wanted = {tuple(pair) for pairs in held.values() for pair in pairs.tolist()}
        for task in sorted({task for task, _ in wanted}):
            for counter in range(max(c for t, c in wanted if t == task) + 1):
                try:
                    example = self._take(task)
                except Broken:  # since the position was saved
                    break
                if (task, counter) in wanted:
                    found[task, counter] = example
        for task in np.flatnonzero(taken).tolist():
            if task not in self.broken and self.manifest.drawable[task]:
                self._skip(task, int(taken[task] - self.taken[task]))
        waits = {g: [found.get(tuple(pair)) for pair in held[g].tolist()] for g in held}
        return {g: [e for e in examples if e is not None] for g, examples in waits.items()}

    def _skip(self, task: int, number: int) -> None:
        self.taken[task] += number
        if number:
            try:
                self._open[task] = itertools.islice(self._iterator(task), number, None)
            except Exception as error:
                if self.cfg.on_broken == 'fail':
                    raise self._told(task, error) from error
                self.broken[task] = _reason(error)

    def _iterator(self, task: int) -> Pairs:
        if task not in self._open:
            whole = iter(self.open_task(self.names[task]))
            self._open[task] = itertools.islice(whole, self.host, None, self.hosts)
        return self._open[task]

    def _told(self, task: int, error: Exception) -> UserError:
        return UserError(
            f'task {self.names[task]!r} cannot be read: {_reason(error)}; mend it, or set '
            'data.on_broken=skip to train without it'
        )

    def _take(self, task: int) -> Example:
        name = self.names[task]
        self.reading = task
        try:
            pair = next(self._iterator(task), None)
            if pair is None:
                raise UserError(f'its stream ended after {self.taken[task]} examples')
            inputs, targets = (np.asarray(ids, np.int32) for ids in pair)
            if not len(targets):
                raise UserError('a target has no tokens, not even EOS')
        except Exception as error:
            if self.cfg.on_broken == 'fail':
                raise self._told(task, error) from error
            self.broken[task] = _reason(error)
            raise Broken(task, self.broken[task]) from error
        finally:
            self.reading = 0
        counter = int(self.taken[task])
        self.taken[task] += 1
        symbols = self.manifest.symbols
        if not len(inputs):
            inputs = np.array([symbols.eos], np.int32)
        if (mode := self._modes.get(task)) is not None:
            inputs = np.append(np.int32(mode), inputs)
        example = Example(task, counter, inputs, targets)
        if len(inputs) > self.cfg.inputs_length or len(targets) > self.cfg.targets_length:
            example = shards.fit(example, self.cfg, symbols, self.manifest.inputs_eos, name)
        self._dropped[task] = 0 if example.inputs is not None else self._dropped[task] + 1
        if self._dropped[task] > DROPPED:
            raise UserError(
                f'{DROPPED} targets of task {name!r} in a row are longer than data.targets_length='
                f'{self.cfg.targets_length}; raise it, or set data.long_targets=trim'
            )
        return example


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'


def stream(
    manifest: Manifest,
    cfg: DataConfig,
    open_task: Callable[[str], Pairs],
    seed: int = 0,
    host: int = 0,
    hosts: int = 1,
    position: Position | None = None,
    rates: Any = None,
) -> Loader:
    """A loader over `open_task(name)`, an endless iterator of (inputs, targets) ids.

    Raises:
      UserError: while drawing, with `on_broken='fail'`, when a task cannot be opened or read; with
        'skip' the task is left out from there on, in the position and in `problems`.
    """
    source = Streamed(manifest, cfg, open_task, host, hosts)
    return Loader(manifest, cfg, seed, host, hosts, position, rates, source)


def corrupted(
    documents: Callable[[], Iterable[Any]],
    entry: TaskEntry,
    manifest: Manifest,
    cfg: DataConfig,
    seed: int = 0,
) -> Pairs:
    """Cuts an endless text, `documents()` again and again, into pieces and corrupts each anew."""
    L, _ = shards.lengths(entry, cfg.inputs_length)
    text = _endless(documents, entry.name)
    for piece in itertools.count():
        tokens = np.fromiter(itertools.islice(text, L), np.int64, L)
        key = draws.bits(seed, draws.EXAMPLE, entry.id, piece)
        yield shards.corrupt(entry, tokens[None], key, manifest.symbols, manifest.inputs_eos)[0]


def _endless(documents: Callable[[], Iterable[Any]], name: str) -> Iterator[int]:
    while True:
        empty = True
        for ids in documents():
            empty = empty and not len(ids)
            yield from ids
        if empty:
            raise UserError(f'the text of task {name!r} is empty')
