"""The table of a run's tasks, and what a cache holds of each: one JSON file beside the shards.

    manifest.json                         this table
    vocabulary/                           the vocabulary that made the tokens
    shards/TASK/MARK/SPLIT-*.shard        tokens with their checksums (`data.blocks`)
    eval/SPLIT/TASK.PROMPT.jsonl.gz       evaluation sets

Ids are given once: a table that grows keeps every id it has, so that what a model learnt of task 7
stays with task 7. A manifest without splits is the table of a streamed run.

M tasks (ids count from 1; 0 is padding)
"""

import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import typing
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mtpt.config import UserError, nearest
from mtpt.data.objectives import Symbols
from mtpt.folders import Folder, is_remote
from mtpt.vocabulary import SENTINELS, Vocabulary

FORMAT = 3
FILE = 'manifest.json'
DONE = 'done.json'  # in a folder of shards: its splits, once all are written


@dataclasses.dataclass(frozen=True)
class Shard:
    """One piece of a split; `path` is relative to the manifest and lacks `.shard`. `sha256` is that
    of the header and checksums (`data.blocks`), `bytes` the size of the file."""

    path: str
    examples: int
    tokens: int
    sha256: dict[str, str]
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of one split of a task, and what is known of its lengths (in tokens)."""

    examples: int
    tokens: int
    shards: tuple[Shard, ...]
    renderings: int = 0
    mean_inputs: float = 0.0
    mean_targets: float = 0.0
    longest_inputs: int = 0
    longest_targets: int = 0
    shortest_targets: int = 0


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """One task of the run. `kind` is 'pairs' or 'text'; `status` is 'ok', 'skipped' (see `reason`)
    or, for a task of the cache that the run's mixtures lack, 'unused'. `labels` is how many answers
    there are to choose from, 0 where answers are free or differ by example.

    What a stream of the task depends on is settled when it enters the table, so that a table that
    grows changes no order: `beside`, how many tasks there were then, itself among them (0: not
    known); `part`, which of how many over one raw text it was."""

    name: str
    id: int
    family: str
    dataset: str
    kind: str
    rate: float
    objective: str = ''
    objective_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    splits: dict[str, Split] = dataclasses.field(default_factory=dict)
    status: str = 'ok'
    reason: str = ''
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    labels: int = 0
    beside: int = 0
    part: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class ExamSet:
    """The questions of one task under one prompt; each example is a dict with `inputs`, `choices`,
    `answer`, `references` and `choice_texts`. `total` counts them with those left unread (0: all
    are here)."""

    name: str
    task: str
    prompt: str
    family: str
    dataset: str
    metrics: tuple[str, ...]
    kind: str
    examples: tuple[dict[str, Any], ...]
    total: int = 0


@dataclasses.dataclass(frozen=True)
class ExamEntry:
    """Where an evaluation set lies, and what it is; `reason` says why it was skipped, if so."""

    name: str
    split: str
    path: str
    size: int
    sha256: str
    task: str
    prompt: str
    family: str
    dataset: str
    metrics: tuple[str, ...]
    kind: str
    held_out_prompt: bool = False
    mixtures: tuple[str, ...] = ()
    fingerprint: str = ''
    reason: str = ''


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a cache was made from, beside its vocabulary, so that a run can tell whether it is its.

    `module` (a file by its whole path) and `args` registered the tasks; `text` is the SHA-256 of a
    file's text. `lengths` is what plain SeqIO tasks were told, empty where the mixture has none.
    `families` and `datasets` are those of all tasks that were registered. `max_examples` of each
    task were taken for training (0: all). A build without training shards leaves `lengths` and
    `max_examples` alone.
    """

    module: str = ''
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    text: str = ''
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    families: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    max_examples: int = 0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A run's table of tasks. `vocabulary` holds its fingerprint, size and special ids; `mixtures`
    the rates of each mixture that the cache was built for, by name of task. `also` names tasks that
    may be drawn though their rate is 0 at first; it is not written."""

    folder: str
    mixture: str
    inputs_eos: bool
    vocabulary: dict[str, Any]
    tasks: tuple[TaskEntry, ...]
    exams: tuple[ExamEntry, ...] = ()
    origin: Origin = dataclasses.field(default_factory=Origin)
    mixtures: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    also: tuple[str, ...] = ()

    def of(self, parts: Mapping[str, float]) -> 'Manifest':
        """The table as a run sees it that gives each mixture so large a part of its steps.

        Tasks of none of them are 'unused', and those with higher ids than any of the run's are left
        out: another run in the same cache added them.

        Raises:
          UserError: the cache was not built for one of the mixtures.
        """
        rates = self._rates(parts)
        last = max((t.id for t in self.tasks if t.name in rates), default=0)
        table = []
        for task in self.tasks:
            if task.id > last:
                continue
            if task.name not in rates:
                task = dataclasses.replace(task, rate=0.0, status='unused')
            elif task.reason:  # also where another mixture was cached since
                task = dataclasses.replace(task, rate=0.0, status='skipped')
            else:
                task = dataclasses.replace(task, rate=rates[task.name], status='ok')
            table.append(task)
        return dataclasses.replace(self, mixture=' + '.join(parts), tasks=tuple(table))

    def at(self, mixture: str, later: Iterable[str] = ()) -> 'Manifest':
        """The same table while one of the run's mixtures is trained on; rates may change to those
        of the `later` ones."""
        rates = self._rates({mixture: 1.0})
        table = [
            dataclasses.replace(t, rate=rates.get(t.name, 0.0) if t.status == 'ok' else 0.0)
            for t in self.tasks
        ]
        also = tuple(name for other in later for name in self._rates({other: 1.0}))
        return dataclasses.replace(self, mixture=mixture, tasks=tuple(table), also=also)

    @property
    def drawable(self) -> np.ndarray:
        """bool [M + 1]: the ids that may be drawn, now or once rates change."""
        drawable = np.zeros(len(self.names), bool)
        for task in self.tasks:
            drawable[task.id] = task.status == 'ok' and (task.rate > 0 or task.name in self.also)
        return drawable

    def _rates(self, parts: Mapping[str, float]) -> dict[str, float]:
        rates: dict[str, float] = {}
        for mixture, part in parts.items():
            if mixture not in self.mixtures:
                raise UserError(
                    f'the cache in {self.folder} was not built for the mixture {mixture!r}; '
                    f'{nearest(mixture, self.mixtures)}'
                )
            for name, rate in self.mixtures[mixture].items():
                rates[name] = rates.get(name, 0.0) + rate * part / sum(parts.values())
        return rates

    @property
    def streamed(self) -> 'Manifest':
        """The same table for a stream, to which what is cached for training means nothing."""

        def other(task: TaskEntry) -> TaskEntry:
            splits = {name: split for name, split in task.splits.items() if name != 'train'}
            return dataclasses.replace(task, splits=splits)

        return dataclasses.replace(self, tasks=tuple(map(other, self.tasks)))

    @property
    def names(self) -> list[str]:
        """Task names by id; index 0 is padding."""
        names = ['padding'] + [''] * max((t.id for t in self.tasks), default=0)
        for task in self.tasks:
            names[task.id] = task.name
        return names

    @property
    def rates(self) -> np.ndarray:
        """float64 [M + 1], summing to 1: the asked-for shares, without skipped tasks."""
        rates = np.zeros(len(self.names))
        for task in self.tasks:
            if task.status == 'ok':
                rates[task.id] = task.rate
        if not rates.sum() > 0:
            raise UserError(f'mixture {self.mixture!r} has no task left to train on')
        return rates / rates.sum()

    @property
    def skipped(self) -> list[TaskEntry]:
        """The tasks that `on_broken='skip'` left out, each with its reason."""
        return [t for t in self.tasks if t.status == 'skipped']

    @property
    def symbols(self) -> Symbols:
        return Symbols(*(self.vocabulary[key] for key in ('sentinel', 'sentinels', 'eos', 'modes')))

    @property
    def fingerprint(self) -> str:
        """Changes when the order of examples would: a checkpoint's position counts on this one."""
        return self.fingerprint_of(self.names)

    def fingerprint_of(self, names: Iterable[str]) -> str:
        """The fingerprint of a table that knew these tasks only."""
        known = set(names)
        told = [
            [t.name, t.id, [shard.sha256 for shard in t.splits['train'].shards]]
            for t in self.tasks
            if t.status == 'ok' and 'train' in t.splits and t.name in known
        ]
        text = json.dumps([self.vocabulary['fingerprint'], self.inputs_eos, told], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def task(self, name: str) -> TaskEntry:
        for task in self.tasks:
            if task.name == name:
                return task
        raise UserError(f'no task {name!r} in the table; {nearest(name, self.names[1:])}')

    def file(self, path: str, fresh: bool = False) -> pathlib.Path:
        """The place of a file that the manifest names, or of a copy of one that lies in a cloud.

        `fresh` fetches such a copy again; shards are otherwise fetched once.

        Raises:
          UserError: the path leaves the manifest's folder.
        """
        try:
            # Shards lie under names that follow from what they hold; other files may be renewed.
            fresh = fresh or not path.startswith('shards/')
            return Folder(self.folder).local(path, fresh)
        except UserError as error:
            raise UserError(f'{FILE}: {error}') from error

    @property
    def remote(self) -> bool:
        """Whether the cache lies in a cloud, so that its files are read from local copies."""
        return is_remote(self.folder)

    def exam_sets(
        self,
        split: str = 'validation',
        names: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> list[ExamSet]:
        """Reads evaluation sets of a split, all or those named; `limit` takes the first items.

        Raises:
          UserError: a set that was not cached (the message lists those that were) or was skipped,
            or a broken file.
        """
        entries = {e.name: e for e in self.exams if e.split == split}
        if names is None:
            return [self._exam(entry, limit) for entry in entries.values() if not entry.reason]
        wanted = list(names)
        for name in wanted:
            if name not in entries:
                raise UserError(
                    f'no evaluation set {name!r} of split {split!r}; {nearest(name, entries)}'
                )
            if entries[name].reason:
                raise UserError(f'evaluation set {name!r} was skipped: {entries[name].reason}')
        return [self._exam(entries[name], limit) for name in wanted]

    def _exam(self, entry: ExamEntry, limit: int | None) -> ExamSet:
        place = self.file(entry.path)
        try:
            content = place.read_bytes()
            if hashlib.sha256(content).hexdigest() != entry.sha256:
                raise ValueError('it is not the one that was written')
            lines = gzip.decompress(content).decode().split('\n')[:-1]
            examples = tuple(map(json.loads, lines[:limit]))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UserError(
                f'evaluation set {place} cannot be read ({error}); build the cache again'
            ) from error
        shared = {
            f.name: getattr(entry, f.name)
            for f in dataclasses.fields(ExamSet)
            if f.name not in ('examples', 'total')
        }
        return ExamSet(examples=examples, total=len(lines), **shared)


def write(manifest: Manifest) -> None:
    """Writes `manifest.json` in one move: a reader sees the old one or the new."""
    tree = dataclasses.asdict(manifest)
    del tree['folder'], tree['also']
    content = json.dumps({'format': FORMAT, 'seal': _seal(tree), **tree}, indent=1).encode()
    Folder(manifest.folder).write(FILE, content)


def read(folder: str | os.PathLike) -> Manifest:
    """Reads a folder's manifest.

    Raises:
      UserError: there is none, it is of another format, or it is broken.
    """
    files = Folder(folder)
    place = files.shown(FILE)
    try:
        tree = json.loads(files.read(FILE))
    except FileNotFoundError:
        raise UserError(
            f'no cache in {folder}: {FILE} is missing; make it with `mtpt cache`'
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f'{place} cannot be read ({error}); {_MEND}') from error
    if not isinstance(tree, dict) or tree.pop('format', None) != FORMAT:
        raise UserError(
            f'{place} is not of format {FORMAT}; delete its folder or choose another data.cache, '
            'and build the cache again'
        )
    seal, now = tree.pop('seal', None), _seal(tree)
    try:
        tasks = tuple(_task(t) for t in tree.pop('tasks'))
        exams = tuple(
            _checked(
                ExamEntry(**{**e, 'metrics': tuple(e['metrics']), 'mixtures': tuple(e['mixtures'])})
            )
            for e in tree.pop('exams')
        )
        origin = tree.pop('origin')
        names = {key: tuple(origin[key]) for key in ('families', 'datasets')}
        origin = _checked(Origin(**{**origin, **names}))
        found = Manifest(folder=files.root, tasks=tasks, exams=exams, origin=origin, **tree)
        _checked(found).vocabulary['fingerprint']
        for rates in found.mixtures.values():
            sum(rates.values())
        if seal not in (None, now):  # None: of mtpt before there were seals
            raise ValueError('it is not as it was written')
        return found
    except _WRONG as error:
        what = f'{type(error).__name__}: {error}'
        raise UserError(f'{place} is broken ({what}); {_MEND}') from error


def read_done(files: Folder, path: str) -> dict[str, Split]:
    """The splits of a finished folder of shards.

    Raises:
      UserError: what it says of them is broken.
    """
    name = f'{path}/{DONE}'
    try:
        return {split: split_of(one) for split, one in json.loads(files.read(name)).items()}
    except _WRONG as error:
        raise UserError(
            f'{files.shown(name)} is broken ({type(error).__name__}: {error}); delete its folder '
            'and build the cache again'
        ) from error


def _seal(tree: Mapping[str, Any]) -> str:
    """What a manifest says of its own content: a value that was altered may pass for another."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


_MEND = 'restore it, or delete it and build the cache again'
_WRONG = (KeyError, TypeError, ValueError, AttributeError)  # of JSON that is not as it was written
_KINDS = {float: (int, float)}


def _checked(found: Any) -> Any:
    """A dataclass whose fields are of the types that they say; raises `TypeError`."""
    for field in dataclasses.fields(found):
        value, kind = getattr(found, field.name), typing.get_origin(field.type) or field.type
        if not isinstance(value, _KINDS.get(kind, kind)):
            raise TypeError(f'{field.name} cannot be {str(value)[:40]!r}')
    return found


def vocabulary_folder(folder: str | os.PathLike) -> pathlib.Path:
    """The folder of a cache's vocabulary on this machine."""
    files = Folder(folder)
    files.local('vocabulary/vocabulary.model', fresh=True)
    return files.local('vocabulary/vocabulary.json', fresh=True).parent


def _task(tree: dict[str, Any]) -> TaskEntry:
    splits = {name: split_of(split) for name, split in tree.pop('splits').items()}
    return _checked(TaskEntry(splits=splits, **{**tree, 'part': tuple(tree.get('part', ()))}))


def split_of(tree: dict[str, Any]) -> Split:
    """A split from its JSON form."""
    shards = tuple(_checked(Shard(**shard)) for shard in tree['shards'])
    return _checked(Split(**{**tree, 'shards': shards}))


def numbered(old: Iterable[TaskEntry], new: Iterable[TaskEntry]) -> tuple[TaskEntry, ...]:
    """Joins two tables: old tasks keep their ids, new ones follow; others are 'unused'."""
    old, new = {t.name: t for t in old}, {t.name: t for t in new}
    top = max((t.id for t in old.values()), default=0)
    table = []
    for name, entry in old.items():
        if name in new:
            settled = dict(id=entry.id, beside=entry.beside, part=entry.part)
            table.append(dataclasses.replace(new[name], **settled))
        else:
            table.append(dataclasses.replace(entry, status='unused', rate=0.0))
    fresh = [entry for name, entry in new.items() if name not in old]
    table += [dataclasses.replace(e, id=top + 1 + i) for i, e in enumerate(fresh)]
    return tuple(table)


def facts(vocabulary: Vocabulary) -> dict[str, Any]:
    """What a manifest says of its vocabulary."""
    return dict(
        kind=vocabulary.kind,
        fingerprint=vocabulary.fingerprint,
        size=vocabulary.size,
        padded_size=vocabulary.padded_size,
        pad=vocabulary.pad,
        eos=vocabulary.eos,
        sentinel=vocabulary.sentinel(0),
        sentinels=SENTINELS,
        modes=vocabulary.modes,
    )


def unnamed(manifest: Manifest) -> list[pathlib.Path]:
    """Folders of finished training shards in a cache that its manifest does not name.

    A run that was trained on an earlier state of the cache may need them: only a person removes
    them.
    """
    if manifest.remote:
        return []
    named = {
        manifest.file(shard.path).parent
        for task in manifest.tasks
        for split in task.splits.values()
        for shard in split.shards
    }
    done = (pathlib.Path(manifest.folder) / 'shards').glob(f'*/*/{DONE}')
    left = sorted(p.parent for p in done if p.parent not in named)
    # Nobody goes on with what a stream is validated on.
    return [p for p in left if '"train"' in (p / DONE).read_text(errors='replace')]
