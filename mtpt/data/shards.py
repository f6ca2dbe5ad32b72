"""Reads examples out of a cache's memory-mapped shards.

A prompted example holds all its renderings, one for each prompt; which one is read depends on the
key. Text is cut into pieces as long as the objective asks for, and corrupted as it is read.

K examples read at once  N pieces of text  L tokens of a piece
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mtpt.config import UserError, choose
from mtpt.data import draws
from mtpt.data.config import DataConfig
from mtpt.data.manifest import Manifest, Shard, Split, TaskEntry
from mtpt.data.objectives import OBJECTIVE_LENGTHS, OBJECTIVES, Symbols
from mtpt.data.packing import Example

Pair = tuple[np.ndarray, np.ndarray]
Reader = Callable[[np.ndarray, np.ndarray], list[Pair]]

PARTS = dict(pairs=('tokens', 'index', 'examples'), text=('tokens',))


def load(manifest: Manifest, shard: Shard, kind: str) -> tuple[np.ndarray, ...]:
    """Maps a shard's arrays into memory.

    Raises:
      UserError: a file is missing, outside the folder, cut short or not what the manifest says.
    """
    arrays = []
    for part in PARTS[kind]:
        place = manifest.file(f'{shard.path}.{part}.npy')
        try:
            arrays.append(np.asarray(np.load(place, mmap_mode='r', allow_pickle=False)))
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f'shard {place} cannot be read ({error}); build the cache again'
            ) from error
    whole = len(arrays[0]) == shard.tokens
    if kind == 'pairs' and whole:
        index, examples = arrays[1:]
        whole = len(examples) == shard.examples + 1 and len(index) == 2 * examples[-1] + 1
        whole = whole and index[-1] == shard.tokens
    if not whole:
        place = manifest.file(f'{shard.path}.tokens.npy')
        raise UserError(f'shard {place} is not the one that was written; build the cache again')
    return tuple(arrays)


def verify(manifest: Manifest) -> list[str]:
    """Reads every file of a cache and returns those that are not as they were written."""
    wrong = []
    files = [
        (f'{shard.path}.{part}.npy', expected)
        for task in manifest.tasks
        for split in task.splits.values()
        for shard in split.shards
        for part, expected in shard.sha256.items()
    ]
    files += [(exam.path, exam.sha256) for exam in manifest.exams if not exam.reason]
    for path, expected in files:
        place = manifest.file(path)
        if not place.is_file() or hashlib.sha256(place.read_bytes()).hexdigest() != expected:
            wrong.append(str(place))
    return wrong


def pairs_reader(manifest: Manifest, split: Split) -> tuple[int, Reader]:
    """Returns how many examples a task has, and what reads them: (example_K, key_K) -> pairs."""
    shards = [load(manifest, shard, 'pairs') for shard in split.shards]
    edges = np.cumsum([0] + [shard.examples for shard in split.shards])

    def from_shard(arrays, within_K, key_K) -> list[Pair]:
        tokens, index, examples = arrays
        first = examples[within_K]
        count = (examples[within_K + 1] - first).astype(np.uint64)
        at = 2 * (first + (key_K % count).astype(np.int64))
        bounds = zip(index[at].tolist(), index[at + 1].tolist(), index[at + 2].tolist())
        return [(tokens[a:b], tokens[b:c]) for a, b, c in bounds]

    return int(edges[-1]), _over(shards, edges, from_shard)


def text_reader(
    manifest: Manifest, split: Split, entry: TaskEntry, inputs_length: int
) -> tuple[int, Reader]:
    """Returns how many pieces a text has, and what corrupts them: (piece_K, key_K) -> pairs."""
    L, _ = lengths(entry, inputs_length)
    shards = [load(manifest, shard, 'text')[0] for shard in split.shards]
    edges = np.cumsum([0] + [max(len(tokens) // L, int(len(tokens) > 1)) for tokens in shards])

    def from_shard(tokens, within_N, key_N) -> list[Pair]:
        return corrupt(
            entry, _pieces(tokens, within_N, L), key_N, manifest.symbols, manifest.inputs_eos
        )

    return int(edges[-1]), _over(shards, edges, from_shard)


def _over(shards: list, edges: np.ndarray, from_shard: Callable) -> Reader:
    """Reads from many shards by reading from each what falls into it."""

    def read(example_K, key_K):
        if len(shards) == 1:
            return from_shard(shards[0], example_K, key_K)
        shard_K = np.searchsorted(edges, example_K, side='right') - 1
        out: list[Pair] = [None] * len(example_K)
        for shard in np.unique(shard_K):
            where = np.flatnonzero(shard_K == shard)
            got = from_shard(shards[shard], example_K[where] - edges[shard], key_K[where])
            for place, pair in zip(where, got):
                out[place] = pair
        return out

    return read


def _pieces(tokens: np.ndarray, piece_N: np.ndarray, L: int) -> np.ndarray:
    return np.stack([tokens[i * L : (i + 1) * L] for i in piece_N.tolist()])


def corrupt(
    entry: TaskEntry, tokens_NL: np.ndarray, key_N: np.ndarray, symbols: Symbols, inputs_eos: bool
) -> list[Pair]:
    """Applies a text task's objective to pieces of one length.

    The padding is taken off, and where inputs do not end with EOS, so is theirs.
    """
    function = choose('objective', entry.objective, OBJECTIVES)
    inputs, targets = function(tokens_NL, key_N, symbols, **entry.objective_args)
    S_N, T_N = np.count_nonzero(inputs, axis=1).tolist(), np.count_nonzero(targets, axis=1).tolist()
    off = 0 if inputs_eos else 1
    return [(inputs[i, : s - off], targets[i, :t]) for i, (s, t) in enumerate(zip(S_N, T_N))]


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
        self.readers: dict[int, Reader] = {}
        self.names = manifest.names
        self.sizes = np.zeros(len(self.names), np.int64)
        self.broken: dict[int, str] = {}
        for entry in manifest.tasks:
            if (
                entry.status != 'ok'
                or entry.rate <= 0
                or (split != 'train' and split not in entry.splits)
            ):
                continue
            check_lengths(entry, manifest, cfg, split)
            try:
                size, self.readers[entry.id] = self._open(entry, split)
            except UserError as error:
                if cfg.on_broken == 'fail':
                    raise UserError(f'task {entry.name!r}: {error}') from error
                self.broken[entry.id] = str(error)
                continue
            self.sizes[entry.id] = size

    def _open(self, entry: TaskEntry, split: str) -> tuple[int, Reader]:
        if split not in entry.splits:
            raise UserError(f'the cache holds no split {split!r} of it; build the cache again')
        if entry.kind == 'text':
            length = self.cfg.inputs_length
            size, reader = text_reader(self.manifest, entry.splits[split], entry, length)
        else:
            size, reader = pairs_reader(self.manifest, entry.splits[split])
        if not size:
            raise UserError(f'its split {split!r} holds no example')
        return size, reader

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

    def fetch(self, task_K: np.ndarray, counter_K: np.ndarray) -> list[Example]:
        """Reads number `counter` of each task's endless order."""
        size_K = self.sizes[task_K]
        epoch_K, place_K = np.divmod(counter_K, size_K)
        order_K = draws.bits(self.seed, draws.ORDER, task_K, epoch_K)
        return self.read(task_K, counter_K, draws.permute(place_K, size_K, order_K), epoch_K)

    def read(self, task_K, counter_K, example_K, epoch_K) -> list[Example]:
        """Reads examples by number in the shards, each under the prompt its epoch gives it."""
        key_K = draws.bits(self.seed, draws.EXAMPLE, task_K, example_K, epoch_K)
        order = np.argsort(task_K, kind='stable')
        runs = np.split(order, np.flatnonzero(np.diff(task_K[order])) + 1)
        out: list[Example] = [None] * len(task_K)
        S, T = self.cfg.inputs_length, self.cfg.targets_length
        for run in runs if len(task_K) else []:
            task = int(task_K[run[0]])
            pairs = self.readers[task](example_K[run], key_K[run])
            for place, counter, (inputs, targets) in zip(
                run.tolist(), counter_K[run].tolist(), pairs
            ):
                example = Example(task, counter, inputs, targets)
                if len(inputs) > S or len(targets) > T:
                    example = fit(
                        example,
                        self.cfg,
                        self.manifest.symbols,
                        self.manifest.inputs_eos,
                        self.names[task],
                    )
                out[place] = example
        return out


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
