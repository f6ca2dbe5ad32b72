"""A run on a machine that is not here: its model, state, batch and step as shapes on a mesh.

Nothing is computed. On an `AbstractMesh` the step can be traced; on a `Mesh` of compile-only
devices it can be lowered and compiled too.

A accumulation  B rows  G segments of a row  O columns of labels  M tasks  V vocabulary
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtpt import layout, stages, task_ids
from mtpt import mesh as meshes
from mtpt.chips import Topology
from mtpt.config import UserError, choose
from mtpt.data import manifest as manifests
from mtpt.mesh import AXES, BATCH_DIMS, MeshConfig
from mtpt.model import functional
from mtpt.model.config import ModelConfig, resolve
from mtpt.model.parts import named_experts, routers
from mtpt.model.sizes import SIZES
from mtpt.settings import Run
from mtpt.stages import Leg
from mtpt.train.config import loss_settings
from mtpt.train.optimizer import Optimizer, make_optimizer
from mtpt.train.state import TrainState, new_state, on_mesh
from mtpt.train.step import make_train_step
from mtpt.vocabulary import open_vocabulary

T5_ROWS = 32_128  # of T5's embedding tables: 32,100 ids, rounded up to a multiple of 128
ASSUMED_TASKS = 100
CUDNN = (
    "attention is planned as XLA does it: cuDNN's kernel, which takes less memory, cannot be "
    'traced where cuDNN is not'
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a config leaves open: rows of the embedding table, tasks; and where they are from."""

    V: int
    M: int
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Problem:
    """One leg of a run on a mesh, all as shapes with shardings.

    run: with the settings of the leg; first and last: the steps that it goes from and to.
    step: the jitted train step, exactly as training makes it: step(state, batch).
    """

    name: str
    run: Run
    first: int
    last: int
    model: ModelConfig
    mesh: Any
    tx: Optimizer
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    step: Callable[[Any, Any], Any]
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return self.last - self.first

    @property
    def rows(self) -> int:
        """Rows of a whole batch, over all parts of the accumulation."""
        return self.run.data.batch_size

    @property
    def tokens(self) -> int:
        """Positions of inputs and targets of a batch, padding counted."""
        return self.rows * (self.run.data.inputs_length + self.run.data.targets_length)

    def trace(self) -> Any:
        """The closed jaxpr of a step, with shardings on its shapes."""
        with on(self.mesh):
            return self.step.trace(self.state, self.batch).jaxpr

    def lower(self) -> Any:
        """The step lowered for the devices of the mesh, to be compiled."""
        with jax.set_mesh(self.mesh):
            return self.step.lower(self.state, self.batch)


def sizes(run: Run, tasks: int | None = None) -> Sizes:
    """The vocabulary and the number of tasks of a run, as far as they can be known here.

    Args:
      tasks: how many there are, if the user knows.
    """
    notes, found = [], _manifest(run)
    V = run.model.V
    if not V:
        try:
            V = open_vocabulary(run.data.vocabulary).padded_size
        except UserError:
            V = choose('model size', run.model.size, SIZES).get('V', T5_ROWS)
            notes.append(f'no vocabulary at {run.data.vocabulary!r}: {V:,} rows are assumed')
    M = run.model.M or tasks
    if not M and found:
        M = task_ids.last(found.tasks)
    if not M:
        M = ASSUMED_TASKS
        notes.append(f'{M} tasks are assumed; --tasks=N tells how many there are')
    return Sizes(V, M, tuple(notes))


def _manifest(run: Run) -> Any:
    """The table of the run's cache, if its config names one that is here."""
    if not run.data.cache:
        return None
    try:
        return manifests.read(run.data.cache).of(stages.parts(run))
    except (UserError, OSError):
        return None


def model_of(run: Run, known: Sizes) -> ModelConfig:
    """The run's model; where it enforces who goes to which expert, tasks go round the experts."""
    cfg = resolve(run.model, known.V, known.M)
    if 'enforced' in routers(cfg).values() and not cfg.moe.expert_of_task:
        experts = sorted(set(named_experts(cfg.moe.experts_of).values()))
        table = tuple(experts[i % len(experts)] for i in range(cfg.M + 1))
        moe = dataclasses.replace(cfg.moe, expert_of_task=table)
        cfg = resolve(dataclasses.replace(cfg, moe=moe))
    return cfg


