"""A run: what its config says, and training, evaluating and generating with it.

The Python door of the command line, for notebooks and other programs:

    settings = read('quickstart', 'train.steps=500')
    train(settings, 'runs/small')
    rows = evaluate('runs/small', 'builtin_new_tasks', split='test')
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import rich.console

from mtpt import flags, prepare, record, report, specialisation, task_ids
from mtpt import mesh as meshes
from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError, choose
from mtpt.config import read as read_config
from mtpt.data import manifest as manifests
from mtpt.data.cache import opener
from mtpt.data.labels import Labels
from mtpt.data.loader import Loader, validation_batches
from mtpt.data.manifest import Manifest
from mtpt.data.stream import stream
from mtpt.evaluate.generate import GREEDY, Decoding
from mtpt.evaluate.generate import answers as write_answers
from mtpt.evaluate.heads import told as told_by_heads
from mtpt.exams import Exams, averages
from mtpt.log import Writer, read_metrics
from mtpt.model import functional
from mtpt.model.attention import check_kernel
from mtpt.model.config import ModelConfig
from mtpt.opened import model_of, opened, restored
from mtpt.prepare import ExamPlan
from mtpt.settings import Run, overridden
from mtpt.train.loop import begin, fit
from mtpt.train.optimizer import make_optimizer
from mtpt.train.state import InitFromConfig
from mtpt.vocabulary import Vocabulary, common_ids, load


def read(config: str | Mapping[str, Any] | Run, *overrides: str) -> Run:
    """Reads a config by name, by path, or from a mapping; overrides are 'section.key=value'.

    Raises:
      UserError: an unknown config, key or type; the message has the nearest right ones.
    """
    if not isinstance(config, str):
        return read_config(Run, config)
    return flags.load(config, [f'--config.{o}' for o in overrides])


def train(run: Run, workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """Trains as `run` says in a folder, or goes on where that was left; returns the last scores.

    Raises:
      UserError: whatever is wrong with the config, the data or the folder, in a sentence.
    """
    workdir = pathlib.Path(workdir)
    record.make_folder(workdir)
    record.check_resumes(run, workdir)
    folder = pathlib.Path(run.data.cache) if run.data.cache else workdir / 'cache'
    manifest = _first_process_prepares(run, folder)
    vocabulary = load(folder / 'vocabulary')
    vocabulary.save(workdir / 'vocabulary')
    task_ids.check_names(run.model, manifest)
    model_cfg = model_of(run, vocabulary, task_ids.last(manifest.tasks), manifest)
    mesh = meshes.make_mesh(run.mesh)
    _check_mesh(run, model_cfg, mesh)
    dims = functional.dims(model_cfg)
    tx = make_optimizer(run.optimizer, dims, run.train.steps, run.init_from.step_offset)
    checkpoints = Checkpoints(workdir, run.checkpoint)
    rows, tasks = _rows_from(run.init_from, vocabulary), _tasks_from(run.init_from, manifest)
    start = begin(run.train, model_cfg, tx, mesh, checkpoints, run.init_from, rows, tasks)
    _check_order(start, manifest, run)
    loader = _loader(run, manifest, vocabulary, start.position)
    labels = Labels(model_cfg.heads, manifest, vocabulary) if model_cfg.heads else None
    record.write_config(run, workdir, model_cfg, mesh)
    names = manifest.names[1:]
    with (
        _told(workdir, manifest, loader),
        Writer(
            workdir,
            names,
            run.train.steps,
            run.log,
            step=start.step,
            primary=jax.process_index() == 0,
        ) as writer,
    ):
        for note in (*start.notes, *_notes(loader)):
            writer.say(note)
        exams = Exams(run, manifest, vocabulary, model_cfg, mesh, workdir, whole=False)
        if not start.step:
            untrained = [n for n, p in run.exams.items() if p.at_start]
            writer.write(0, averages(exams.take(0, start.state.params, untrained)))
        state, _ = fit(
            run.train,
            model_cfg,
            tx,
            start.state,
            _labelled(labels, _watched(loader, writer.say)),
            mesh=mesh,
            tasks=names,
            writer=writer,
            checkpoints=checkpoints,
            provenance=lambda: record.provenance(run, manifest, model_cfg, loader),
            validation=_validation(run, manifest, labels),
            evaluate=exams.when_due,
            evaluate_every=math.gcd(*(plan.every for plan in run.exams.values())),
            routed=partial(_routed, workdir, model_cfg, manifest),
        )
        done = exams.take(run.train.steps, state.params, list(run.exams))
        writer.write(run.train.steps, averages(done))
    return [row for rows in done.values() for row in rows]


def evaluate(
    workdir: str | pathlib.Path,
    mixture: str,
    *,
    step: int | None = None,
    split: str | None = None,
    overrides: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Scores a run's checkpoint on a mixture or a task; prints the table and writes it to `eval/`.

    Args:
      workdir: the folder of a run.
      mixture: a registered name; its evaluation sets are cached if they are not yet.
      step: a checkpoint's step; the last one by default.
      split: by default what the run's config says for this mixture, else 'validation'.
      overrides: 'key=value' for fields of `EvaluateConfig`, such as 'normalisation=mean'.
    """
    workdir, overrides = pathlib.Path(workdir), list(overrides)
    run = record.run_of(workdir)
    changed = overridden(run.evaluate, overrides)
    plan = run.exams.get(mixture, ExamPlan())
    tag = ','.join([*([split] if split and split != plan.split else []), *sorted(overrides)])
    plan = dataclasses.replace(plan, split=split or plan.split)
    manifest = _with_exams(run, workdir, mixture, plan)
    run = dataclasses.replace(run, evaluate=changed, exams={mixture: plan})
    vocabulary, model_cfg, mesh, params, step = restored(run, workdir, step, manifest)
    exams = Exams(run, manifest, vocabulary, model_cfg, mesh, workdir, tag=tag)
    return exams.take(step, params, [mixture])[mixture]


