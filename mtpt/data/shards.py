"""Reads examples out of a cache's shards.

A prompted example holds all its renderings, one for each prompt; which one is read depends on the
key. Text is cut into pieces as long as the objective asks for, and corrupted as it is read. A shard
is opened when something in it is first drawn, and what is read of it was checked.

K examples read at once  N pieces of text  L tokens of a piece
"""

import bisect
import hashlib
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from mtpt.config import UserError, choose
from mtpt.data import draws
from mtpt.data.blocks import MEND, Blocks, Files
from mtpt.data.config import DataConfig
from mtpt.data.manifest import Manifest, Shard, Split, TaskEntry
from mtpt.data.objectives import OBJECTIVE_LENGTHS, OBJECTIVES, Symbols
from mtpt.data.packing import Example

Pair = tuple[np.ndarray, np.ndarray]

EDGES = struct.Struct('<QQ')
KEPT = 1 << 13  # bytes of a shard's starts that are kept in memory, at most


class _Shards:
    """The shards of a split, each opened when first read; `edges` are the first numbers in each."""

    def __init__(self, manifest: Manifest, split: Split, files: Files, sizes: list[int]):
        self._manifest, self._files, self._shards = manifest, files, split.shards
        self.edges = np.cumsum([0, *sizes]).tolist()
        self.size = self.edges[-1]
        self._opened: list[Blocks | None] = [None] * len(split.shards)

    def find(self, number: int) -> tuple[Blocks, int]:
        """The shard that holds a number, and the number in it."""
        at = bisect.bisect_right(self.edges, number) - 1 if len(self._shards) > 1 else 0
        return self._opened[at] or self._open(at), number - self.edges[at]

    def _open(self, at: int) -> Blocks:
        blocks = self._opened[at] = open_shard(self._manifest, self._shards[at], self._files)
        return blocks


class Prompted(_Shards):
    """Examples with their renderings; `prefix` is the id before all inputs, if any."""

    def __init__(self, manifest: Manifest, split: Split, files: Files, prefix: int | None = None):
        super().__init__(manifest, split, files, [s.examples for s in split.shards])
        self._prefix = prefix
        self._starts: dict[int, bytes] = {}

    def pair(self, example: int, key: int) -> Pair:
        """One rendering of an example, the `key`-th, counted round and round."""
        blocks, within = self.find(example)
        record = self._record(blocks, within)
        count = record[0] | record[1] << 8 | record[2] << 16 | record[3] << 24
        lengths = struct.unpack_from(f'<{2 * count}I', record, 4)
        at = 2 * (key % count)
        tokens = np.frombuffer(record, blocks.dtype, sum(lengths), 4 + 8 * count)
        begin = sum(lengths[:at])
        middle = begin + lengths[at]
        inputs, targets = tokens[begin:middle], tokens[middle : middle + lengths[at + 1]]
        return (inputs if self._prefix is None else np.append(self._prefix, inputs)), targets

    def renderings(self, example: int) -> int:
        """How many renderings an example has."""
        return int.from_bytes(self._record(*self.find(example))[:4], 'little')

    def _record(self, blocks: Blocks, within: int) -> bytes:
        base = 8 * (blocks.examples + 1)
        try:
            if base <= KEPT:  # those of small tasks are kept: a thousand take 8 MB
                starts = self._starts.get(id(blocks))
                if starts is None:
                    starts = self._starts[id(blocks)] = blocks.read(0, base)
                start, end = EDGES.unpack_from(starts, 8 * within)
            else:
                start, end = EDGES.unpack(blocks.read(8 * within, 8 * within + 16))
            return blocks.read(base + start, base + end)
        except UserError as error:
            raise UserError(f'example {within}: {error}') from error


