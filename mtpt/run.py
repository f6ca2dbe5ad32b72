"""A run: what its config says, and training, evaluating and generating with it.

The Python door of the command line, for notebooks and other programs:

    settings = read('quickstart', 'train.steps=500')
    train(settings, 'runs/small')
    rows = evaluate('runs/small', 'builtin_new_tasks', split='test')
"""

import dataclasses
import datetime
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from mtpt import flags, prepare, report, trees
from mtpt import mesh as meshes
from mtpt.checkpoint import CheckpointConfig, Checkpoints
from mtpt.config import UserError, as_dict
from mtpt.config import read as read_config
from mtpt.data import manifest as manifests
from mtpt.data.cache import opener
from mtpt.data.config import DataConfig
from mtpt.data.loader import Loader, realised_shares, validation_batches
from mtpt.data.manifest import ExamSet, Manifest
from mtpt.data.stream import stream
from mtpt.evaluate.generate import generate as generate_ids
from mtpt.evaluate.run import EvaluateConfig
from mtpt.evaluate.run import evaluate as examine
from mtpt.evaluate.run import save as save_rows
from mtpt.evaluate.table import summarise, table
from mtpt.log import LogConfig, Writer, read_metrics
from mtpt.model import encoder_decoder
from mtpt.model.config import ModelConfig, resolve
from mtpt.prepare import ExamPlan, HeldOut, TasksConfig
from mtpt.train.loop import TrainConfig, begin, fit
from mtpt.train.optimizer import OptimizerConfig, make_optimizer
from mtpt.train.state import InitFromConfig
from mtpt.versions import installed
from mtpt.vocabulary import Vocabulary, load

