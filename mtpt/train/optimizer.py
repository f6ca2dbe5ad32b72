"""Optimizers and schedules: pairs of pure functions in Optax's form, chosen by name.

Every method that looks at a whole weight (Adafactor's clip and scale, the RMS scaling of AdamW)
looks at one layer at a time: the letters of `dims` say which axes stack layers or experts, so that
a scanned model takes the same steps as one whose layers are separate arrays.

N layers of a stack   E experts   D model width   H heads   J key/value heads   K head width
F hidden width
V vocabulary   U relative-position buckets
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mtpt.config import UserError, choose
from mtpt.train.moments import stored

STACKED = 'NE'  # axes along which weights are merely stacked
ROWS = 'D'
COLUMNS = 'VFHJK'

Schedule = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run; a field left at None takes the schedule's own default.

    rate is the peak; warmup counts steps of a linear ramp; hold is where the inverse square root
    starts to fall; final is the last rate as a share of the peak; decay is the share of the run in
    which `wsd` falls.
    """

    name: str = 'inverse_sqrt'
    rate: float = 1.0
    warmup: int = 0
    hold: int | None = None
    final: float | None = None
    decay: float | None = None


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer; a field left at None takes the method's own default (see `OPTIMIZERS`).

    clip is the global norm that gradients are cut to (0: not at all); weight_decay is multiplied by
    the learning rate and spares norms, biases and relative-position tables; the rest belongs to
    single methods. state_dtype: 'bfloat16' stores moments in half of the bytes (`train.moments`);
    Adafactor's factored ones, small as they are, stay in float32.
    """

    name: str = 'adafactor'
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    clip: float = 0.0
    weight_decay: float = 0.0
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    decay_rate: float | None = None
    clip_update: float | None = None
    scale_floor: float | None = None
    min_dim: int | None = None
    state_dtype: str | None = None


def _pick(kind: str, cfg: Any, function: Callable, shared: tuple[str, ...]) -> dict[str, Any]:
    """The settings of `cfg` that are set; refuses those that `function` does not take."""
    known = [
        p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    given = {
        f.name: getattr(cfg, f.name)
        for f in dataclasses.fields(cfg)
        if f.name not in shared and getattr(cfg, f.name) is not None
    }
    for name in given:
        if name not in known:
            has = ', '.join(known) or 'none of its own'
            raise UserError(f'{kind} {cfg.name!r} has no setting {name!r}; it has: {has}')
    return given


# Schedules: functions of (steps of the run, own settings) giving the share of the peak rate.


def constant(steps: int) -> Schedule:
    """Stays at the peak (T5's fine-tuning: 1e-3)."""
    return lambda step: jnp.ones((), jnp.float32)


def inverse_sqrt(steps: int, *, hold: int = 10_000) -> Schedule:
    """Falls as 1 / sqrt(max(step, hold)); T5's pre-training at rate 1 (1910.10683, 3.1.2)."""
    return lambda step: jax.lax.rsqrt(jnp.maximum(step, max(hold, 1)).astype(jnp.float32))


def cosine(steps: int, *, final: float = 0.0) -> Schedule:
    """Falls to `final` of the peak along half a cosine (1608.03983, without restarts)."""
    return lambda share: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * share))


def linear(steps: int, *, final: float = 0.0) -> Schedule:
    """Falls to `final` of the peak along a line."""
    return lambda share: 1 + (final - 1) * share


def wsd(steps: int, *, final: float = 0.0, decay: float = 0.2) -> Schedule:
    """Warm-up, stable, decay: falls linearly over the last `decay` of the run (2404.06395)."""
    return lambda share: 1 + (final - 1) * jnp.clip((share - (1 - decay)) / max(decay, 1e-9), 0, 1)


SCHEDULES = dict(
    constant=constant, inverse_sqrt=inverse_sqrt, cosine=cosine, linear=linear, wsd=wsd
)
BY_STEP = (constant, inverse_sqrt)  # the others are functions of the share of the run after warm-up


