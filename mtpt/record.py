"""What a run leaves in its folder besides metrics and checkpoints, and how it is read back."""

import dataclasses
import datetime
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mtpt import trees
from mtpt.config import UserError, as_dict
from mtpt.config import read as read_config
from mtpt.data.loader import Loader
from mtpt.data.manifest import Manifest, TaskEntry
from mtpt.files import write
from mtpt.model import functional
from mtpt.model.config import ModelConfig
from mtpt.settings import Run
from mtpt.versions import code_revision, installed

TOLD = ('mtpt', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'sentencepiece')


def make_folder(workdir: pathlib.Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {workdir}: {error.strerror}') from error


def check_resumes(run: Run, workdir: pathlib.Path) -> None:
    """A folder goes on with the config it began with; what does not change the run may differ."""
    if not (workdir / 'config.json').exists():
        return
    old, new = (trees.flatten(_comparable(as_dict(r))) for r in (run_of(workdir), run))
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            raise UserError(
                f'{workdir} holds a run with {path}={old.get(path)!r}, and the config says '
                f'{new.get(path)!r}; go on with the same config, or choose another --workdir'
            )


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    free = ('name', 'exams', 'evaluate', 'log', 'checkpoint', 'mesh', 'stages', 'watchdog')
    kept = {k: v for k, v in config.items() if k not in free}
    kept['data'] = {k: v for k, v in kept['data'].items() if k != 'cache'}
    layout = ('remat', 'sequence_split')  # another mesh may ask for others
    kept['model'] = {k: v for k, v in kept['model'].items() if k not in layout}
    kept['train'] = {
        k: v
        for k, v in kept['train'].items()
        if k not in ('steps', 'validate_every', 'prefetch', 'max_skipped', 'replays')
    }
    return kept


def provenance(run: Run, manifest: Manifest, model_cfg: ModelConfig, loader: Loader) -> dict:
    """What a checkpoint says of itself: settings, tasks, where every task's examples came from with
    hashes, and the code and the versions that made it."""
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
        sources={t.name: _source(t) for t in manifest.tasks},
        mixture_hash=mixture_hash(manifest),
        left_out=[list(problem) for problem in loader.problems],
        code=code_revision(),
        versions=_versions(),
    )  # fmt: skip


def _source(task: TaskEntry) -> dict[str, Any]:
    """Where the examples of a task came from, and what became of them in the cache."""
    splits = {
        name: dict(
            examples=split.examples,
            tokens=split.tokens,
            renderings=split.renderings,
            shards=[dict(path=s.path, sha256=s.sha256) for s in split.shards],
        )
        for name, split in task.splits.items()
    }
    return dict(
        source=task.source,
        objective=task.objective,
        objective_args=task.objective_args,
        splits=splits,
    )


def mixture_hash(manifest: Manifest) -> str:
    """Changes with what a run draws from: tasks, rates, sources, shards, vocabulary."""
    told = [
        [t.name, t.id, t.rate, t.status, _source(t) | dict(source=dict(t.source, examples=None))]
        for t in manifest.tasks
        if t.status != 'unused'
    ]
    told = [manifest.vocabulary.get('fingerprint'), manifest.inputs_eos, told]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = installed()
    return {'python': sys.version.split()[0]} | {n: found[n] for n in TOLD if n in found}


def facts(settings: Any) -> dict[str, str]:
    """What must be the same on all hosts of a run, by name: code, settings, task file, versions.

    settings: the `Run`, or another mapping of what a verb is told.
    """
    told = as_dict(settings) if dataclasses.is_dataclass(settings) else dict(settings)
    found = {
        f'config.{name.replace("/", ".")}': str(value)
        for name, value in trees.flatten(told).items()
    }
    root = pathlib.Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob('*.py')):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    found['code'] = f'{code_revision().get("commit", "")[:12]} {digest.hexdigest()[:8]}'.strip()
    module = pathlib.Path(str(told.get('tasks', {}).get('module') or ''))
    if module.is_file():
        found[str(module)] = hashlib.sha256(module.read_bytes()).hexdigest()[:8]
    return found | {f'version of {name}': version for name, version in _versions().items()}


def write_config(
    run: Run, workdir: pathlib.Path, model_cfg: ModelConfig, mesh: Any, **more: Any
) -> None:
    """Writes what a run is; `more` is told beside it."""
    path = workdir / 'config.json'
    if jax.process_index():
        return
    shapes = jax.tree.leaves(_shapes(model_cfg, mesh))
    started = json.loads(path.read_text())['started'] if path.exists() else _now()
    about = dict(
        name=run.name,
        command='mtpt ' + ' '.join(sys.argv[1:]) if sys.argv[1:] else '',
        config=as_dict(run),
        model=as_dict(model_cfg),
        code=code_revision(),
        versions=_versions(),
        parameters=int(sum(np.prod(s.shape) for s in shapes)),
        devices=f'{mesh.devices.size} x {mesh.devices.flat[0].device_kind}',
        started=started,
        **more,
    )
    write(path, json.dumps(about, indent=1))


def _shapes(model_cfg: ModelConfig, mesh: Any) -> Any:
    with jax.set_mesh(mesh):
        return jax.eval_shape(lambda: functional.init(model_cfg, jax.random.key(0)))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def tasks_of(told: Mapping[str, Any]) -> list[TaskEntry]:
    """The table of tasks that a checkpoint's provenance keeps."""
    return [TaskEntry(kind='', **task) for task in told.get('tasks', ())]


def run_of(workdir: pathlib.Path) -> Run:
    path = workdir / 'config.json'
    try:
        return read_config(Run, json.loads(path.read_text())['config'])
    except FileNotFoundError:
        raise UserError(
            f'{workdir} holds no run: config.json is missing; train there first'
        ) from None
    except (ValueError, KeyError) as error:
        raise UserError(f'{path} is damaged ({error}); it cannot be read') from error
