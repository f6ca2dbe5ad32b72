"""All that training carries from one step to the next, and where it begins.

V vocabulary  M tasks
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError, nearest, read
from mtpt.model import functional
from mtpt.model.config import ModelConfig
from mtpt.model.remodel import carried
from mtpt.train.optimizer import Optimizer
from mtpt.train.spikes import OFF, SpikesConfig, start
from mtpt.trees import flatten, unflatten


class TrainState(NamedTuple):
    """step counts batches drawn; skipped counts updates left out in a row; key never changes;
    spikes holds what `spikes.start` gave, which is nothing without a rule for them."""

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    skipped: jax.Array
    spikes: Any = ()


def new_state(
    model_cfg: Any,
    tx: Optimizer,
    seed: int,
    init: Callable = functional.init,
    spikes: SpikesConfig = OFF,
) -> TrainState:
    """The state before the first step, laid out on the mesh that is set."""
    return _maker(model_cfg, tx, init, spikes)(np.uint32(seed))


def abstract_state(
    model_cfg: Any,
    tx: Optimizer,
    mesh: Any,
    init: Callable = functional.init,
    spikes: SpikesConfig = OFF,
) -> TrainState:
    """The shapes, types and shardings of the state on `mesh`, with nothing computed."""
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(_maker(model_cfg, tx, init, spikes), np.uint32(0))
    return jax.tree.map(lambda x: on_mesh(x, mesh), shapes)


def with_optimizer(state: TrainState, tx: Optimizer, mesh: Any, fresh: bool = False) -> TrainState:
    """The state as another stage's optimizer takes it up: with its moments, rounded to how it
    stores them, unless it is to begin anew or keeps others."""
    with jax.set_mesh(mesh):
        wanted = jax.eval_shape(tx.init, state.params)
        shapes = [x.shape for x in jax.tree.leaves(wanted)]
        same = jax.tree.structure(wanted) == jax.tree.structure(state.opt_state)
        if same and shapes == [x.shape for x in jax.tree.leaves(state.opt_state)] and not fresh:
            narrow = jax.jit(lambda old: jax.tree.map(lambda x, w: x.astype(w.dtype), old, wanted))
            return state._replace(opt_state=narrow(state.opt_state))
        return state._replace(opt_state=jax.jit(tx.init)(state.params))


def with_spikes(state: TrainState, cfg: SpikesConfig, mesh: Any) -> TrainState:
    """The state as another stage takes it up: what counts as a spike there is seen anew."""
    with jax.set_mesh(mesh):
        return state._replace(spikes=jax.jit(functools.partial(start, cfg))(state.step))


def on_mesh(x: Any, mesh: Any) -> jax.ShapeDtypeStruct:
    """An abstract array laid out on the devices of `mesh`; without a sharding, a copy on each."""
    spec = getattr(x.sharding, 'spec', None) or P()
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.NamedSharding(mesh, spec))


@functools.lru_cache(maxsize=4)
def _maker(model_cfg, tx, init, spikes):
    def make(seed):
        key = jax.random.key(seed)
        params = init(model_cfg, jax.random.fold_in(key, 0))
        zero = jnp.zeros((), jnp.int32)
        opt_state, own_key = tx.init(params), jax.random.fold_in(key, 1)
        return TrainState(zero, params, opt_state, own_key, zero, start(spikes))

    return jax.jit(make)


@dataclasses.dataclass(frozen=True)
class InitFromConfig:
    """Another run to start from: its folder ('' for none), step (-1: the last), parameters.

    include and exclude are globs over paths, in which `*` crosses slashes; step_offset moves the
    learning-rate schedule, as if that many steps were done.
    """

    path: str = ''
    step: int = -1
    include: tuple[str, ...] = ('*',)
    exclude: tuple[str, ...] = ()
    step_offset: int = 0


def init_from(
    cfg: InitFromConfig,
    params: Mapping[str, Any],
    dims: Mapping[str, Any],
    rows: Mapping[int, int] | None = None,
    tasks: Mapping[int, int] | None = None,
    model_cfg: ModelConfig | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Replaces fresh parameters by those of another run, remodelled where its model differs.

    Args:
      params: the fresh parameters, which also say where the others are to lie.
      dims: the letters of their axes.
      rows: from ids of the old vocabulary to those of the new one; by default they stay and new
        ones come after. Rows that no old id goes to keep their fresh values.
      tasks: the same for the ids of tasks (0, that of padding, included).
      model_cfg: the model that the parameters are of; what the other run's becomes of it says
        `model.remodel`.

    Returns:
      The parameters, and sentences on what was taken, what stayed fresh, and what was left over.

    Raises:
      UserError: no such run, a pattern that matches nothing, or a shape that does not fit.
    """
    stored, remodelled = _stored(cfg, params, model_cfg)
    fresh, letters = flatten(params), flatten(dims)
    for pattern in (*cfg.include, *cfg.exclude):
        if not fnmatch.filter(stored, pattern):
            raise UserError(
                f'init_from: {pattern!r} matches nothing in {cfg.path}; {nearest(pattern, stored)}'
            )
    wanted = {p for p in stored if _matches(p, cfg.include) and not _matches(p, cfg.exclude)}
    taken = sorted(wanted & fresh.keys())
    if not taken:
        raise UserError(
            f'init_from: {cfg.path} has no parameter of this model; it has: {_some(stored)}'
        )
    moved = {p: _fitted(p, stored[p], fresh[p], letters[p], dict(V=rows, M=tasks)) for p in taken}
    placed = {p: jax.device_put(x, fresh[p].sharding) for p, x in moved.items()}
    notes = [f'{len(taken)} of {len(fresh)} parameters come from {cfg.path}']
    if fresh.keys() - wanted:
        notes.append(f'these stay fresh: {_some(fresh.keys() - wanted)}')
    if stored.keys() - fresh.keys():
        notes.append(
            f'these are in {cfg.path} and not in this model: {_some(stored.keys() - fresh.keys())}'
        )
    return unflatten(fresh | placed), notes + remodelled


