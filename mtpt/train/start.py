"""Where training begins: at a checkpoint of the run itself, at that of another, or anew."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from mtpt.checkpoint import Checkpoints
from mtpt.model import functional
from mtpt.train.config import TrainConfig
from mtpt.train.optimizer import Optimizer
from mtpt.train.state import InitFromConfig, TrainState, abstract_state, init_from, new_state


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins; position and provenance are those of the run that is gone on with."""

    state: TrainState
    step: int = 0
    position: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def begin(
    cfg: TrainConfig,
    model_cfg: Any,
    tx: Optimizer,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    source: InitFromConfig | None = None,
    rows: Mapping[int, int] | None = None,
    tasks: Mapping[int, int] | None = None,
) -> Start:
    """Makes the state to train from; a checkpoint of the run itself goes before `source`.

    rows, tasks: where what `source` learnt of a token and of a task goes (see `init_from`).

    Raises:
      UserError: a checkpoint that is damaged or of another model.
    """
    step = checkpoints.latest()
    if step is not None:
        abstract = abstract_state(model_cfg, tx, mesh, spikes=cfg.spikes)
        state, position, provenance = checkpoints.load(step, abstract)
        notes = (*checkpoints.notes, f'going on from step {step}')
        return Start(state, step, position, provenance, notes)
    with jax.set_mesh(mesh):
        state, notes = new_state(model_cfg, tx, cfg.seed, spikes=cfg.spikes), []
        if source is not None and source.path:
            dims = functional.dims(model_cfg)
            params, notes = init_from(source, state.params, dims, rows, tasks, model_cfg)
            state = state._replace(params=params)
    return Start(state, notes=tuple(notes))
