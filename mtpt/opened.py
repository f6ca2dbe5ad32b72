"""A run that is over or under way, opened again: its model, its vocabulary, its mesh."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax

from mtpt import mesh as meshes
from mtpt import record, stages, task_ids
from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError
from mtpt.data.manifest import Manifest, TaskEntry
from mtpt.model import functional
from mtpt.model.config import ModelConfig
from mtpt.settings import Run
from mtpt.vocabulary import Vocabulary, load


class Opened(NamedTuple):
    """A run whose model is at hand, on its mesh; `ends` is what follows every input, `step` the
    checkpoint's."""

    run: Run
    vocabulary: Vocabulary
    cfg: ModelConfig
    mesh: jax.sharding.Mesh
    params: Any
    ends: list[int]
    tasks: list[TaskEntry]
    step: int

    def inputs(self, text: str) -> list[int]:
        """The token ids of an input as the run was trained on them.

        The run's mode token stands before them, unless the text begins with one.

        Raises:
          UserError: a text that is too long, or empty where nothing is put behind it, or with
            tokens that the model has no rows for.
        """
        ids = self._ids(text) + self.ends
        mode, modes = self.run.data.mode_token, self.vocabulary.modes
        if mode and ids[:1] and ids[0] not in modes.values():
            ids = self._ids(mode) + ids
        longest = self.run.data.inputs_length
        if not ids:
            raise UserError('the input is empty, and the run puts no end behind it; give a text')
        if len(ids) > longest:
            raise UserError(
                f'the input has {len(ids)} tokens and the run was trained on {longest}; shorten it'
            )
        return ids

    def targets(self, text: str) -> list[int]:
        """The token ids of an answer, with its end.

        Raises:
          UserError: a text with tokens that the model has no rows for.
        """
        return [*self._ids(text), self.vocabulary.eos]

    def _ids(self, text: str) -> list[int]:
        ids = self.vocabulary.encode(text, specials=True)
        last = max(ids, default=0)
        if last >= self.cfg.V:  # a converted model may have fewer rows than there are ids
            raise UserError(
                f'the model has no row for {self.vocabulary.name(last)!r}; leave it out of the text'
            )
        return ids


def opened(workdir: str | pathlib.Path, step: int | None = None) -> Opened:
    """A run's model and what it reads and writes texts with.

    Raises:
      UserError: a folder that holds no run, a step that was not kept.
    """
    workdir = pathlib.Path(workdir)
    run = stages.ended(record.run_of(workdir))
    vocabulary, model_cfg, mesh, params, step = restored(run, workdir, step)
    checkpoints = Checkpoints(workdir, run.checkpoint, read_only=True)
    told = checkpoints.load_provenance(step)
    ends = [vocabulary.eos] if told['inputs_eos'] else []
    return Opened(run, vocabulary, model_cfg, mesh, params, ends, record.tasks_of(told), step)


def model_of(run: Run, vocabulary: Vocabulary, M: int, manifest: Manifest) -> ModelConfig:
    """The model of a run, which may be asked of the tasks of its table and of its exams."""
    asked = task_ids.asked(manifest, run.exams)
    return task_ids.resolved(run.model, vocabulary.padded_size, M, manifest.tasks, asked)


def mesh_at_hand(cfg: meshes.MeshConfig) -> jax.sharding.Mesh:
    """The mesh of a run, or where other devices are at hand than it was trained on, one of these.

    The model's axes are kept where they fit; else every device has all of the model.
    """
    for other in (cfg, dataclasses.replace(cfg, data=-1)):
        try:
            return meshes.make_mesh(other)
        except UserError:
            continue
    return meshes.make_mesh(meshes.MeshConfig(data=-1))


def restored(
    run: Run, workdir: pathlib.Path, step: int | None, manifest: Manifest | None = None
) -> tuple[Vocabulary, ModelConfig, jax.sharding.Mesh, Any, int]:
    """A run's vocabulary, resolved model, mesh and parameters, and the step that they are of.

    manifest: with the evaluation sets whose tasks are to be routed too.
    """
    checkpoints = Checkpoints(workdir, run.checkpoint, read_only=True)
    vocabulary = load(workdir / 'vocabulary')
    step = checkpoints.latest() if step is None else step
    tasks = record.tasks_of(checkpoints.load_provenance(step))
    M = task_ids.last(tasks)
    if manifest:
        model_cfg = model_of(run, vocabulary, M, manifest)
    else:
        model_cfg = task_ids.resolved(run.model, vocabulary.padded_size, M, tasks)
    mesh = mesh_at_hand(run.mesh)
    if mesh.devices.flat[0].platform != 'gpu':  # a kernel binds no weights
        model_cfg = dataclasses.replace(model_cfg, kernel='xla')
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: functional.init(model_cfg, jax.random.key(0)))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, x.sharding.spec)
        ),
        shapes,
    )
    return vocabulary, model_cfg, mesh, checkpoints.load_params(step, abstract), step