def make_schedule(cfg: ScheduleConfig, steps: int, offset: int = 0, begin: int = 0) -> Schedule:
    """The learning rate as a function of the run's step, which counts from 0.

    A run that goes on from step `offset` of another has its schedule moved by as much, and its last
    step is `offset + steps`. A stage of `steps` steps counts from the step that it begins at.
    During warm-up the rate is multiplied by (step + 1) / warmup.
    """
    make = choose('schedule', cfg.name, SCHEDULES)
    shape = make(steps + offset, **_pick('schedule', cfg, make, ('name', 'rate', 'warmup')))
    rest = max(steps + offset - cfg.warmup, 1)

    def rate(step):
        step = jnp.asarray(step) + (offset - begin)
        share = jnp.clip((step - cfg.warmup) / rest, 0.0, 1.0)
        ramp = jnp.minimum(1.0, (step + 1) / max(cfg.warmup, 1))
        return cfg.rate * ramp * shape(step if make in BY_STEP else share)

    return rate


# Optimizers: functions of (dims, own settings) giving the update before learning rate and sign.


def _axes(dims: str, letters: str) -> tuple[int, ...]:
    return tuple(i for i, d in enumerate(dims) if d in letters)


def _unstacked(dims: str) -> tuple[int, ...]:
    return tuple(i for i, d in enumerate(dims) if d not in STACKED)


def factors(
    dims: str, shape: tuple[int, ...], min_dim: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The row and column axes of Adafactor's moments, or None where they are kept in full.

    'NDHK' gives ((1,), (2, 3)): heads and head width are one axis, layers are stacked. A weight
    with an axis that is neither (relative positions), with one side only (norms), or with a side
    under `min_dim` is not factored.
    """
    rows, columns = _axes(dims, ROWS), _axes(dims, COLUMNS)
    size = [math.prod(shape[i] for i in side) for side in (rows, columns)]
    whole = len(rows) + len(columns) == len(_unstacked(dims))
    if not (rows and columns and whole) or min(size) < min_dim:
        return None
    return rows, columns


class AdafactorState(NamedTuple):
    count: jax.Array
    moments: Any  # at each weight {'full': v} or {'row': v, 'column': v}


def adafactor(
    dims: Any,
    *,
    decay_rate: float = 0.8,
    clip_update: float = 1.0,
    scale_floor: float = 1e-3,
    min_dim: int = 128,
    eps: float = 1e-30,
    state_dtype: str = 'float32',
) -> optax.GradientTransformation:
    """Adafactor as T5 has it: factored moments, update clip, steps relative to the weight's RMS.

    Source: 1804.04235, algorithms 4 and 5, with the refinements of T5X: clip and scale are taken
    for each layer and expert, and factoring goes by the meaning of axes (`factors`). beta2 at the
    t-th update is 1 - t^-decay_rate, and t starts anew in a run initialised from another, which is
    what T5X's `step_offset` is set for.
    """

    def split(g, letters):
        return factors(letters, g.shape, min_dim)

    def moments(g2, letters):
        side = split(g2, letters)
        if side is None:
            return {'full': g2}
        return {'row': jnp.mean(g2, axis=side[1]), 'column': jnp.mean(g2, axis=side[0])}

    def init(params):
        zeros = jax.tree.map(lambda p, d: jax.eval_shape(lambda p: moments(p, d), p), params, dims)
        return AdafactorState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, zeros))

    def direction(g, v, p, letters):
        if 'full' in v:
            y = g * jax.lax.rsqrt(v['full'])
        else:
            rows, columns = split(g, letters)
            row = jnp.expand_dims(v['row'], columns)
            row = row / jnp.mean(row, axis=rows, keepdims=True)
            y = g * jax.lax.rsqrt(row) * jax.lax.rsqrt(jnp.expand_dims(v['column'], rows))
        y = y / jnp.maximum(1.0, _rms(y, letters) / clip_update)
        return y * jnp.maximum(scale_floor, _rms(p, letters))

    def update(grads, state, params=None):
        beta2 = 1.0 - (state.count + 1).astype(jnp.float32) ** -decay_rate
        squares = jax.tree.map(lambda g, d: moments(jnp.square(g) + eps, d), grads, dims)
        moving = jax.tree.map(lambda v, g2: beta2 * v + (1 - beta2) * g2, state.moments, squares)
        updates = jax.tree.map(direction, grads, moving, params, dims)
        return updates, AdafactorState(state.count + 1, moving)

    tx = optax.GradientTransformation(init, update)
    return stored(tx, state_dtype, lambda path: 'full' in path)


def _rms(x: jax.Array, dims: str) -> jax.Array:
    """Root mean square of each layer's (and expert's) weight, with the axes kept at size 1."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=_unstacked(dims), keepdims=True))


