"""The part of a run's model that one task uses, written as a run of its own: dense, and as good."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from mtpt import record, task_ids
from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError, as_dict
from mtpt.files import write_folder
from mtpt.model.extract import extracted, representation, uses
from mtpt.opened import opened
from mtpt.train.state import TrainState


def extract(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    task: str | None = None,
    text: str | None = None,
    step: int | None = None,
) -> list[dict[str, Any]]:
    """Writes the dense model that a task uses of a run with experts into a folder of its own.

    The folder can be evaluated, generated with, reported on and gone on from (`init_from`). Where
    the routers look at the prompt, what is extracted is what the example in `text` uses.

    Args:
      workdir: the folder of the run.
      out: the folder to write, which is not there yet or empty; it appears whole or not at all.
      task: the name of a task of the run; without it, a task that is not known.
      text: an example of its inputs, needed where a task is known by its prompt.
      step: a checkpoint's step; the last one by default.

    Returns:
      Of every sparse layer its `stack`, `layer`, the `expert` that the task uses and its `gate`.

    Raises:
      UserError: no such task, a model whose tasks use more than one expert, a folder that is taken.
    """
    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f'{out} is there already; choose another --out, or remove it')
    model = opened(workdir, step)
    source = Checkpoints(workdir, model.run.checkpoint, read_only=True)
    step = source.latest() if step is None else step
    task_ids.check_asked(model.cfg, task)
    number = task_ids.id_of(model.tasks, task) if task else 0
    with jax.set_mesh(model.mesh):
        known = representation(model.cfg, model.params, number, model.inputs(text) if text else ())
        used = uses(model.cfg, model.params, number, known)
    dense, params = extracted(model.cfg, model.params, used)
    told = dict(run=str(workdir), step=step, task=task, experts=[u._asdict() for u in used])
    cache = model.run.data.cache or str((workdir / 'cache').resolve())
    run = dataclasses.replace(
        model.run,
        name=f'{model.run.name}, {task or "unknown task"}',
        model=dataclasses.replace(model.run.model, F=dense.F, moe=dense.moe),
        data=dataclasses.replace(model.run.data, cache=cache),
    )
    state = TrainState(np.int32(step), params, (), jax.random.key(0), np.int32(0))
    provenance = source.load_provenance(step)
    provenance |= dict(config=as_dict(run), model=as_dict(dense), extracted=told)

    def fill(folder):
        model.vocabulary.save(folder / 'vocabulary')
        checkpoints = Checkpoints(folder, run.checkpoint)
        checkpoints.save(step, state, {}, provenance)
        checkpoints.close()
        record.write_config(run, folder, dense, model.mesh, extracted=told)

    write_folder(out, fill)
    return told['experts']