def generate(
    workdir: str | pathlib.Path,
    texts: Sequence[str],
    *,
    step: int | None = None,
    max_length: int = 0,
    how: Decoding = GREEDY,
    choices: Sequence[str] | None = None,
    task: str | None = None,
) -> list[str]:
    """Answers texts, `how.number` times each; `<extra_id_0>` and `[NLU]` stand for their tokens.

    Args:
      workdir: the folder of a run.
      texts: inputs; the answers to the first come first.
      step: a checkpoint's step; the last one by default.
      max_length: the most tokens of an answer, up to the run's `evaluate.batch_tokens`; its
        `targets_length` by default.
      how: the likeliest token each time by default, or drawn, or searched for.
      choices: the only answers allowed; by default the likeliest is found.
      task: what task of the run the texts are of, for a model that routes by task.

    Raises:
      UserError: nothing to answer, a text that is too long, settings that do not go together.
    """
    if choices is not None and not (choices and all(choice.strip() for choice in choices)):
        raise UserError('a choice is empty; give answers such as choices=yes,no, no comma too many')
    choices = list(dict.fromkeys(choices or ()))
    how.check(len(choices))
    if max_length < 0:
        raise UserError(f'max_length={max_length} must be at least 1 token')
    if choices and max_length:
        raise UserError(
            'max_length bounds free answers, and choices have a length of their own; leave one out'
        )
    if not texts or not all(text.strip() for text in texts):
        raise UserError('there is nothing to complete: give --input=TEXT or lines of text')
    model = opened(workdir, step)
    longest = model.run.evaluate.batch_tokens
    if max_length > longest:
        raise UserError(f'max_length={max_length} must be at most {longest} tokens, one batch')
    inputs = [model.inputs(text) for text in texts]
    options = [model.targets(choice) for choice in choices]
    task_ids.check_asked(model.cfg, task)
    number = task_ids.id_of(model.tasks, task) if task else 0
    with jax.set_mesh(model.mesh):
        found = write_answers(
            model.cfg,
            model.params,
            inputs,
            max_length or model.run.data.targets_length,
            model.run.evaluate.batch_tokens,
            model.vocabulary.eos,
            how,
            [options] * len(inputs) if options else None,
            tasks=[number] * len(inputs),
        )
    said = dict(zip(map(tuple, options), choices))
    return [
        said[tuple(answer.ids)] if said else model.vocabulary.decode(answer.ids)
        for answers in found
        for answer in answers
    ]


