"""Writes the shards of one split: tokens one after another, and where each example begins.

A shard of text is one array of tokens. A shard of prompted examples adds `index`, the edges of all
inputs and targets (inputs of rendering r lie from index[2r] to index[2r + 1], its targets up to
index[2r + 2]), and `examples`, the first rendering of each example. Examples are shuffled within
what fits into a shard.
"""

import hashlib
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mtpt.config import UserError
from mtpt.data import draws
from mtpt.data.manifest import Shard, Split, replace

SHARD_TOKENS = 2**24

Ids = Sequence[int] | np.ndarray


class ShardWriter:
    """Collects examples and writes a shard whenever `shard_tokens` of them have come together.

    `folder` is the manifest's, `path` the shards' name in it, `size` that of the vocabulary.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        path: str,
        kind: str,
        size: int,
        shard_tokens: int = SHARD_TOKENS,
    ):
        self.folder, self.path, self.kind, self.size = folder, path, kind, size
        self.shard_tokens = shard_tokens
        self.dtype = np.uint16 if size <= 2**16 else np.int32
        self.shards: list[Shard] = []
        self.waiting: list[list[np.ndarray]] = []
        self.tokens = 0
        self.inputs = _Lengths()
        self.targets = _Lengths()

    def add_pairs(self, renderings: Iterable[tuple[Ids, Ids]], eos: int) -> None:
        """Adds one example with all its renderings; one without any is left out."""
        parts = []
        for inputs, targets in renderings:
            # An encoder with nothing to read has nothing to attend to.
            pair = [self._ids(inputs if len(inputs) else [eos]), self._ids(targets)]
            if not len(pair[1]):
                raise UserError('a target has no tokens, not even EOS')
            self.inputs.add(len(pair[0]))
            self.targets.add(len(pair[1]))
            parts += pair
        if parts:
            self._add(parts)

    def add_text(self, ids: Ids) -> None:
        """Adds one document."""
        if len(ids):
            self._add([self._ids(ids)])

    def finish(self) -> Split:
        """Writes what is left and tells what was written."""
        if self.waiting:
            self._flush()
        stats: dict[str, Any] = {}
        if self.kind == 'pairs' and self.inputs.count:
            stats = dict(
                renderings=self.inputs.count,
                mean_inputs=self.inputs.mean,
                mean_targets=self.targets.mean,
                longest_inputs=self.inputs.longest,
                longest_targets=self.targets.longest,
                shortest_targets=self.targets.shortest,
            )
        examples = sum(shard.examples for shard in self.shards)
        tokens = sum(shard.tokens for shard in self.shards)
        return Split(examples=examples, tokens=tokens, shards=tuple(self.shards), **stats)

    def _ids(self, ids: Ids) -> np.ndarray:
        wide = np.asarray(ids, np.int64)
        if len(wide) and (wide.min() < 0 or wide.max() >= self.size):
            raise UserError(f'token ids reach {wide.max()} in a vocabulary of {self.size}')
        return wide.astype(self.dtype)

    def _add(self, parts: list[np.ndarray]) -> None:
        self.waiting.append(parts)
        self.tokens += sum(map(len, parts))
        if self.tokens >= self.shard_tokens:
            self._flush()

    def _flush(self) -> None:
        n = np.full(len(self.waiting), len(self.waiting))
        name = int.from_bytes(hashlib.sha256(pathlib.Path(self.path).name.encode()).digest()[:8])
        key = draws.bits(draws.SHUFFLE, name, np.full_like(n, len(self.shards)))
        order = draws.permute(np.arange(len(n)), n, key).tolist()
        examples = [self.waiting[i] for i in order]
        parts = [part for example in examples for part in example]
        arrays = dict(tokens=np.concatenate(parts))
        if self.kind == 'pairs':
            arrays['index'] = np.cumsum([0] + [len(part) for part in parts])
            arrays['examples'] = np.cumsum([0] + [len(example) // 2 for example in examples])
        path = f'{self.path}-{len(self.shards):05d}'
        sums = {part: _save(self.folder / f'{path}.{part}.npy', x) for part, x in arrays.items()}
        self.shards.append(Shard(path, len(examples), self.tokens, sums))
        self.waiting, self.tokens = [], 0


class _Lengths:
    def __init__(self):
        self.count, self.total, self.longest, self.shortest = 0, 0, 0, 0

    def add(self, length: int) -> None:
        self.shortest = min(self.shortest, length) if self.count else length
        self.longest = max(self.longest, length)
        self.count += 1
        self.total += length

    @property
    def mean(self) -> float:
        return self.total / self.count


def _save(place: pathlib.Path, array: np.ndarray) -> str:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    replace(place, content.getvalue())
    return hashlib.sha256(content.getbuffer()).hexdigest()