def adamw(
    dims: Any,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    state_dtype: str = 'float32',
) -> optax.GradientTransformation:
    """Adam (1412.6980); with `weight_decay`, decoupled (1711.05101)."""
    return stored(optax.scale_by_adam(b1=b1, b2=b2, eps=eps), state_dtype)


def adamw_scale(
    dims: Any,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    scale_floor: float = 1e-3,
    state_dtype: str = 'float32',
) -> optax.GradientTransformation:
    """Adam whose step is multiplied by the RMS of the weight (nanoT5, 2309.02373).

    nanoT5's recipe for T5: rate 2e-2, cosine, 10,000 steps of warm-up, clip 1.
    """

    def update(updates, state, params=None):
        scaled = jax.tree.map(
            lambda u, p, d: u * jnp.maximum(scale_floor, _rms(p, d)), updates, params, dims
        )
        return scaled, state

    by_rms = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    adam = stored(optax.scale_by_adam(b1=b1, b2=b2, eps=eps), state_dtype)
    return optax.chain(adam, by_rms)


def sgd(
    dims: Any, *, momentum: float = 0.0, state_dtype: str = 'float32'
) -> optax.GradientTransformation:
    """Plain gradient descent, with heavy-ball momentum where it is asked for."""
    if not momentum and state_dtype != 'float32':
        raise UserError(
            "optimizer 'sgd' without momentum keeps nothing for optimizer.state_dtype; "
            'set optimizer.momentum, or leave state_dtype out'
        )
    return stored(optax.trace(decay=momentum), state_dtype) if momentum else optax.identity()


OPTIMIZERS = dict(adafactor=adafactor, adamw=adamw, adamw_scale=adamw_scale, sgd=sgd)


def decays(dims: str) -> bool:
    """Whether weight decay reaches a weight: matrices, but no norm, bias or position table."""
    return len(_unstacked(dims)) >= 2 and 'U' not in dims


def by_rate(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies by minus the rate of the run's `step`, which skipped updates do not delay."""

    def update(updates, state, params=None, *, step, **extra):
        rate = schedule(step)
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class Optimizer(NamedTuple):
    """An Optax transformation whose `update` wants `step=`, and the learning rate at a step."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
    rate: Schedule


def make_optimizer(
    cfg: OptimizerConfig, dims: Any, steps: int, offset: int = 0, begin: int = 0
) -> Optimizer:
    """Builds the optimizer of `steps` steps; `dims` holds the letters of each weight.

    offset: the step of another run that this one goes on from, as far as the schedule is concerned;
    begin: the step of the run that the schedule begins at.

    Raises:
      UserError: no such method, or a setting that it does not have.
    """
    method = choose('optimizer', cfg.name, OPTIMIZERS)
    own = _pick('optimizer', cfg, method, ('name', 'schedule', 'clip', 'weight_decay'))
    schedule = make_schedule(cfg.schedule, steps, offset, begin)
    parts = [
        optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity(),
        method(dims, **own),
        optax.add_decayed_weights(cfg.weight_decay, mask=jax.tree.map(decays, dims)),
        by_rate(schedule),
    ]
    chain = optax.chain(*parts)
    return Optimizer(chain.init, chain.update, schedule)
