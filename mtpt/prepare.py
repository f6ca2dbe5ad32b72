"""Before training: tasks are registered, what is held out is checked, what is read is cached.

A cache that was there before is asked what it was made from: it serves the run only if that is what
the config says. Asking needs no SeqIO, so a run with its cache starts without TensorFlow.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import rich.console
import rich.progress

from mtpt.config import UserError, nearest
from mtpt.data import cache as caches
from mtpt.data import manifest as manifests
from mtpt.data.config import DataConfig
from mtpt.data.fingerprints import sha256
from mtpt.data.manifest import ExamEntry, Manifest, Origin
from mtpt.data.runners import RunnerConfig
from mtpt.folders import Folder, is_remote
from mtpt.tasks.families import canonical_dataset, canonical_family
from mtpt.vocabulary import open_vocabulary


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
    (0: all), every how many steps (0: at the end only), and whether untrained too and after each
    stage of the run.

    seconds: time for an exam (0: as long as it takes); it is then cut to the first examples of
    each prompt, and says so. elsewhere: the trainer leaves it to `mtpt evaluate --follow`.
    """

    split: str = 'validation'
    max_examples: int = 0
    seconds: float = 0.0
    elsewhere: bool = False
    every: int = 0
    at_start: bool = False
    each_stage: bool = False


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


def cache_of(data: DataConfig, workdir: pathlib.Path) -> str | pathlib.Path:
    """The folder of a run's cache: its own, unless the config names one (perhaps in a cloud)."""
    if is_remote(data.cache):
        return data.cache
    return pathlib.Path(data.cache) if data.cache else workdir / 'cache'


def check_held_out(tasks: ModuleType, mixture: str, held_out: HeldOut) -> None:
    """Checks that training sees nothing of what the run holds out.

    Raises:
      UserError: a task of the mixture belongs to a held-out family or data set, or draws a held-out
        wording; or a held-out name that no registered task has.
    """
    names = tasks.member_names(mixture)
    known = [_labels(tasks, name) for name in tasks.task_names()]
    families, datasets = ({label[i] for label in known} for i in (0, 1))
    members = [(name, *_labels(tasks, name)) for name in names]
    shown = tasks.shown_in(names)
    members += [(f'{n} (which shows {o})', *_labels(tasks, o)) for o, n in shown.items()]
    _refuse_held_out(mixture, held_out, members, families, datasets)
    for name in names:
        card = tasks.card_of(tasks.find(name))
        if card and card.prompt and card.prompt in card.held_out_prompts:
            raise UserError(
                f'mixture {mixture!r} trains on {name!r}, a wording that its task holds out; '
                'leave it out of the mixture'
            )


def _labels(tasks: ModuleType, name: str) -> tuple[str, str]:
    """Family and data set of a task; a plain SeqIO task has no family and is its own data set."""
    card = tasks.card_of(tasks.find(name))
    return ('', canonical_dataset(name)) if card is None else (card.family, card.dataset)


def _refuse_held_out(
    mixture: str,
    held_out: HeldOut,
    members: Iterable[tuple[str, str, str]],
    families: Iterable[str],
    datasets: Iterable[str],
) -> None:
    """`members` are (name, family, data set); the last two are all that held_out may name."""
    wanted = (
        ('family', {canonical_family(f) for f in held_out.families}, set(families) - {''}),
        ('dataset', {canonical_dataset(d) for d in held_out.datasets}, set(datasets)),
    )
    for kind, names, known in wanted:
        for name in sorted(names - known):
            raise UserError(f'held_out: no task has the {kind} {name!r}; {nearest(name, known)}')
    for member, *labels in members:
        for (kind, names, _), label in zip(wanted, labels):
            if label in names:
                raise UserError(
                    f'mixture {mixture!r} trains on {member!r}, whose {kind} {label!r} the run '
                    'holds out; leave the task out of the mixture, or the name out of held_out'
                )


def check_exams(tasks: ModuleType, exams: Mapping[str, ExamPlan]) -> None:
    """Checks that every mixture to be examined has the split that its plan names.

    Raises:
      UserError: naming the mixture, the split and the splits that there are.
    """
    for mixture, plan in exams.items():
        there = {s for name in tasks.exam_names(mixture) for s in tasks.find(name).splits}
        if plan.split not in there:
            raise UserError(
                f'no task of the mixture {mixture!r} has the split {plan.split!r} to be examined '
                f'on (exams.{mixture}.split); there are: {", ".join(sorted(there)) or "none"}'
            )