def _stored(cfg: InitFromConfig, fresh: Any, model_cfg: Any) -> tuple[dict[str, Any], list[str]]:
    """The parameters of the other run by path, as the model has them, and what was done to them."""
    source, step = Checkpoints(cfg.path, read_only=True), None if cfg.step < 0 else cfg.step
    params, notes = source.load_params(step), []
    told = source.load_provenance(step).get('model')
    if told and model_cfg:
        old = read(ModelConfig, told, f'{cfg.path}: model')
        params, notes = carried(params, old, model_cfg, fresh)
    return flatten(params), notes


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _some(paths: Any) -> str:
    paths = sorted(paths)
    more = f' and {len(paths) - 8} more' if len(paths) > 8 else ''
    return ', '.join(paths[:8]) + more


def _fitted(
    path: str,
    old: np.ndarray,
    fresh: jax.Array,
    dims: str,
    rows_of: Mapping[str, Mapping[int, int] | None],
) -> Any:
    """An old weight in the new shape, which may differ along the vocabulary or the tasks."""
    letter = next((letter for letter in rows_of if letter in dims), '')
    axis, rows = (dims.find(letter), rows_of[letter]) if letter else (-1, None)
    others = [
        size[:axis] + size[axis + 1 :] if axis >= 0 else size for size in (old.shape, fresh.shape)
    ]
    grown = axis >= 0 and (rows is not None or fresh.shape[axis] >= old.shape[axis])
    if old.shape != fresh.shape and not (grown and others[0] == others[1]):
        raise UserError(
            f'init_from: {path} is {old.shape} there and {fresh.shape} here; exclude it, or '
            'give the model the same sizes'
        )
    if axis < 0 or (rows is None and old.shape == fresh.shape):
        return old
    rows = dict(zip(range(old.shape[axis]), range(old.shape[axis]))) if rows is None else rows
    new = np.moveaxis(np.array(fresh), axis, 0)
    new[list(rows.values())] = np.moveaxis(old, axis, 0)[list(rows.keys())]
    return np.moveaxis(new, 0, axis)