TOLD = ('mtpt', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'sentencepiece')


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a config can say, a section for each room; `exams` are by name of their mixture."""

    name: str = 'run'
    tasks: TasksConfig = dataclasses.field(default_factory=TasksConfig)
    held_out: HeldOut = dataclasses.field(default_factory=HeldOut)
    exams: dict[str, ExamPlan] = dataclasses.field(default_factory=dict)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: meshes.MeshConfig = dataclasses.field(default_factory=meshes.MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    init_from: InitFromConfig = dataclasses.field(default_factory=InitFromConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)


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
    _make_folder(workdir)
    _check_resumes(run, workdir)
    folder = pathlib.Path(run.data.cache) if run.data.cache else workdir / 'cache'
    manifest = _first_process_prepares(run, folder)
    vocabulary = load(folder / 'vocabulary')
    vocabulary.save(workdir / 'vocabulary')
    model_cfg = resolve(run.model, vocabulary.padded_size)
    mesh = meshes.make_mesh(run.mesh)
    _check_mesh(run, model_cfg, mesh)
    dims = encoder_decoder.dims(model_cfg)
    tx = make_optimizer(run.optimizer, dims, run.train.steps, run.init_from.step_offset)
    checkpoints = Checkpoints(workdir, run.checkpoint)
    rows = _rows_from(run.init_from, vocabulary)
    start = begin(run.train, model_cfg, tx, mesh, checkpoints, run.init_from, rows)
    _check_order(start, manifest, run)
    loader = _loader(run, manifest, vocabulary, start.position)
    provenance = _provenance(run, manifest, model_cfg, loader)
    _write_config(run, workdir, model_cfg, mesh)
    names = manifest.names[1:]
    with Writer(
        workdir, names, run.train.steps, run.log, step=start.step, primary=jax.process_index() == 0
    ) as writer:
        for note in (*start.notes, *_notes(loader)):
            writer.say(note)
        exams = _Exams(run, manifest, vocabulary, model_cfg, mesh, workdir, writer)
        if not start.step:
            untrained = [n for n, p in run.exams.items() if p.at_start]
            writer.write(0, averages(exams.take(0, start.state.params, untrained)))
        state, _ = fit(
            run.train,
            model_cfg,
            tx,
            start.state,
            loader,
            mesh=mesh,
            tasks=names,
            writer=writer,
            checkpoints=checkpoints,
            provenance=provenance,
            validation=_validation(run, manifest),
            evaluate=exams.when_due,
            evaluate_every=math.gcd(*(plan.every for plan in run.exams.values())),
        )
        done = exams.take(run.train.steps, state.params, list(run.exams))
        writer.write(run.train.steps, averages(done))
    _write_tasks(workdir, manifest, loader)
    if jax.process_index() == 0:
        rich.console.Console().print(f'report: {report.write(workdir)}', soft_wrap=True)
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
    workdir = pathlib.Path(workdir)
    run = _run_of(workdir)
    changed = _overridden(run.evaluate, overrides)
    plan = run.exams.get(mixture, ExamPlan())
    plan = dataclasses.replace(plan, split=split or plan.split)
    manifest = _with_exams(run, workdir, mixture, plan)
    run = dataclasses.replace(run, evaluate=changed, exams={mixture: plan})
    vocabulary, model_cfg, mesh, params, step = _restored(run, workdir, step)
    return _Exams(run, manifest, vocabulary, model_cfg, mesh, workdir).take(
        step, params, [mixture]
    )[mixture]


def generate(
    workdir: str | pathlib.Path,
    texts: Sequence[str],
    *,
    step: int | None = None,
    max_length: int = 0,
) -> list[str]:
    """Completes texts greedily; `<extra_id_0>` and `[NLU]` stand for their tokens."""
    workdir = pathlib.Path(workdir)
    run = _run_of(workdir)
    vocabulary, model_cfg, mesh, params, _ = _restored(run, workdir, step)
    manifest = manifests.read(_cache_of(run, workdir))
    end = [vocabulary.eos] if manifest.inputs_eos else []
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
    tasks = prepare.open_tasks(run.tasks)
    prepare.check_held_out(tasks, mixture, run.held_out)
    data = dataclasses.replace(run.data, mixture=mixture)
    started = time.perf_counter()
    manifest = prepare.write_cache(data, run.exams, pathlib.Path(out), ('train', 'validation'))
    tokens = sum(s.tokens for t in manifest.tasks for s in t.splits.values())
    examples = sum(s.examples for t in manifest.tasks for s in t.splits.values())
    print(
        f'{out}: {len(manifest.tasks)} tasks, {examples:,} examples, {tokens:,} tokens, '
        f'{len(manifest.exams)} evaluation sets in {time.perf_counter() - started:.0f} s'
    )
    for entry in manifest.skipped:
        print(f'skipped {entry.name}: {entry.reason}')
    return manifest


class _Exams:
    """Takes the exams of a run: prints their tables and writes `eval/STEP-MIXTURE.json`."""

    def __init__(self, run, manifest, vocabulary, model_cfg, mesh, workdir, writer=None):
        self.run, self.manifest, self.vocabulary = run, manifest, vocabulary
        self.model_cfg, self.mesh, self.workdir, self.writer = model_cfg, mesh, workdir, writer
        # A pipe has no width of its own; a table needs about this much.
        self.console = rich.console.Console(width=None if sys.stdout.isatty() else 150)

    def when_due(self, step: int, params: Any) -> dict[str, float]:
        """For the training loop: the mixtures whose plan says so, and their averages as metrics."""
        if step == self.run.train.steps:  # the end of the run takes them all
            return {}
        due = [n for n, p in self.run.exams.items() if p.every and step % p.every == 0]
        return averages(self.take(step, params, due))

    def take(
        self, step: int, params: Any, mixtures: Sequence[str]
    ) -> dict[str, list[dict[str, Any]]]:
        return {mixture: self._take(step, params, mixture) for mixture in mixtures}

    def _take(self, step, params, mixture):
        plan = self.run.exams[mixture]
        exams = self._sets(mixture, plan)
        cfg = dataclasses.replace(
            self.run.evaluate,
            max_examples=self.run.evaluate.max_examples or plan.max_examples,
            max_target_length=min(
                self.run.evaluate.max_target_length, self.run.data.targets_length
            ),
        )
        with jax.set_mesh(self.mesh):
            rows = examine(self.model_cfg, params, exams, self.vocabulary, cfg)
        if jax.process_index() == 0:
            meta = dict(step=step, mixture=mixture, split=plan.split)
            meta |= dict(normalisation=cfg.normalisation, seed=self.run.train.seed)
            path = self.workdir / 'eval' / f'{step:08d}-{mixture}.json'
            save_rows(path, rows, summarise(rows), meta)
            self._show(f'{mixture} ({plan.split} split), step {step}', rows)
        return rows

    def _show(self, title: str, rows: list[dict[str, Any]]) -> None:
        """All rows where `mtpt evaluate` asked for them, the averages at the end of a run."""
        whole = self.writer is None
        out = table(rows, prompts=whole, tasks=whole)
        out.title = title
        self.console.print(out)

    def _sets(self, mixture: str, plan: ExamPlan) -> list[ExamSet]:
        entries = prepare.exam_entries(self.manifest, mixture, plan.split)
        usable = [e for e in entries if not e.reason]
        if not usable:
            raise UserError(
                f'nothing to evaluate on: {mixture!r} has no evaluation set of split {plan.split!r}'
            )
        kinds = {e.name: self._kind(e) for e in usable}
        sets = self.manifest.exam_sets(plan.split, list(kinds), plan.max_examples or None)
        return [dataclasses.replace(s, kind=kinds[s.name]) for s in sets]

    def _kind(self, entry: Any) -> str:
        """What a score means: 'new tasks' share neither family nor data set with training."""
        trained = [t for t in self.manifest.tasks if t.status == 'ok' and t.rate > 0]
        if entry.task in {t.name for t in trained} or entry.name in {t.name for t in trained}:
            return 'new wordings' if entry.held_out_prompt else 'trained'
        if entry.family in {t.family for t in trained}:
            return 'trained family'
        return 'trained data' if entry.dataset in {t.dataset for t in trained} else 'new tasks'


def averages(rows: Mapping[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The macro average of each mixture and metric, as 'eval/MIXTURE/METRIC'."""
    return {
        f'eval/{mixture}/{macro["metric"]}': macro['value']
        for mixture, taken in rows.items()
        for macro in summarise(taken)['macro']
        if macro['over'] == 'all'
    }