def prepare(
    data: DataConfig,
    tasks_cfg: TasksConfig,
    held_out: HeldOut,
    exams: Mapping[str, ExamPlan],
    folder: str | pathlib.Path,
    mixtures: Sequence[str] = (),
) -> Manifest:
    """Gives the manifest of what a run reads, writing the cache where it is not there yet.

    `mixtures` are those of all stages, `data.mixture` by default. A cache that has them and the
    evaluation sets is taken as it is, without opening the tasks (and so without TensorFlow). A
    stream keeps its table and evaluation sets in this place.

    Raises:
      UserError: training would see what the run holds out, an exam has nothing to ask, or the cache
        in the folder was made from something else than the config says.
    """
    mixtures = tuple(mixtures) or (data.mixture,)
    found = manifests.read(folder) if Folder(folder).exists(manifests.FILE) else None
    if found:
        _check_origin(found, data, tasks_cfg)
    if not (found and _trains(found, data, tasks_cfg, mixtures)):
        splits = ('train', 'validation') if data.mode == 'cached' else ('validation',)
        return build(data, tasks_cfg, held_out, exams, folder, splits, mixtures)
    if data.mode == 'stream':
        open_tasks(tasks_cfg)
    origin = found.origin
    for mixture in mixtures:
        there = found.of({mixture: 1.0}).tasks
        members = [(t.name, t.family, t.dataset) for t in there if t.status != 'unused']
        _refuse_held_out(mixture, held_out, members, origin.families, origin.datasets)
    return add_exams(data, tasks_cfg, exams, folder)


def build(
    data: DataConfig,
    tasks_cfg: TasksConfig,
    held_out: HeldOut,
    exams: Mapping[str, ExamPlan],
    folder: str | pathlib.Path,
    splits: tuple[str, ...] = ('train', 'validation'),
    mixtures: Sequence[str] = (),
    runner: RunnerConfig = caches.IN_THIS_PROCESS,
) -> Manifest:
    """Opens and checks the tasks, then builds the cache of some mixtures and their exams, or brings
    one up to date; shows how far it is."""
    tasks = open_tasks(tasks_cfg)
    mixtures = tuple(mixtures) or (data.mixture,)
    for mixture in mixtures:
        check_held_out(tasks, mixture, held_out)
    check_exams(tasks, exams)
    families, datasets = zip(*(_labels(tasks, name) for name in tasks.task_names()))
    origin = dataclasses.replace(
        _origin(tasks_cfg),
        families=tuple(sorted(set(families) - {''})),
        datasets=tuple(sorted(set(datasets))),
        max_examples=data.max_examples,
    )
    lengths = {'inputs': data.inputs_length, 'targets': data.targets_length}
    with _progress() as progress:
        for split, names in _by_split(exams).items() or [('validation', [])]:
            manifest = caches.build(
                mixtures, folder, data.vocabulary, exam_mixtures=names, exam_splits=(split,),
                exam_examples=None, splits=splits, on_broken=data.on_broken, lengths=lengths,
                origin=origin, progress=progress, max_examples=data.max_examples, runner=runner,
                register=functools.partial(open_tasks, tasks_cfg),
            )  # fmt: skip
    if left := manifests.unnamed(manifest):
        print(_told_of(left, folder), file=sys.stderr)
    _check_usable(manifest, exams)
    return manifest


def _told_of(left: Sequence[pathlib.Path], folder: str | pathlib.Path) -> str:
    one = len(left) == 1
    what, them = ('1 folder', 'it') if one else (f'{len(left)} folders', 'them')
    return (
        f'{what} of shards in {folder}/shards {"is" if one else "are"} not part of the cache '
        f'({left[0].parent.name}/{left[0].name}{"" if one else ", ..."}); a run that was trained '
        f'on {them} needs {them} to go on, otherwise delete {them}'
    )