def embed(
    workdir: str | pathlib.Path,
    texts: Sequence[str],
    *,
    head: str = '',
    step: int | None = None,
    task: str | None = None,
) -> np.ndarray:
    """Embeddings of length 1 [texts, D], from a contrastive head of a run.

    Args:
      workdir: the folder of a run.
      texts: inputs, as the run was trained on them.
      head: the name of a contrastive head; the only one by default.
      step: a checkpoint's step; the last one by default.
      task: what task of the run the texts are of, for a model that routes by task.

    Raises:
      UserError: no such head, a text that is too long.
    """
    model = opened(workdir, step)
    known = [own.name for own in model.cfg.heads if own.kind == 'contrastive']
    if not known or (not head and len(known) > 1):
        raise UserError(
            f'the run in {workdir} has {len(known)} contrastive heads'
            + (f'; name one of {", ".join(known)}' if known else ', and texts are embedded by one')
        )
    head = choose('contrastive head', head or known[0], {name: name for name in known})
    task_ids.check_asked(model.cfg, task)
    number = task_ids.id_of(model.tasks, task) if task else 0
    inputs = [model.inputs(text) for text in texts]
    with jax.set_mesh(model.mesh):
        found = told_by_heads(
            model.cfg,
            model.params,
            inputs,
            model.run.evaluate.batch_tokens,
            tasks=[number] * len(inputs),
        )
    return np.stack([told[head] for told in found])


def build_cache(run: Run, mixture: str, out: str) -> Manifest:
    """Writes the shards and evaluation sets of a mixture, for runs that name it in `data.cache`."""
    data = dataclasses.replace(run.data, mixture=mixture)
    started = time.perf_counter()
    manifest = prepare.build(data, run.tasks, run.held_out, run.exams, pathlib.Path(out))
    tokens = sum(s.tokens for t in manifest.tasks for s in t.splits.values())
    examples = sum(s.examples for t in manifest.tasks for s in t.splits.values())
    print(
        f'{out}: {len(manifest.tasks)} tasks, {examples:,} examples, {tokens:,} tokens, '
        f'{len(manifest.exams)} evaluation sets in {time.perf_counter() - started:.0f} s'
    )
    for entry in manifest.skipped:
        print(f'skipped {entry.name}: {entry.reason}')
    return manifest


def _first_process_prepares(run: Run, folder: pathlib.Path) -> Manifest:
    args = (run.data, run.tasks, run.held_out, run.exams, folder)
    if jax.process_index() == 0:
        prepare.prepare(*args)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices('cache')
        if run.data.mode == 'stream':
            prepare.open_tasks(run.tasks)
    return manifests.read(folder)


