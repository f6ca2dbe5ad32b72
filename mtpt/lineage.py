"""What a run goes on from or starts from: whether it may, and where what was learnt goes."""

import pathlib

import jax

from mtpt import record, task_ids
from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError
from mtpt.data.manifest import Manifest
from mtpt.model import functional
from mtpt.model.config import ModelConfig
from mtpt.settings import Run
from mtpt.train.start import Start
from mtpt.train.state import InitFromConfig
from mtpt.vocabulary import Vocabulary, common_ids, load


def check_order(start: Start, manifest: Manifest, run: Run) -> None:
    """A position counts examples of these shards in this order; of others it would mean nothing.

    Raises:
      UserError: the cache is another.
    """
    told = start.provenance or {}
    saved, known = told.get('data_fingerprint'), {t['name'] for t in told.get('tasks', ())}
    if saved and saved != manifest.fingerprint_of(known):
        raise UserError(
            f'the cache of {run.data.mixture!r} is not the one this run was trained on, so it '
            'cannot go on exactly; restore that cache, or start another run with init_from'
        )


def check_tasks(
    checkpoints: Checkpoints, cfg: ModelConfig, manifest: Manifest, workdir: pathlib.Path
) -> None:
    """A model with a row for each task goes on with the tasks that it has.

    Raises:
      UserError: a stage brings tasks that it has no row for.
    """
    known = task_ids.last(record.tasks_of(checkpoints.load_provenance()))
    rows = any('M' in letters for letters in jax.tree.leaves(functional.dims(cfg)))
    if rows and task_ids.last(manifest.tasks) > known:
        raise UserError(
            f'the model in {workdir} has a row for each of its {known} tasks, and a stage brings '
            'new ones; train them in another --workdir with init_from.path set to this one'
        )


def tasks_from(cfg: InitFromConfig, manifest: Manifest) -> dict[int, int] | None:
    """Where the ids of the tasks of the run that this one starts from are in this run's table."""
    if not cfg.path:
        return None
    source = Checkpoints(cfg.path, read_only=True)
    old = record.tasks_of(source.load_provenance(None if cfg.step < 0 else cfg.step))
    new = {task.name: task.id for task in manifest.tasks}
    return {0: 0} | {task.id: new[task.name] for task in old if task.name in new}


def rows_from(cfg: InitFromConfig, vocabulary: Vocabulary) -> dict[int, int] | None:
    """Where the ids of the run that this one starts from are in this run's vocabulary."""
    folder = pathlib.Path(cfg.path) / 'vocabulary'
    if not cfg.path or not folder.is_dir():
        return None
    old = load(folder)
    return None if old == vocabulary else common_ids(old, vocabulary)
