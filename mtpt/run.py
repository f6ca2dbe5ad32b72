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
from typing import Any

import jax
import rich.console

from mtpt import flags, prepare, record, report
from mtpt import mesh as meshes
from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError
from mtpt.config import read as read_config
from mtpt.data import manifest as manifests
from mtpt.data.cache import opener
from mtpt.data.loader import Loader, validation_batches
from mtpt.data.manifest import Manifest
from mtpt.data.stream import stream
from mtpt.evaluate.generate import generate as generate_ids
from mtpt.exams import Exams, averages
from mtpt.log import Writer, read_metrics
from mtpt.model import functional
from mtpt.model.config import ModelConfig, resolve
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
    model_cfg = resolve(run.model, vocabulary.padded_size)
    mesh = meshes.make_mesh(run.mesh)
    _check_mesh(run, model_cfg, mesh)
    dims = functional.dims(model_cfg)
    tx = make_optimizer(run.optimizer, dims, run.train.steps, run.init_from.step_offset)
    checkpoints = Checkpoints(workdir, run.checkpoint)
    rows = _rows_from(run.init_from, vocabulary)
    start = begin(run.train, model_cfg, tx, mesh, checkpoints, run.init_from, rows)
    _check_order(start, manifest, run)
    loader = _loader(run, manifest, vocabulary, start.position)
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
            _watched(loader, writer.say),
            mesh=mesh,
            tasks=names,
            writer=writer,
            checkpoints=checkpoints,
            provenance=lambda: record.provenance(run, manifest, model_cfg, loader),
            validation=_validation(run, manifest),
            evaluate=exams.when_due,
            evaluate_every=math.gcd(*(plan.every for plan in run.exams.values())),
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
    vocabulary, model_cfg, mesh, params, step = _restored(run, workdir, step)
    exams = Exams(run, manifest, vocabulary, model_cfg, mesh, workdir, tag=tag)
    return exams.take(step, params, [mixture])[mixture]


def generate(
    workdir: str | pathlib.Path,
    texts: Sequence[str],
    *,
    step: int | None = None,
    max_length: int = 0,
) -> list[str]:
    """Completes texts greedily; `<extra_id_0>` and `[NLU]` stand for their tokens."""
    workdir = pathlib.Path(workdir)
    run = record.run_of(workdir)
    vocabulary, model_cfg, mesh, params, step = _restored(run, workdir, step)
    checkpoints = Checkpoints(workdir, run.checkpoint, read_only=True)
    end = [vocabulary.eos] if checkpoints.load_provenance(step)['inputs_eos'] else []
    inputs = [vocabulary.encode(text, specials=True) + end for text in texts]
    for text, ids in zip(texts, inputs):
        if not text.strip():
            raise UserError('there is nothing to complete: give --input=TEXT or lines of text')
        if len(ids) > run.data.inputs_length:
            raise UserError(
                f'the input has {len(ids)} tokens and the run was trained on '
                f'{run.data.inputs_length}; shorten it'
            )
    longest = max_length or run.data.targets_length
    with jax.set_mesh(mesh):
        ids = generate_ids(
            model_cfg, params, inputs, longest, run.evaluate.batch_tokens, vocabulary.eos
        )
    return [vocabulary.decode(row) for row in ids]


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
    sizes = {letter: getattr(model_cfg, letter) for letter in 'DHFV'}
    meshes.check_divides(sizes | dict(B=run.data.batch_size // run.data.accumulation), mesh)


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


def _validation(run: Run, manifest: Manifest):
    if not any('validation' in t.splits for t in manifest.tasks if t.status == 'ok'):
        return None
    place = dict(host=jax.process_index(), hosts=jax.process_count())
    return lambda: validation_batches(manifest, run.data, **place)


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


def _restored(run: Run, workdir: pathlib.Path, step: int | None):
    checkpoints = Checkpoints(workdir, run.checkpoint, read_only=True)
    vocabulary = load(workdir / 'vocabulary')
    model_cfg = resolve(run.model, vocabulary.padded_size)
    mesh = meshes.make_mesh(run.mesh)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: functional.init(model_cfg, jax.random.key(0)))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, x.sharding.spec)
        ),
        shapes,
    )
    step = checkpoints.latest() if step is None else step
    return vocabulary, model_cfg, mesh, checkpoints.load_params(step, abstract), step


def _rows_from(cfg: InitFromConfig, vocabulary: Vocabulary) -> dict[int, int] | None:
    """Where the ids of the run that this one starts from are in this run's vocabulary."""
    folder = pathlib.Path(cfg.path) / 'vocabulary'
    if not cfg.path or not folder.is_dir():
        return None
    old = load(folder)
    return None if old == vocabulary else common_ids(old, vocabulary)