def _check_mesh(run: Run, model_cfg: ModelConfig, mesh: jax.sharding.Mesh) -> None:
    lengths = {f'data.{n}': getattr(run.data, n) for n in ('inputs_length', 'targets_length')}
    check_kernel(model_cfg, mesh.devices.flat[0].platform, lengths)
    sizes = {letter: getattr(model_cfg, letter) for letter in 'DHFV'}
    meshes.check_divides(sizes | dict(B=run.data.batch_size // run.data.accumulation), mesh)
    if model_cfg.moe.E:
        meshes.check_divides(dict(E=model_cfg.moe.E, F=model_cfg.moe.F), mesh)
        _check_experts(run, model_cfg, mesh)


def _check_experts(run: Run, model_cfg: ModelConfig, mesh: jax.sharding.Mesh) -> None:
    moe, split = model_cfg.moe, math.prod(mesh.shape[axis] for axis in meshes.BATCH)
    rows = run.data.batch_size // run.data.accumulation // split
    for side in ('inputs_length', 'targets_length'):
        tokens = rows * getattr(run.data, side)
        if moe.group and tokens % moe.group:
            raise UserError(
                f'model.moe.group={moe.group} does not divide the {tokens} tokens of a device '
                f'({rows} rows of data.{side}); choose a divisor, or 0 for all of them'
            )
    if moe.local and mesh.shape['expert'] > 1:
        raise UserError(
            'model.moe.local promises rows that lie with the expert of their task, and the loader '
            f'does not order them so; with mesh.expert={mesh.shape["expert"]} set '
            'model.moe.local=False'
        )


def _check_order(start: Any, manifest: Manifest, run: Run) -> None:
    """A position counts examples of these shards in this order; of others it would mean nothing."""
    saved = (start.provenance or {}).get('data_fingerprint')
    if saved and saved != manifest.fingerprint:
        raise UserError(
            f'the cache of {run.data.mixture!r} is not the one this run was trained on, so it '
            'cannot go on exactly; restore that cache, or start another run with init_from'
        )


def _loader(run: Run, manifest: Manifest, vocabulary: Vocabulary, position: Any) -> Loader:
    place = dict(host=jax.process_index(), hosts=jax.process_count(), position=position)
    seed = run.train.seed
    if run.data.mode == 'stream':
        open_task = opener(manifest, vocabulary, run.data, seed)
        return stream(manifest, run.data, open_task, seed, **place)
    return Loader(manifest, run.data, seed, **place)


def _labelled(labels: Labels | None, batches: Iterable[Any]) -> Iterable[Any]:
    """(batch, position) pairs with what heads are taught."""
    return ((labels(batch), position) for batch, position in batches) if labels else batches


def _validation(run: Run, manifest: Manifest, labels: Labels | None):
    if not any('validation' in t.splits for t in manifest.tasks if t.status == 'ok'):
        return None
    place = dict(host=jax.process_index(), hosts=jax.process_count())
    made = partial(validation_batches, manifest, run.data, **place)
    return (lambda: map(labels, made())) if labels else made


def _notes(loader: Loader, first: int = 0) -> list[str]:
    left_out = loader.problems[first:]
    return [f'task {name!r} is left out: {reason}' for name, reason in left_out]


def _watched(loader: Loader, say: Callable[[str], None]) -> Iterator[Any]:
    """The loader's batches; a task that breaks on the way is told of when it does."""
    known = len(loader.problems)
    for item in loader:
        for note in _notes(loader, known):
            say(note)
        known = len(loader.problems)
        yield item


@contextlib.contextmanager
def _told(workdir: pathlib.Path, manifest: Manifest, loader: Loader) -> Iterator[None]:
    """Writes the shares and the report of a run, also of one that was stopped on its way."""
    try:
        yield
    finally:
        if jax.process_index() == 0 and read_metrics(workdir):
            record.write_tasks(workdir, manifest, loader)
            rich.console.Console().print(f'report: {report.write(workdir)}', soft_wrap=True)


def _cache_of(run: Run, workdir: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(run.data.cache) if run.data.cache else workdir / 'cache'


def _with_exams(run: Run, workdir: pathlib.Path, mixture: str, plan: ExamPlan) -> Manifest:
    """The run's manifest, with the evaluation sets of a mixture added where they are missing."""
    return prepare.add_exams(run.data, run.tasks, {mixture: plan}, _cache_of(run, workdir))


def _routed(
    workdir: pathlib.Path, model_cfg: ModelConfig, manifest: Manifest, step: int, counts: Any
) -> dict[str, float]:
    """Keeps which experts served which tasks of a validation; gives what it comes to."""
    told = specialisation.tables(model_cfg, manifest.tasks, counts)
    if jax.process_index() == 0:
        specialisation.write(workdir, step, told)
    return specialisation.figures(told)


def _tasks_from(cfg: InitFromConfig, manifest: Manifest) -> dict[int, int] | None:
    """Where the ids of the tasks of the run that this one starts from are in this run's table."""
    if not cfg.path:
        return None
    source = Checkpoints(cfg.path, read_only=True)
    old = record.tasks_of(source.load_provenance(None if cfg.step < 0 else cfg.step))
    new = {task.name: task.id for task in manifest.tasks}
    return {0: 0} | {task.id: new[task.name] for task in old if task.name in new}


def _rows_from(cfg: InitFromConfig, vocabulary: Vocabulary) -> dict[int, int] | None:
    """Where the ids of the run that this one starts from are in this run's vocabulary."""
    folder = pathlib.Path(cfg.path) / 'vocabulary'
    if not cfg.path or not folder.is_dir():
        return None
    old = load(folder)
    return None if old == vocabulary else common_ids(old, vocabulary)
