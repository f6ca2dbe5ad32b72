"""What heads are taught, beside the tokens of a batch: labels read off the targets.

A transformation of batches that leaves them as they are and adds two arrays, so that the order of
examples, resuming and hosts know nothing of it.

B rows  S input positions  T target positions  G segments of a row  O columns of labels
"""

import fnmatch
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtpt.config import UserError, nearest
from mtpt.data.manifest import Manifest
from mtpt.data.packing import Batch
from mtpt.vocabulary import Vocabulary

NOT_OURS, UNLABELLED = -1, -2
SPACES = ('▁', ' ', '<0x09>', '<0x0A>', '<0x0D>')  # pieces that are nothing but space
REMEMBERED = 1 << 16  # targets whose labels are kept


class Labels:
    """Adds 'segment_labels' and 'token_labels' to batches.

    Segment labels [B, G, O] hold the columns of all heads side by side: of a 'classification' head
    the number of the label; of a 'multi_label' head 0 or 1 for each label; of a 'contrastive' head
    a number that equal target texts share; of a 'token_labels' head 0. They are -1 where a segment
    is none of the head's tasks, and -2 where its target is none of the head's labels.

    Token labels [B, S, 'token_labels' heads] hold the number of the label of each word at its first
    token, and -1 elsewhere. A target labels the words of its inputs where it has as many words;
    mode tokens and sentinels are no words.

    Args:
      heads: configs with name, kind, tasks, labels, separator, nothing and columns.
      manifest: the run's tasks.
      vocabulary: what the run's tokens are of.

    Raises:
      UserError: a head whose globs match no task.
    """

    def __init__(self, heads: Sequence[Any], manifest: Manifest, vocabulary: Vocabulary):
        self.heads, self.vocabulary = heads, vocabulary
        self.columns = sum(head.columns for head in heads)
        self.covered = [covered(head, manifest) for head in heads]
        self.any = np.any(self.covered, axis=0)
        self.numbers = [self._numbers(head) for head in heads]
        self._columns_of = functools.lru_cache(REMEMBERED)(self._columns_of)

    def __call__(self, batch: Batch) -> Batch:
        shape = batch['segment_task_ids'].shape
        flat = {name: np.asarray(x).reshape(-1, x.shape[-1]) for name, x in batch.items()}
        tasks_BG = flat['segment_task_ids']
        labels_BGO = np.full((*tasks_BG.shape, self.columns), NOT_OURS, np.int32)
        worded = [i for i, head in enumerate(self.heads) if head.kind == 'token_labels']
        S = flat['encoder_segment_ids'].shape[-1]
        words_BSO = np.full((len(tasks_BG), S, len(worded)), NOT_OURS, np.int32)
        inputs, targets = (_parts(flat, side) for side in ('encoder_input', 'decoder_target'))
        for row, g in np.argwhere(self.any[tasks_BG]).tolist():
            target, task = targets(row, g)[1], int(tasks_BG[row, g])
            labels_BGO[row, g] = self._columns_of(task, target.tobytes())
            for place, i in enumerate(worded):
                if self.covered[i][task]:
                    start, tokens = inputs(row, g)
                    firsts, numbers = self._words(i, tokens, target)
                    words_BSO[row, start + firsts, place] = numbers
                    column = sum(head.columns for head in self.heads[:i])
                    labels_BGO[row, g, column] = 0 if len(firsts) else UNLABELLED
        added = dict(segment_labels=labels_BGO.reshape(*shape, -1))
        if worded:
            lead = batch['encoder_segment_ids'].shape
            added['token_labels'] = words_BSO.reshape(*lead, -1)
        return batch | added

    def _numbers(self, head: Any) -> dict[str, int]:
        """From the text of a label, as the vocabulary gives it back, to its number."""
        return {
            self._plain(text): number
            for number, label in enumerate(head.labels)
            for text in label.split('|')
        }

    def _plain(self, text: str) -> str:
        return self.vocabulary.decode(self.vocabulary.encode(text)).strip()

    def _columns_of(self, task: int, target: bytes) -> list[int]:
        """The columns of all heads for a segment."""
        columns = []
        text = None
        for head, covered_M, numbers in zip(self.heads, self.covered, self.numbers):
            if not covered_M[task]:
                columns += [NOT_OURS] * head.columns
                continue
            if text is None:
                text = self.vocabulary.decode(np.frombuffer(target, np.int32)).strip()
            columns += COLUMNS[head.kind](self, head, numbers, text)
        return columns

    def _one(self, head, numbers, text):
        return [numbers.get(text, UNLABELLED)]

    def _set(self, head, numbers, text):
        parts = [] if text in ('', head.nothing) else text.split(head.separator)
        found = {numbers.get(part.strip(), UNLABELLED) for part in parts}
        if UNLABELLED in found:
            return [UNLABELLED] * head.columns
        return [int(number in found) for number in range(head.columns)]

    def _text(self, head, numbers, text):
        return [zlib.crc32(text.encode()) & 0x7FFFFFFF]

    def _zero(self, head, numbers, text):
        return [0]

    def _words(self, i, tokens, target) -> tuple[np.ndarray, np.ndarray]:
        """Where the words of a segment begin, and their labels; nothing where they do not fit."""
        labels = self.vocabulary.decode(target).split()
        firsts = word_starts(self.vocabulary, tokens)
        numbers = [self.numbers[i].get(label, UNLABELLED) for label in labels]
        if len(labels) != len(firsts) or UNLABELLED in numbers:
            return np.zeros((2, 0), np.int64)
        return np.array(firsts, np.int64), np.array(numbers, np.int64)