def add_exams(
    data: DataConfig,
    tasks_cfg: TasksConfig,
    exams: Mapping[str, ExamPlan],
    folder: str | pathlib.Path,
) -> Manifest:
    """Adds the evaluation sets that a cache lacks to it, and nothing else; opens the tasks if it
    lacks any.

    Raises:
      UserError: no task of a mixture has the split of its plan, or a source is broken.
    """
    manifest = manifests.read(folder)
    missing = {}
    for name, plan in exams.items():
        entries = exam_entries(manifest, name, plan.split)
        if not entries or (data.on_broken == 'fail' and any(e.reason for e in entries)):
            missing[name] = plan
    if missing:
        check_exams(open_tasks(tasks_cfg), missing)
        with _progress() as progress:
            for split, names in _by_split(missing).items():
                manifest = caches.add_exams(
                    folder, names, (split,), on_broken=data.on_broken, progress=progress
                )
    _check_usable(manifest, exams)
    return manifest


def _check_usable(manifest: Manifest, exams: Mapping[str, ExamPlan]) -> None:
    for name, plan in exams.items():
        reasons = [e.reason for e in exam_entries(manifest, name, plan.split)]
        if all(reasons):
            raise UserError(
                f'nothing to examine {name!r} on: every evaluation set of its split '
                f'{plan.split!r} was skipped ({reasons[0] if reasons else "there is none"})'
            )


def _origin(cfg: TasksConfig) -> Origin:
    """What a config says that tasks come from, in the form in which a manifest keeps it."""
    args = json.loads(json.dumps(cfg.args, default=_plain))
    if not cfg.module.endswith('.py'):
        return Origin(cfg.module, args)
    try:
        file = pathlib.Path(cfg.module).resolve()
        return Origin(str(file), args, sha256(file.read_bytes()))
    except OSError as error:
        raise UserError(f'tasks.module={cfg.module!r}: {error.strerror}') from error


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, 'items') else str(value)


def _check_origin(found: Manifest, data: DataConfig, cfg: TasksConfig) -> None:
    """Refuses a cache that was made from something else; a file may have moved or been edited."""
    made, here = found.origin, _origin(cfg)
    told = [('tasks.args', made.args, here.args)]
    cached = data.mode == 'cached' and any('train' in t.splits for t in found.tasks)
    if cached:
        told.append(('data.max_examples', made.max_examples, data.max_examples))
    if made.module != here.module and not (made.text and made.text == here.text):
        told.insert(0, ('tasks.module', made.module, here.module))
    if made.lengths and cached:
        lengths = {'inputs': data.inputs_length, 'targets': data.targets_length}
        what = 'lengths (data.inputs_length, data.targets_length) of plain SeqIO tasks'
        told.append((what, made.lengths, lengths))
    for what, old, new in told:
        if old != new:
            raise UserError(
                f'the cache in {found.folder} was made with {what}={old!r}, and the config says '
                f'{new!r}; choose another data.cache'
            )
    if open_vocabulary(data.vocabulary).fingerprint != found.vocabulary['fingerprint']:
        raise UserError(
            f'the cache in {found.folder} was made with another vocabulary than '
            f'data.vocabulary={data.vocabulary!r}; choose another data.cache'
        )


def _trains(found: Manifest, data: DataConfig, cfg: TasksConfig, mixtures: Sequence[str]) -> bool:
    """Whether a cache holds all that a run trains on, as its tasks are defined now."""
    if found.origin.text != _origin(cfg).text or not set(mixtures) <= set(found.mixtures):
        return False
    view = found.of(dict.fromkeys(mixtures, 1.0))
    if view.skipped and data.on_broken == 'fail':
        return False
    return all('train' in t.splits for t in view.tasks if t.status == 'ok')


def _by_split(exams: Mapping[str, ExamPlan]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, plan in exams.items():
        names.setdefault(plan.split, []).append(name)
    return names


@contextlib.contextmanager
def _progress() -> Iterator[caches.Progress]:
    """A bar on stderr while something is cached."""
    columns = (
        rich.progress.TextColumn('caching'),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn('{task.description}'),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task('')
        yield lambda name, number, total: bar.update(
            task, completed=number, total=total, description=name
        )


def exam_entries(manifest: Manifest, mixture: str, split: str) -> list[ExamEntry]:
    """The evaluation sets that were cached for a mixture."""
    return [e for e in manifest.exams if mixture in e.mixtures and e.split == split]
