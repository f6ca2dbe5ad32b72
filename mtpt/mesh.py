"""The alphabet and the mesh: a letter a dimension, and two tables that every sharding follows from.

Activations and weights are split over four mesh axes that always exist, most of them of size 1:
`data` (replicas of the model), `fsdp` (rows of the batch and slices of the weights), `expert` and
`tensor`. All axes are explicit: `jax.eval_shape` carries the shardings, and a forgotten one is an
error at trace time.

A accumulation  B rows of the batch  S encoder positions  T decoder positions  G segments of a row
M tasks  D model width  H heads  K head width  F hidden width  V vocabulary  N layers of a stack
U relative-position buckets  E experts  C capacity slots  O answer choices, labels  R row groups
J key/value heads  I query heads that share one  Q heads that are scored  X width of a task's
representation  Y experts as a router scores them: its kernel, small, is whole on every device
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from mtpt.config import UserError

AXES = ('data', 'fsdp', 'expert', 'tensor')
BATCH = ('data', 'fsdp', 'expert')

ACTIVATIONS = dict(B=BATCH, H='tensor', F='tensor', V='tensor')
WEIGHTS = dict(D='fsdp', H='tensor', F='tensor', V='tensor', E='expert')

BATCH_DIMS = dict(
    encoder_input_tokens='BS',
    encoder_segment_ids='BS',
    encoder_positions='BS',
    decoder_input_tokens='BT',
    decoder_target_tokens='BT',
    decoder_loss_weights='BT',
    decoder_segment_ids='BT',
    decoder_positions='BT',
    segment_task_ids='BG',
    segment_labels='BGO',
    token_labels='BSO',
)

NOUNS = dict(
    B='rows of a batch', D='model width', H='heads', F='hidden width', V='vocabulary', E='experts'
)


def act(dims: str) -> P:
    """The sharding of an activation: `act('BTHK')`."""
    return P(*[ACTIVATIONS.get(d) for d in dims])


def weight(dims: str) -> P:
    """The sharding of a weight: `weight('DHK')`."""
    return P(*[WEIGHTS.get(d) for d in dims])


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The sizes of the four axes; one of them may be -1, which takes the devices that are left."""

    data: int = 1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1


def make_mesh(
    cfg: MeshConfig = MeshConfig(), devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """Lays the devices out on the four explicit axes.

    A single process may leave devices unused (the first ones are taken); several processes may not.

    Raises:
      UserError: the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _fit(cfg, len(devices))
    used = math.prod(sizes)
    if used < len(devices) and jax.process_count() > 1:
        raise UserError(
            f'the mesh {_spell(sizes)} uses {used} of {len(devices)} devices; with several '
            'processes all must be used: set data=-1'
        )
    explicit = (jax.sharding.AxisType.Explicit,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=explicit, devices=devices[:used])


def _fit(cfg: MeshConfig, available: int) -> tuple[int, ...]:
    """The four sizes, with -1 replaced."""
    sizes = [getattr(cfg, axis) for axis in AXES]
    for axis, size in zip(AXES, sizes):
        if size < 1 and size != -1:
            raise UserError(f'mesh axis {axis}={size} must be at least 1, or -1 for what is left')
    if sizes.count(-1) > 1:
        raise UserError(f'only one mesh axis may be -1, got {_spell(sizes)}')
    fixed = math.prod(s for s in sizes if s != -1)
    if -1 in sizes:
        if available % fixed:
            raise UserError(
                f'the mesh {_spell(sizes)} does not fit {available} devices: {fixed} does not '
                f'divide {available}; choose sizes whose product does'
            )
        sizes[sizes.index(-1)] = available // fixed
    elif fixed > available:
        raise UserError(
            f'the mesh {_spell(sizes)} needs {fixed} devices and there are {available}; choose '
            f'sizes whose product is at most {available}'
        )
    return tuple(sizes)


def _spell(sizes: Sequence[int]) -> str:
    return ','.join(f'{axis}={size}' for axis, size in zip(AXES, sizes) if size != 1) or 'data=1'


def axis_size(axis: str) -> int:
    """The size of an axis of the mesh that is set."""
    return dict(jax.sharding.get_abstract_mesh().shape)[axis]


def require_mesh() -> None:
    """Says what to do when a model is traced without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        raise RuntimeError('no mesh is set: call jax.set_mesh(make_mesh(MeshConfig())) first')


def einsum(eq: str, x: jax.Array, w: Any, out: P | None = None) -> jax.Array:
    """`jnp.einsum` in the dtype of `x`, the result split as the letters of its dimensions say.

    Args:
      eq: an equation in the letters of the alphabet, such as 'BTD,DHK->BTHK'.
      x: the activation, whose dtype is computed in.
      w: a weight (array or `nnx.Param`) or a second activation.
      out: a sharding for the result where the letters do not tell it.
    """
    w, spec = w[...].astype(x.dtype), out or act(eq.split('->')[1])
    x_dims, w_dims, out_dims = eq.replace('->', ',').split(',')
    n = sum(1 for _ in itertools.takewhile(lambda d: d[0] == d[1], zip(x_dims, out_dims)))
    if n < 2 or set(x_dims[:n]) & set(w_dims) or any(spec[1:n]):
        return jnp.einsum(eq, x, w, out_sharding=spec)
    # Rows and positions as one dimension: the gradient of the weight is then one plain product, for
    # which XLA transposes nothing (twice as fast on a CPU).
    flat = jnp.einsum(
        f'm{x_dims[n:]},{w_dims}->m{out_dims[n:]}',
        x.reshape(-1, *x.shape[n:]),
        w,
        out_sharding=P(spec[0], *spec[n:]),
    )
    return jax.lax.reshape(flat, (*x.shape[:n], *flat.shape[1:]), out_sharding=spec)


def rows(x: jax.Array) -> jax.Array:
    """Splits the leading axis as rows of a batch; what `place` made is left as it is."""
    return jax.reshard(x, P(BATCH, *[None] * (jnp.ndim(x) - 1)))


def place(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of the rows that this process holds; a leading axis A stays whole."""
    placed = {}
    for name, rows in batch.items():
        if name not in BATCH_DIMS:
            raise UserError(
                f'the batch holds {name!r}, whose dimensions are unknown; add it to BATCH_DIMS'
            )
        dims = BATCH_DIMS[name]
        dims = 'A' * (np.ndim(rows) - len(dims)) + dims
        sharding = jax.sharding.NamedSharding(mesh, act(dims))
        placed[name] = jax.make_array_from_process_local_data(sharding, np.asarray(rows))
    return placed


def check_divides(sizes: Mapping[str, int], mesh: Any) -> None:
    """Checks that every dimension splits evenly over the axes that its letter is split over.

    Args:
      sizes: from a letter (B, D, H, F, V, E) to its size; other letters are never split.
      mesh: a `MeshConfig` without -1, a mesh, or an abstract mesh.

    Raises:
      UserError: such as 'H=12 heads do not split over tensor=8; choose a divisor of 12'.
    """
    shape = dataclasses.asdict(mesh) if isinstance(mesh, MeshConfig) else dict(mesh.shape)
    for letter, size in sizes.items():
        for table in (ACTIVATIONS, WEIGHTS):
            axes = table.get(letter, ())
            axes = (axes,) if isinstance(axes, str) else axes
            ways = math.prod(shape[axis] for axis in axes)
            if size % ways:
                over = ' x '.join(f'{axis}={shape[axis]}' for axis in axes if shape[axis] > 1)
                raise UserError(
                    f'{letter}={size} {NOUNS.get(letter, "")} do not split over {over}; '
                    f'choose a divisor of {size}'
                )
