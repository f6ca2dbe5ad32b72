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

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.experimental import mesh_utils

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
    return jax.sharding.Mesh(arrange(sizes, devices[:used]), AXES, axis_types=explicit)


def arrange(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Lays devices out as an array of the sizes of the four axes, by what links them.

    Within a TPU slice neighbours are neighbours; of several slices `data`, the axis that talks
    least, is the only one that runs between them. GPUs keep the order of their hosts, whose fast
    links the last axes then run over.

    Args:
      sizes: of the axes, in the order of `AXES`; their product is the number of devices.
      devices: real, compile-only or fake ones.

    Raises:
      UserError: `data` does not divide over the slices.
    """
    by_slice = collections.Counter(getattr(d, 'slice_index', None) or 0 for d in devices)
    slices, split = len(by_slice), dict(allow_split_physical_axes=True)
    if devices[0].platform != 'tpu':
        order = sorted(devices, key=lambda d: (d.process_index, d.id))
        return np.array(order, dtype=object).reshape(sizes)
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, **split)
    if len(set(by_slice.values())) > 1 or sizes[0] % slices:
        held = ', '.join(str(by_slice[i]) for i in sorted(by_slice))
        raise UserError(
            f'data={sizes[0]} does not split over {slices} slices (of {held} devices), and only '
            f'data runs between slices; make mesh.data a multiple of {slices}, with slices of one '
            'size'
        )
    within, between = (sizes[0] // slices, *sizes[1:]), (slices, *[1] * (len(sizes) - 1))
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, **split)


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
        placed[name] = _global(np.asarray(rows), sharding, dims.index('B'))
    return placed


def _global(rows: np.ndarray, sharding: Any, axis: int) -> jax.Array:
    """The array whose rows, along `axis`, this process holds its share of."""
    if jax.process_count() == 1:
        return jax.device_put(rows, sharding)
    shape = list(rows.shape)
    shape[axis] *= share(sharding.mesh).number
    here = sharding.addressable_devices_indices_map(tuple(shape)).values()
    begins = sorted({index[axis].start or 0 for index in here})
    each = rows.shape[axis] // len(begins)

    def part(index):
        at = begins.index(index[axis].start or 0) * each
        return rows[(*index[:axis], slice(at, at + each), *index[axis + 1 :])]

    return jax.make_array_from_callback(tuple(shape), sharding, part)


class Share(NamedTuple):
    """Which part of the rows of a batch a process loads, and of how many parts."""

    index: int
    number: int
    holders: tuple[int, ...]  # for each part the first process that holds it


@functools.cache
def share(mesh: jax.sharding.Mesh, process: int | None = None) -> Share:
    """The share of the rows that a process (this one) feeds its devices with.

    Processes whose devices hold the same rows, since `tensor` runs between them, have one share.

    Raises:
      UserError: the rows do not fall into shares of one size, or some would be in two.
    """
    mine = jax.process_index() if process is None else process
    held = collections.defaultdict(set)
    for block, devices in enumerate(mesh.devices.reshape(-1, mesh.devices.shape[-1])):
        for device in devices:
            held[device.process_index].add(block)
    shares = sorted({tuple(sorted(blocks)) for blocks in held.values()})
    in_all = sum(map(len, shares))
    if in_all != len(set().union(*held.values())) or len({len(s) for s in shares}) > 1:
        sizes = _spell([mesh.shape[axis] for axis in AXES])
        raise UserError(
            f'with the mesh {sizes} the devices of a host hold some rows of another host and some '
            "not, so that the batch does not split over hosts; make mesh.tensor divide a host's "
            'devices, or be a multiple of them'
        )
    holders = tuple(min(p for p, b in held.items() if tuple(sorted(b)) == s) for s in shares)
    return Share(shares.index(tuple(sorted(held[mine]))), len(shares), holders)


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