def _make_folder(workdir: pathlib.Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {workdir}: {error.strerror}') from error


def _check_resumes(run: Run, workdir: pathlib.Path) -> None:
    """A folder goes on with the config it began with; what does not change the run may differ."""
    if not (workdir / 'config.json').exists():
        return
    old, new = (trees.flatten(_comparable(as_dict(r))) for r in (_run_of(workdir), run))
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            raise UserError(
                f'{workdir} holds a run with {path}={old.get(path)!r}, and the config says '
                f'{new.get(path)!r}; go on with the same config, or choose another --workdir'
            )


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    free = ('name', 'exams', 'evaluate', 'log', 'checkpoint', 'mesh')
    kept = {k: v for k, v in config.items() if k not in free}
    kept['data'] = {k: v for k, v in kept['data'].items() if k != 'cache'}
    kept['train'] = {
        k: v
        for k, v in kept['train'].items()
        if k not in ('steps', 'validate_every', 'evaluate_every', 'prefetch', 'max_skipped')
    }
    return kept


def _first_process_prepares(run: Run, folder: pathlib.Path) -> Manifest:
    args = (run.data, run.tasks, run.held_out, run.exams, folder)
    if jax.process_index() == 0:
        prepare.prepare(*args)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices('cache')
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


def _notes(loader: Loader) -> list[str]:
    return [f'task {name!r} is left out: {reason}' for name, reason in loader.problems]


def _provenance(run: Run, manifest: Manifest, model_cfg: ModelConfig, loader: Loader) -> dict:
    return dict(
        config=as_dict(run),
        model=as_dict(model_cfg),
        vocabulary=manifest.vocabulary,
        inputs_eos=manifest.inputs_eos,
        data_fingerprint=manifest.fingerprint,
        tasks=[
            dict(name=t.name, id=t.id, family=t.family, dataset=t.dataset, rate=t.rate,
                 status=t.status, reason=t.reason)
            for t in manifest.tasks
        ],
        left_out=[list(problem) for problem in loader.problems],
        versions=_versions(),
    )  # fmt: skip


def _versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = installed()
    return {'python': sys.version.split()[0]} | {n: found[n] for n in TOLD if n in found}


def _write_config(run: Run, workdir: pathlib.Path, model_cfg: ModelConfig, mesh: Any) -> None:
    path = workdir / 'config.json'
    if jax.process_index():
        return
    shapes = jax.tree.leaves(
        jax.eval_shape(lambda: encoder_decoder.init(model_cfg, jax.random.key(0)))
        if not jax.sharding.get_abstract_mesh().empty
        else _shapes(model_cfg, mesh)
    )
    started = json.loads(path.read_text())['started'] if path.exists() else _now()
    about = dict(
        name=run.name,
        command='mtpt ' + ' '.join(sys.argv[1:]) if sys.argv[1:] else '',
        config=as_dict(run),
        model=as_dict(model_cfg),
        versions=_versions(),
        parameters=int(sum(np.prod(s.shape) for s in shapes)),
        devices=f'{mesh.devices.size} x {mesh.devices.flat[0].device_kind}',
        started=started,
    )
    path.write_text(json.dumps(about, indent=1))


def _shapes(model_cfg: ModelConfig, mesh: Any) -> Any:
    with jax.set_mesh(mesh):
        return jax.eval_shape(lambda: encoder_decoder.init(model_cfg, jax.random.key(0)))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _write_tasks(workdir: pathlib.Path, manifest: Manifest, loader: Loader) -> None:
    """Writes asked-for against realised shares, in examples and tokens that were trained on."""
    tokens = {}
    for line in read_metrics(workdir):
        for key, value in line.items():
            if key.startswith('task/') and key.endswith(('/tokens', '/examples')):
                tokens[key] = tokens.get(key, 0) + value
    left_out = dict(loader.problems)
    realised = {r['task']: r for r in realised_shares(loader.position(), manifest)}
    rows = [
        dict(
            name=t.name, id=t.id, family=t.family, dataset=t.dataset, kind=t.kind, asked=t.rate,
            examples=tokens.get(f'task/{t.name}/examples', 0),
            tokens=tokens.get(f'task/{t.name}/tokens', 0),
            status='skipped' if t.name in left_out else t.status,
            reason=left_out.get(t.name, t.reason),
            available=t.splits['train'].examples if 'train' in t.splits else None,
            truncated=realised[t.name]['trimmed'],
        )
        for t in manifest.tasks
    ]  # fmt: skip
    if jax.process_index() == 0:
        (workdir / 'tasks.json').write_text(json.dumps(rows, indent=1))


def _run_of(workdir: pathlib.Path) -> Run:
    path = workdir / 'config.json'
    try:
        return read_config(Run, json.loads(path.read_text())['config'])
    except FileNotFoundError:
        raise UserError(
            f'{workdir} holds no run: config.json is missing; train there first'
        ) from None
    except (ValueError, KeyError) as error:
        raise UserError(f'{path} is damaged ({error}); it cannot be read') from error


def _cache_of(run: Run, workdir: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(run.data.cache) if run.data.cache else workdir / 'cache'


def _with_exams(run: Run, workdir: pathlib.Path, mixture: str, plan: ExamPlan) -> Manifest:
    """The run's manifest, with the evaluation sets of a mixture added where they are missing."""
    folder = _cache_of(run, workdir)
    manifest = manifests.read(folder)
    if prepare.exam_entries(manifest, mixture, plan.split):
        return manifest
    tasks = prepare.open_tasks(run.tasks)
    tasks.find(mixture)
    return prepare.write_cache(run.data, {mixture: plan}, folder, ('train', 'validation'))


def _restored(run: Run, workdir: pathlib.Path, step: int | None):
    checkpoints = Checkpoints(workdir, run.checkpoint, read_only=True)
    vocabulary = load(workdir / 'vocabulary')
    model_cfg = resolve(run.model, vocabulary.padded_size)
    mesh = meshes.make_mesh(run.mesh)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: encoder_decoder.init(model_cfg, jax.random.key(0)))
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
    if not cfg.path:
        return None
    folder = pathlib.Path(cfg.path) / 'vocabulary'
    if not folder.is_dir():
        return None
    old = load(folder)
    if old == vocabulary:
        return None
    rows = {i: i for i in range(min(old.pieces, vocabulary.pieces))}
    rows |= {old.sentinel(i): vocabulary.sentinel(i) for i in range(100)}
    return rows | {old.modes[m]: vocabulary.modes[m] for m in old.modes}


def _overridden(cfg: EvaluateConfig, overrides: Iterable[str]) -> EvaluateConfig:
    values = as_dict(cfg)
    for override in overrides:
        key, equals, text = override.partition('=')
        if not equals:
            raise UserError(f'--set={override} is not of the form key=value')
        values[key] = _typed(text, values.get(key))
    return read_config(EvaluateConfig, values, 'evaluate')


def _typed(text: str, like: Any) -> Any:
    try:
        return text if isinstance(like, str) or like is None else json.loads(text.lower())
    except ValueError:
        return text