def mesh_sizes(cfg: MeshConfig, topology: Topology) -> tuple[int, ...]:
    """The sizes of the four axes on a topology, all of whose devices are used.

    Raises:
      UserError: they do not fit it.
    """
    asked = [getattr(cfg, axis) for axis in AXES]
    spelt = ', '.join(f'{axis}={size}' for axis, size in zip(AXES, asked) if size != 1)
    fixed, devices = math.prod(size for size in asked if size != -1), topology.devices
    cure = 'set --config.mesh.data=-1 (or another axis), or add --search to find a mesh'
    if any(size < 1 and size != -1 for size in asked) or asked.count(-1) > 1:
        raise UserError(f'the mesh {spelt} needs sizes of at least 1, and -1 once at most; {cure}')
    if -1 in asked and devices % fixed == 0:
        asked[asked.index(-1)] = devices // fixed
    if -1 in asked or math.prod(asked) != devices:
        raise UserError(
            f"the config's mesh ({spelt or 'data=1'}) takes {fixed} devices and {topology.name}"
            f'{f" x {topology.slices} slices" * (topology.slices > 1)} has {devices}; {cure}'
        )
    if asked[0] % topology.slices:
        raise UserError(
            f'data={asked[0]} does not split over {topology.slices} slices, and only data runs '
            f'between slices; make mesh.data a multiple of {topology.slices}, or add --search'
        )
    return tuple(asked)


def abstract_mesh(shape: tuple[int, ...]) -> jax.sharding.AbstractMesh:
    """A mesh of so many devices that need not exist."""
    explicit = (jax.sharding.AxisType.Explicit,) * len(AXES)
    return jax.sharding.AbstractMesh(shape, AXES, axis_types=explicit)


@contextlib.contextmanager
def on(mesh: Any) -> Iterator[None]:
    """Sets a mesh for tracing, be it abstract or of devices."""
    if isinstance(mesh, jax.sharding.AbstractMesh):
        nowhere = jax.sharding.Mesh(np.empty((), object), ())
        with jax.set_mesh(nowhere), jax.sharding.use_abstract_mesh(mesh):
            yield
    else:
        with jax.set_mesh(mesh):
            yield


def problems(run: Run, mesh: Any, known: Sizes, platform: str) -> list[Problem]:
    """The legs of a run (one, if it has no stages) on a mesh.

    Raises:
      UserError: the run cannot be trained on this mesh.
    """
    return [problem(leg, run, mesh, known, platform) for leg in stages.legs(run)]


def problem(leg: Leg, run: Run, mesh: Any, known: Sizes, platform: str) -> Problem:
    """One leg of a run on a mesh.

    Raises:
      UserError: a dimension does not split over the axes that it has to split over.
    """
    cfg = model_of(run, known)
    layout.check(leg.run, cfg, mesh, platform)
    notes = known.notes
    if cfg.kernel == 'cudnn' and isinstance(mesh, jax.sharding.AbstractMesh):
        cfg, notes = dataclasses.replace(cfg, kernel='xla'), (*notes, CUDNN)
    offset = 0 if leg.first else run.init_from.step_offset
    dims = functional.dims(cfg)
    tx = make_optimizer(leg.run.optimizer, dims, leg.last - leg.first, offset, begin=leg.first)
    return Problem(
        leg.name, leg.run, leg.first, leg.last, cfg, mesh, tx,
        abstract_state(leg.run, cfg, tx, mesh), abstract_batch(leg.run, cfg, mesh),
        train_step(leg.run, cfg, tx, known.M), notes,
    )  # fmt: skip


def abstract_state(run: Run, cfg: ModelConfig, tx: Optimizer, mesh: Any) -> TrainState:
    """Parameters, optimizer state and counters, each with its sharding."""
    with on(mesh):
        state = jax.eval_shape(lambda: new_state(cfg, tx, 0, spikes=run.train.spikes))
    return jax.tree.map(lambda x: on_mesh(x, mesh), state)


def abstract_batch(run: Run, cfg: ModelConfig, mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as the loader makes it and `mesh.place` lays it out: [B, ...], or [A, B / A, ...]."""
    data = run.data
    A = data.accumulation
    width = dict(A=A, B=data.batch_size // A, S=data.inputs_length, T=data.targets_length)
    width |= dict(G=data.segments if data.pack else 1)
    heads = dict(
        segment_labels=sum(head.columns for head in cfg.heads),
        token_labels=sum(head.kind == 'token_labels' for head in cfg.heads),
    )
    made = {}
    for name, dims in BATCH_DIMS.items():
        if name in heads and not heads[name]:
            continue
        dims = ('A' if A > 1 else '') + dims
        shape = tuple(heads[name] if d == 'O' else width[d] for d in dims)
        sharding = jax.sharding.NamedSharding(mesh, meshes.act(dims))
        made[name] = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
    return made


def train_step(run: Run, cfg: ModelConfig, tx: Optimizer, M: int) -> Callable[[Any, Any], Any]:
    """The step that a `Trainer` compiles; scales of tasks are stand-ins, of the same shape."""
    scale = (1.0,) * (M + 1) if run.train.loss_scaling != 'none' else None
    settings = loss_settings(run.train) | dict(spikes=run.train.spikes)
    return make_train_step(cfg, tx, M, task_scale=scale, **settings)