COLUMNS = dict(
    classification=Labels._one,
    multi_label=Labels._set,
    contrastive=Labels._text,
    token_labels=Labels._zero,
)


def covers(head: Any, *names: str) -> bool:
    """Whether one of the names (of a task, of its family) is among those that a head is for."""
    return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in head.tasks)


def covered(head: Any, manifest: Manifest) -> np.ndarray:
    """Which task ids [M + 1] are a head's."""
    found = np.zeros(len(manifest.names), bool)
    for task in manifest.tasks:
        found[task.id] = covers(head, task.name, task.family)
    if not found.any():
        known = {name for task in manifest.tasks for name in (task.name, task.family)}
        raise UserError(
            f'model.heads: {head.name!r} is for {", ".join(head.tasks)}, which no task or family '
            f'of the run is called; {nearest(head.tasks[0] if head.tasks else "", known)}'
        )
    return found


def word_starts(vocabulary: Vocabulary, tokens: Sequence[int]) -> list[int]:
    """The positions of the first tokens of the words of a text."""
    firsts, between = [], True
    for place, token in enumerate(map(int, tokens)):
        if token in (vocabulary.pad, vocabulary.eos) or token >= vocabulary.pieces:
            between = True
            continue
        piece = vocabulary.name(token)
        if piece in SPACES:
            between = True
        else:
            if between or piece.startswith('▁'):
                firsts.append(place)
            between = False
    return firsts


def _parts(flat: Batch, side: str):
    """Gives the segment g (from 0) of a row: its first position and its tokens."""
    part = side.split('_')[0]
    tokens_BT, segments_BT = flat[f'{side}_tokens'], flat[f'{part}_segment_ids']
    G = flat['segment_task_ids'].shape[-1]
    numbers = np.arange(1, G + 2)
    edges_BG = np.array([np.searchsorted(_rising(row), numbers) for row in segments_BT])

    def segment(row: int, g: int) -> tuple[int, np.ndarray]:
        first, last = edges_BG[row, g], edges_BG[row, g + 1]
        return int(first), tokens_BT[row, first:last]

    return segment


def _rising(segments: np.ndarray) -> np.ndarray:
    """The segment ids of a row with what comes after the last one counted highest."""
    return np.where(segments == 0, np.iinfo(segments.dtype).max, segments)
