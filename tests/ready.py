"""The folder of a run that was never trained: given weights, and what readers need beside them."""

import contextlib
import json
from typing import Any, NamedTuple

import jax
import numpy as np

from mtpt.checkpoint import Checkpoints
from mtpt.config import as_dict, read
from mtpt.settings import Run
from mtpt.vocabulary import open_vocabulary


class State(NamedTuple):
    params: Any
    step: Any


@contextlib.contextmanager
def quick_to_compile():
    """For what compiles inside of the project, where a test cannot ask for it at `jax.jit`."""
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', before)


def write(workdir, params, model, inputs_eos=True, inputs_length=32, tasks=()):
    """Makes the folder of a run of bytes.

    Args:
      workdir: a pathlib.Path.
      params: the model's.
      model: the `model` section of the config.
      inputs_eos, inputs_length: as in the run's data.
      tasks: names of its table.
    """
    run = read(
        Run,
        dict(
            name='ready',
            model=model,
            data=dict(vocabulary='bytes', inputs_length=inputs_length, targets_length=8),
        ),
    )
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'config.json').write_text(json.dumps(dict(config=as_dict(run))))
    open_vocabulary('bytes').save(workdir / 'vocabulary')
    entries = [
        dict(name=n, id=i, family='', dataset='', rate=1.0, status='ok', reason='')
        for i, n in enumerate(tasks, 1)
    ]
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, State(params, np.int32(1)), {}, dict(inputs_eos=inputs_eos, tasks=entries))
    checkpoints.wait()
    checkpoints.close()
    return workdir