class Text(_Shards):
    """Pieces of raw text under the objective of a task."""

    def __init__(
        self, manifest: Manifest, split: Split, files: Files, entry: TaskEntry, inputs_length: int
    ):
        self.L, _ = lengths(entry, inputs_length)
        sizes = [max(s.tokens // self.L, int(s.tokens > 1)) for s in split.shards]
        super().__init__(manifest, split, files, sizes)
        self._entry = entry

    def pairs(self, piece_N: list[int], key_N: np.ndarray) -> list[Pair]:
        """Reads pieces and corrupts them."""
        tokens = [self._piece(*self.find(number)) for number in piece_N]
        out: list[Pair] = [None] * len(tokens)
        sizes = np.array([len(piece) for piece in tokens])
        for size in set(sizes.tolist()):  # a shard shorter than a piece is one by itself
            where = np.flatnonzero(sizes == size)
            made = corrupt(
                self._entry,
                np.stack([tokens[i] for i in where]),
                key_N[where],
                self._manifest.symbols,
                self._manifest.inputs_eos,
            )
            for place, pair in zip(where.tolist(), made):
                out[place] = pair
        return out

    def _piece(self, blocks: Blocks, within: int) -> np.ndarray:
        size = blocks.header.itemsize
        start, end = within * self.L, min((within + 1) * self.L, blocks.header.tokens)
        try:
            found = blocks.read(start * size, end * size)
        except UserError as error:
            raise UserError(f'tokens {start} to {end}: {error}') from error
        return np.frombuffer(found, blocks.dtype)


def open_shard(manifest: Manifest, shard: Shard, files: Files) -> Blocks:
    """Opens a shard and holds its header against the manifest; of a cache in a cloud, a copy, which
    is fetched again where it is that of another cache that lay there before.

    Raises:
      UserError: its file is missing, outside the folder, cut short or not the one written.
    """
    place = manifest.file(f'{shard.path}.shard')
    try:
        return _opened(manifest, shard, files, place)
    except UserError:
        if not manifest.remote:
            raise
    files.forget(str(place))
    return _opened(manifest, shard, files, manifest.file(f'{shard.path}.shard', fresh=True))


def _opened(manifest: Manifest, shard: Shard, files: Files, place: pathlib.Path) -> Blocks:
    blocks = Blocks(files, str(place), shard.sha256['shard'], str(place))
    if (blocks.header.examples, blocks.header.tokens) != (shard.examples, shard.tokens):
        raise UserError(f'shard {place} is not the one that the manifest names; {MEND}')
    return blocks


def examples_of(manifest: Manifest, shard: Shard, files: Files) -> Iterator[list[Pair]]:
    """All renderings of each prompted example of a shard."""
    reader = Prompted(manifest, Split(shard.examples, shard.tokens, (shard,)), files)
    for number in range(shard.examples):
        yield [reader.pair(number, r) for r in range(reader.renderings(number))]


def tokens_of(manifest: Manifest, shard: Shard, files: Files) -> np.ndarray:
    """All tokens of a shard of text."""
    blocks = open_shard(manifest, shard, files)
    return np.frombuffer(blocks.read(0, blocks.header.data), blocks.dtype)


def check_there(manifest: Manifest, split: Split) -> None:
    """Looks, without opening them, whether all shards of a split are there as long as they were.

    Of a cache in a cloud that is known when a shard is fetched.

    Raises:
      UserError: naming the first that is not.
    """
    if manifest.remote:
        return
    for shard in split.shards:
        place = manifest.file(f'{shard.path}.shard')
        try:
            size = os.stat(place).st_size
        except OSError as error:
            raise UserError(f'shard {place} cannot be read ({error.strerror}); {MEND}') from error
        if size != shard.bytes:
            raise UserError(
                f'shard {place} cannot be read: it has {size} bytes and was written with '
                f'{shard.bytes}; {MEND}'
            )


def verify(manifest: Manifest) -> list[str]:
    """Reads every file of a cache and returns those that are not as they were written."""
    wrong, files = [], Files()
    shards = [s for task in manifest.tasks for split in task.splits.values() for s in split.shards]
    for shard in shards:
        try:
            open_shard(manifest, shard, files).whole()
        except UserError:
            wrong.append(str(manifest.file(f'{shard.path}.shard')))
    for exam in manifest.exams:
        if exam.reason:
            continue
        place = manifest.file(exam.path)
        if not place.is_file() or hashlib.sha256(place.read_bytes()).hexdigest() != exam.sha256:
            wrong.append(str(place))
    return wrong


def corrupt(
    entry: TaskEntry, tokens_NL: np.ndarray, key_N: np.ndarray, symbols: Symbols, inputs_eos: bool
) -> list[Pair]:
    """Applies a text task's objective to pieces of one length.

    The padding is taken off, and where inputs do not end with EOS, so is theirs, unless nothing
    would be left to attend to.
    """
    function = choose('objective', entry.objective, OBJECTIVES)
    inputs, targets = function(tokens_NL, key_N, symbols, **entry.objective_args)
    S_N, T_N = np.count_nonzero(inputs, axis=1), np.count_nonzero(targets, axis=1)
    S_N = S_N if inputs_eos else np.maximum(S_N - 1, 1)
    ends = zip(S_N.tolist(), T_N.tolist())
    return [(inputs[i, :s], targets[i, :t]) for i, (s, t) in enumerate(ends)]


def lengths(entry: TaskEntry, inputs_length: int) -> tuple[int, int]:
    """Returns a text task's (tokens, targets) lengths, for inputs of `inputs_length` tokens.

    Raises:
      UserError: the objective does not exist or does not know one of its settings.
    """
    args = entry.objective_args
    rule = choose('objective', entry.objective, OBJECTIVE_LENGTHS)
    try:
        return rule(inputs_length, **args)
    except TypeError as error:
        raise UserError(
            f'task {entry.name!r}: {entry.objective} is given {args}: {error}'
        ) from error


def mode_of(entry: TaskEntry, manifest: Manifest, cfg: DataConfig) -> int | None:
    """The mode token before the inputs of a task, which raw text has from its objective."""
    prompted = cfg.mode_token and entry.kind == 'pairs'
    return manifest.symbols.modes[cfg.mode_token] if prompted else None


def fit(example: Example, cfg: DataConfig, symbols, inputs_eos: bool, name: str) -> Example:
    """Makes an example fit a row: inputs are trimmed; targets are trimmed, dropped or refused."""
    S, T = cfg.inputs_length, cfg.targets_length
    task, counter, inputs, targets, _ = example
    if len(targets) > T:
        if cfg.long_targets == 'fail':
            raise UserError(_too_long(name, len(targets), T))
        if cfg.long_targets == 'drop':
            return Example(task, counter, None, None)
        targets = np.append(targets[: T - 1], symbols.eos)
    if len(inputs) > S:
        inputs = np.append(inputs[: S - 1], symbols.eos) if inputs_eos else inputs[:S]
    return Example(task, counter, inputs, targets, True)


def _too_long(name: str, longest: int, T: int) -> str:
    return (
        f'task {name!r} has targets of {longest} tokens and data.targets_length is {T}; set '
        f'data.targets_length={longest}, or data.long_targets to trim or drop'
    )


class Cached:
    """Examples by number from the shards of a split. `broken`: ids left out, and why."""

    def __init__(self, manifest: Manifest, cfg: DataConfig, seed: int, split: str = 'train'):
        self.manifest, self.cfg, self.seed = manifest, cfg, seed
        self.files = Files()
        self.readers: dict[int, Prompted | Text] = {}
        self.names = manifest.names
        self.sizes = np.zeros(len(self.names), np.int64)
        self.broken: dict[int, str] = {}
        self.reading = 0  # the id of the task that is being read, for whoever watches
        drawable = manifest.drawable
        for entry in manifest.tasks:
            wanted = drawable[entry.id] if split == 'train' else entry.rate > 0
            if entry.status != 'ok' or not wanted:
                continue
            if split != 'train' and split not in entry.splits:
                continue
            check_lengths(entry, manifest, cfg, split)
            try:
                reader = self._reader(entry, split)
            except UserError as error:
                if cfg.on_broken == 'fail':
                    raise UserError(f'task {entry.name!r}: {error}') from error
                self.broken[entry.id] = str(error)
                continue
            self.readers[entry.id], self.sizes[entry.id] = reader, reader.size

    def _reader(self, entry: TaskEntry, split: str) -> Prompted | Text:
        if split not in entry.splits:
            raise UserError(f'the cache holds no split {split!r} of it; build the cache again')
        shards = entry.splits[split]
        check_there(self.manifest, shards)
        if entry.kind == 'text':
            reader = Text(self.manifest, shards, self.files, entry, self.cfg.inputs_length)
        else:
            prefix = mode_of(entry, self.manifest, self.cfg)
            reader = Prompted(self.manifest, shards, self.files, prefix)
        if not reader.size:
            raise UserError(f'its split {split!r} holds no example')
        return reader

    def block(self, group: int, task_K: np.ndarray, counts: np.ndarray) -> Iterator[Example]:
        """Gives a group's next draws of these tasks; `counts` [M + 1]: how many it had of each."""
        taken_K = counts[task_K] + draws.rank(task_K)
        return iter(self.fetch(task_K, taken_K * self.cfg.row_groups + group))

    def state(self) -> dict[str, Any]:
        """What a position must hold beside the loader's own counters: nothing."""
        return {}

    def restore(self, held: dict[int, np.ndarray], state: dict) -> dict[int, list[Example]]:
        """Reads the examples again that were waiting, [W, 2] (task, counter) for each group."""
        known = {g: pairs[np.isin(pairs[:, 0], list(self.readers))] for g, pairs in held.items()}
        read = {g: self.fetch(pairs[:, 0], pairs[:, 1]) for g, pairs in known.items()}
        return {g: [e for e in examples if e.inputs is not None] for g, examples in read.items()}

    def number(self, task: int, counter: int) -> tuple[int, int]:
        """The epoch of number `counter` of a task's endless order, and its number in the shards."""
        epoch, place = divmod(counter, int(self.sizes[task]))
        order_1 = draws.bits(self.seed, draws.ORDER, np.array([task]), np.array([epoch]))
        found_1 = draws.permute(np.array([place]), self.sizes[[task]], order_1)
        return epoch, int(found_1[0])

    def fetch(self, task_K: np.ndarray, counter_K: np.ndarray) -> list[Example]:
        """Reads number `counter` of each task's endless order."""
        size_K = self.sizes[task_K]
        epoch_K, place_K = np.divmod(counter_K, size_K)
        order_K = draws.bits(self.seed, draws.ORDER, task_K, epoch_K)
        return self.read(task_K, counter_K, draws.permute(place_K, size_K, order_K), epoch_K)

    def read(self, task_K, counter_K, example_K, epoch_K) -> list[Example]:
        """Reads examples by number in the shards, each under the prompt its epoch gives it.

        Raises:
          UserError: what is read was altered or cut: names the task, the shard and the example.
        """
        key_K = draws.bits(self.seed, draws.EXAMPLE, task_K, example_K, epoch_K)
        pairs: list[Pair] = [None] * len(task_K)
        tasks, examples, keys, texts = task_K.tolist(), example_K.tolist(), key_K.tolist(), {}
        try:
            # Task by task, so that of thousands each is fetched into the CPU's cache once.
            for place in np.lexsort((example_K, task_K)).tolist():
                task = self.reading = tasks[place]
                reader = self.readers[task]
                if isinstance(reader, Text):
                    texts.setdefault(task, []).append(place)
                else:
                    pairs[place] = reader.pair(examples[place], keys[place])
            for task, places in texts.items():
                self.reading = task
                found = self.readers[task].pairs([examples[i] for i in places], key_K[places])
                for place, pair in zip(places, found):
                    pairs[place] = pair
        except UserError as error:
            raise UserError(f'task {self.names[task]!r}: {error}') from error
        finally:
            self.reading = 0
        return [
            self._fitting(Example(task, counter, *pair))
            for task, counter, pair in zip(tasks, counter_K.tolist(), pairs)
        ]

    def _fitting(self, example: Example) -> Example:
        cfg, manifest = self.cfg, self.manifest
        if len(example.inputs) <= cfg.inputs_length and len(example.targets) <= cfg.targets_length:
            return example
        return fit(example, cfg, manifest.symbols, manifest.inputs_eos, self.names[example.task])


def check_lengths(entry: TaskEntry, manifest: Manifest, cfg: DataConfig, split: str) -> None:
    """Refuses a task whose targets the batch would cut.

    Raises:
      UserError: names the task, both lengths and the cure.
    """
    T = cfg.targets_length
    if entry.kind == 'text':
        tokens, targets = lengths(entry, cfg.inputs_length)
        if targets > T:
            raise UserError(
                f'task {entry.name!r} ({entry.objective}) makes targets of {targets} tokens '
                f'from inputs of {cfg.inputs_length} and data.targets_length is {T}; set '
                f'data.targets_length={targets} or lower data.inputs_length'
            )
        corrupt(entry, np.full((1, tokens), 3), draws.bits(0), manifest.symbols, True)
        return
    stats = entry.splits.get(split)
    if stats is None:
        return
    if stats.longest_targets > T and cfg.long_targets == 'fail':
        raise UserError(_too_long(entry.name, stats.longest_targets, T))
    if stats.shortest_targets > T and cfg.long_targets == 'drop':
        raise UserError(
            f'every target of task {entry.name!r} is longer than data.targets_length={T} '
            f'(the shortest has {stats.shortest_targets} tokens), so that dropping leaves none; '
            'raise it or trim'
        )
