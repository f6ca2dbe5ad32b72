"""Before training: tasks are registered, what is held out is checked, what is read is cached."""

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import rich.console
import rich.progress

from mtpt.config import UserError, nearest
from mtpt.data import cache as caches
from mtpt.data import manifest as manifests
from mtpt.data.config import DataConfig
from mtpt.data.manifest import ExamEntry, Manifest


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """Where tasks are registered: a module (or a FILE.py), and the arguments of its `register`."""

    module: str = 'mtpt.mixtures.builtin'
    args: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What training must not see, by the canonical names of families and source data sets."""

    families: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ExamPlan:
    """How a mixture is examined in a run: on which split, on how many examples of each prompt
    (0: all), every how many steps (0: at the end only), and whether untrained too."""

    split: str = 'validation'
    max_examples: int = 0
    every: int = 0
    at_start: bool = False


def open_tasks(cfg: TasksConfig) -> ModuleType:
    """Registers what the config names, and returns `mtpt.tasks`.

    A module's function `register` is called with `args`; without one, importing is enough.

    Raises:
      UserError: there is no such module or file, or it takes no such arguments.
    """
    from mtpt import tasks

    with _quiet():
        importlib.import_module('mtpt.tasks.register')  # SeqIO, and TensorFlow with it
        module = _module(cfg.module)
    register = getattr(module, 'register', None)
    if register is None and cfg.args:
        raise UserError(f'{cfg.module} has no function register() to give tasks.args to')
    if register is not None:
        try:
            register(**cfg.args)
        except TypeError as error:
            raise UserError(f'tasks.args do not fit {cfg.module}.register: {error}') from error
    return tasks


def _module(name: str) -> ModuleType:
    try:
        if not name.endswith('.py'):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f'tasks.module={name!r} cannot be imported: {error}') from error
    file = pathlib.Path(name)
    if not file.is_file():
        raise UserError(f'tasks.module={name!r}: there is no such file')
    spec = importlib.util.spec_from_file_location(f'mtpt_tasks_{file.stem}', file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what C++ code writes to stderr while TensorFlow is imported; shows it if that fails."""
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, ValueError):
        yield
        return
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(saved, said.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def check_held_out(tasks: ModuleType, mixture: str, held_out: HeldOut) -> None:
    """Checks that training sees nothing of what the run holds out.

    Raises:
      UserError: a task of the mixture belongs to a held-out family or data set, or draws a held-out
        wording; or a held-out name that no registered task has.
    """
    cards = {n: tasks.card_of(tasks.find(n)) for n in tasks.task_names()}
    wanted = dict(
        family=[tasks.canonical_family(f) for f in held_out.families],
        dataset=[tasks.canonical_dataset(d) for d in held_out.datasets],
    )
    for kind, names in wanted.items():
        known = {getattr(card, kind) if card else name for name, card in cards.items()}
        for name in names:
            if name not in known:
                raise UserError(
                    f'held_out: no task has the {kind} {name!r}; {nearest(name, known)}'
                )
    for member in tasks.member_names(mixture):
        card = tasks.card_of(tasks.find(member))
        for kind, names in wanted.items():
            value = getattr(card, kind) if card else (member if kind == 'dataset' else '')
            if value in names:
                raise UserError(
                    f'mixture {mixture!r} trains on {member!r}, whose {kind} {value!r} the run '
                    'holds out; leave the task out of the mixture, or the name out of held_out'
                )
        if card and card.prompt and card.prompt in card.held_out_prompts:
            raise UserError(
                f'mixture {mixture!r} trains on {member!r}, a wording that its task holds out; '
                'leave it out of the mixture'
            )


def prepare(
    data: DataConfig,
    tasks_cfg: TasksConfig,
    held_out: HeldOut,
    exams: Mapping[str, ExamPlan],
    folder: pathlib.Path,
) -> Manifest:
    """Gives the manifest of what a run reads, writing the cache where it is not there yet.

    A cache that has the mixture and the evaluation sets is taken as it is, without opening the
    tasks (and so without TensorFlow). A stream keeps its table and evaluation sets in this place.
    """
    found = manifests.read(folder) if (folder / manifests.FILE).exists() else None
    if found and data.mode == 'cached' and _covers(found, data, exams):
        return found
    tasks = open_tasks(tasks_cfg)
    check_held_out(tasks, data.mixture, held_out)
    splits = ('train', 'validation') if data.mode == 'cached' else ('validation',)
    return write_cache(data, exams, folder, splits)


def _covers(manifest: Manifest, data: DataConfig, exams: Mapping[str, ExamPlan]) -> bool:
    cached = {(mixture, e.split) for e in manifest.exams for mixture in e.mixtures}
    wanted = {(name, plan.split) for name, plan in exams.items()}
    return manifest.mixture == data.mixture and wanted <= cached


def write_cache(
    data: DataConfig, exams: Mapping[str, ExamPlan], folder: pathlib.Path, splits: tuple[str, ...]
) -> Manifest:
    """Builds the cache of a mixture and of its exams, or adds to it; a bar shows how far it is."""
    by_split: dict[str, list[str]] = {}
    for name, plan in exams.items():
        by_split.setdefault(plan.split, []).append(name)
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn('caching'),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn('{task.description}'),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task('')

        def progress(name: str, number: int, total: int) -> None:
            bar.update(task, completed=number, total=total, description=name)

        for split, names in by_split.items() or [('validation', [])]:
            manifest = caches.build(
                data.mixture, folder, data.vocabulary, exam_mixtures=names, exam_splits=(split,),
                exam_examples=None, splits=splits, on_broken=data.on_broken, progress=progress,
                lengths={'inputs': data.inputs_length, 'targets': data.targets_length},
            )  # fmt: skip
    return manifest


def exam_entries(manifest: Manifest, mixture: str, split: str) -> list[ExamEntry]:
    """The evaluation sets that were cached for a mixture."""
    return [e for e in manifest.exams if mixture in e.mixtures and e.split == split]
