"""Finds what made a step's loss or gradient no number, by taking the step again and looking.

Three looks, each only where the one before found nothing to blame: at the parameters; forward,
at what every part of every layer gives; backward, at the gradient of every weight of every layer.
Which examples are behind it follows from the positions at which the first part to fail fails, and
of a gradient from leaving examples out. All processes of a run look alike and find the same.

B row  T position  G segments of a row  N layers of a stack  V vocabulary
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.experimental import multihost_utils

from mtpt.mesh import BATCH, place
from mtpt.model import functional, probe
from mtpt.model.blocks import kinds, period
from mtpt.model.heads import NOT_OURS
from mtpt.train.loss import normalizer, token_losses
from mtpt.train.step import make_part_loss
from mtpt.trees import flatten

NAMED = 8  # parameters, gradients and examples that are told of
RUNS = 64  # gradients that are taken to find the examples behind one that is not finite
PARTS = ('attention', 'cross', 'hidden')  # of a layer, in the order in which they are computed

HostBatch = Mapping[str, np.ndarray]


class Segment(NamedTuple):
    """Where an example lies: in the rows that a process holds of a part of the batch."""

    process: int
    row: int
    segment: int


class Found(NamedTuple):
    """What is behind a step that was not finite.

    look: 'parameters', 'forward', 'loss', 'backward', or '' where the step is finite this time;
    place: the first part that fails, such as 'encoder/layers/1/mlp'; parameters and gradients: the
    paths of those that are not finite, with the layer in them, the first to fail first; part: of
    the batch, where gradients are accumulated; every: no example is to blame more than another;
    largest: the weight with the largest finite entry, and that entry's size.
    """

    look: str
    place: str = ''
    parameters: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    part: int = 0
    segments: tuple[Segment, ...] = ()
    every: bool = False
    largest: tuple[str, float] = ('', 0.0)


class Replay:
    """Takes steps of a run again; the settings are those of its train step."""

    def __init__(
        self,
        model_cfg: Any,
        M: int,
        mesh: jax.sharding.Mesh,
        *,
        z_loss: float,
        label_smoothing: float,
        loss_normalizing_factor: str | float,
        task_scale: tuple[float, ...] | None = None,
    ):
        self.cfg, self.mesh, self.factor = model_cfg, mesh, loss_normalizing_factor
        self._settings = M, z_loss, label_smoothing, task_scale
        self._forward = _make_forward(model_cfg, z_loss, label_smoothing)
        loss = make_part_loss(model_cfg, M, z_loss, label_smoothing, task_scale)
        self._backward = _make_backward(model_cfg, loss)

    def __call__(self, params: Any, key: jax.Array, batch: HostBatch) -> Found:
        """Looks for what is behind a batch.

        Args:
          params: those that the step began with.
          key: that of the step.
          batch: the rows of this process, as its loader gave them.
        """
        with jax.set_mesh(self.mesh):
            flags, largest = _looked_at(params, _letters(self.cfg))
            parameters = tuple(name for name, _ in _spelled(self.cfg, flags))[:NAMED]
            return self._look(params, key, batch, parameters)._replace(largest=largest)

    def _look(
        self, params: Any, key: jax.Array, batch: HostBatch, parameters: tuple[str, ...]
    ) -> Found:
        parts, keys = [dict(batch)], [key]
        if batch['decoder_loss_weights'].ndim == 3:
            A = len(batch['decoder_loss_weights'])
            parts = [{n: x[a] for n, x in batch.items()} for a in range(A)]
            keys = [jax.random.fold_in(key, a) for a in range(A)]
        looked = [self._look_forward(params, part, key) for part, key in zip(parts, keys)]
        if failed := [(seen[0], a) for a, seen in enumerate(looked) if seen]:
            a = min(failed)[1]  # the part of the batch that fails in the earliest layer
            _, name, segments, every = looked[a]
            look = 'parameters' if parameters else 'loss' if name == 'loss' else 'forward'
            return Found(look, name, parameters, (), a, segments, every)
        if parameters:
            return Found(look, parameters[0], parameters)
        scales = self._scales(batch)
        for a, (part, key) in enumerate(zip(parts, keys)):
            names, segments, every = self._look_backward(params, part, key, scales)
            if names:
                return Found('backward', names[0][1], (), _first(names), a, segments, every)
        return Found('')

    def at_the_line(self, params: Any, key: jax.Array, batch: HostBatch, part: int) -> None:
        """Takes a step operation by operation, layers unrolled, with JAX's own checks.

        Raises:
          FloatingPointError: at the line of the first operation whose result is not a number.
        """
        cfg = dataclasses.replace(self.cfg, scan=False, remat='none')
        loss = make_part_loss(cfg, *self._settings)
        with jax.set_mesh(self.mesh):
            scales = self._scales(batch)
            if batch['decoder_loss_weights'].ndim == 3:
                key = jax.random.fold_in(key, part)
                batch = {name: x[part] for name, x in batch.items()}
            placed = place(batch, self.mesh)
            with jax.debug_nans(True):  # looks at what a function gives that is compiled here
                jax.jit(loss)(params, placed, key, *scales)
                jax.jit(jax.grad(loss, has_aux=True))(params, placed, key, *scales)

    def _scales(self, batch: HostBatch) -> tuple[jax.Array, jax.Array]:
        name = 'decoder_loss_weights'
        weights = place({name: batch[name]}, self.mesh)[name]
        return 1 / normalizer(self.factor, weights), normalizer('tokens', weights)

    def _look_forward(self, params, part, key) -> tuple | None:
        """The first part to fail: its place in order, its name, whom it fails for."""
        flags, terms = jax.device_get(self._forward(params, place(part, self.mesh), key))
        where = _owners(part, self.mesh)
        looked = _in_order(self.cfg, flags)
        failed = [i for i, (_, bad_BG) in enumerate(looked) if bad_BG.any()]
        if not failed:
            wrong = [name for name, bad in terms.items() if bad]
            return (len(looked), wrong[0], (), True) if wrong else None
        name, bad_BG = looked[failed[0]]
        if name.endswith('embedding'):  # of both sides: neither is computed from the other
            bad_BG = np.any([bad for n, bad in looked if n.endswith('embedding')], axis=0)
        return failed[0], name, *_blamed(bad_BG, where)

    def _look_backward(self, params, part, key, scales):
        """The gradients that are not finite, and the examples without which they are."""

        def failing(part):
            told = jax.device_get(self._backward(params, place(part, self.mesh), key, *scales))
            return told

        leaves, whole = failing(part)
        names = _spelled(self.cfg, leaves)
        if not whole:
            return [], (), False
        names = sorted(names, key=lambda name: _from_the_end(name[1])) or [('all', 'their sum')]
        where = _owners(part, self.mesh)
        everyone = [Segment(*map(int, s)) for s in where.reshape(-1, 3) if s[2] >= 0]
        here = jax.process_index()

        def fails(some: list[Segment]) -> bool:
            mine = [(s.row, s.segment) for s in some if s.process == here]
            return bool(failing(only(part, mine))[1])

        found = _behind(everyone, fails, RUNS)
        every = not found or len(found) == len(everyone) > 1
        return names, () if every else tuple(found[:NAMED]), every


def _behind(segments: list[Segment], fails: Callable[[list[Segment]], bool], runs: int) -> list:
    """The examples that fail alone, found by halving; [] where it takes several together."""
    found: list[Segment] = []
    open_ = [segments]
    while open_ and runs > 0 and len(found) <= NAMED:
        some = open_.pop()
        if len(some) == 1:
            found += some
            continue
        half = len(some) // 2
        for part in (some[half:], some[:half]):
            runs -= 1
            if fails(part):
                open_.append(part)
    return sorted(found)


def only(part: HostBatch, kept: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """A batch in which all but the segments (row, number from 0) that are kept are padding."""
    ids_BG = part['segment_task_ids']
    keep_BG = np.zeros((ids_BG.shape[0], ids_BG.shape[1] + 1), bool)
    for row, segment in kept:
        keep_BG[row, segment + 1] = True
    rows = np.arange(len(ids_BG))[:, None]
    keep = {side: keep_BG[rows, part[f'{side}_segment_ids']] for side in ('encoder', 'decoder')}
    made = {}
    for name, x in part.items():
        if name == 'segment_task_ids':
            made[name] = np.where(keep_BG[:, 1:], x, 0)
        elif name == 'segment_labels':
            made[name] = np.where(keep_BG[:, 1:, None], x, NOT_OURS)
        elif name == 'token_labels':
            made[name] = np.where(keep['encoder'][..., None], x, NOT_OURS)
        else:
            made[name] = np.where(keep[name.partition('_')[0]], x, 0)
        made[name] = made[name].astype(x.dtype)
    return made


def _owners(part: HostBatch, mesh: jax.sharding.Mesh) -> np.ndarray:
    """Which Segment each place of the global batch is, [B, G, 3]; -1 for what is empty."""
    ids_BG = part['segment_task_ids']
    rows, segments = np.indices(ids_BG.shape)
    told = [np.full_like(rows, jax.process_index()), rows, np.where(ids_BG > 0, segments, -1)]
    own = np.stack(told, -1).astype(np.int32)
    return jax.device_get(_everywhere(place(dict(segment_labels=own), mesh)['segment_labels']))


@functools.cache
def _copied() -> Callable:
    return jax.jit(lambda x: jax.reshard(x, P()))


def _everywhere(x: jax.Array) -> jax.Array:
    return _copied()(x)


def _blamed(bad_BG: np.ndarray, where_BG3: np.ndarray) -> tuple[tuple[Segment, ...], bool]:
    """The examples that fail; none of them, and True, where all do or only padding does."""
    real_BG = where_BG3[..., 2] >= 0
    guilty_BG = bad_BG[:, 1:] & real_BG
    every = not guilty_BG.any() or (guilty_BG[real_BG].all() and real_BG.sum() > 1)
    found = () if every else sorted(Segment(*map(int, s)) for s in where_BG3[guilty_BG])
    return tuple(found[:NAMED]), bool(every)


@functools.lru_cache(maxsize=4)
def _make_forward(cfg: Any, z_loss: float, label_smoothing: float) -> Callable:
    """Compiles what tells, for every part of the model, in which segments it fails, [n, B, G + 1]
    with the padding first, and which terms of the objective fail."""

    def forward(params, batch, key):
        with probe.on():
            logits_BTV, aux = functional.apply(cfg, params, batch, key)
        sides = {side: batch[f'{side}_segment_ids'] for side in ('encoder', 'decoder')}
        G = batch['segment_task_ids'].shape[1]
        flags = {}
        for name, fine in aux.items():
            stack, _, part = name.removeprefix('finite/').rpartition('/')
            if name.startswith('finite/') and stack in sides:
                bad = ~fine if fine.ndim == 3 else ~fine[None]
                flags[f'{stack}/{part}'] = _by_segment(bad, sides, stack, G)
        if logits_BTV is not None:
            bad = ~jnp.isfinite(logits_BTV).all(-1)[None]
            flags['logits'] = _by_segment(bad, sides, 'decoder', G)
            losses = token_losses(
                logits_BTV, batch['decoder_target_tokens'], z_loss, label_smoothing
            )
            bad = ~jnp.isfinite(losses['objective']) & (batch['decoder_loss_weights'] > 0)
            flags['loss'] = _by_segment(bad[None], sides, 'decoder', G)
        terms = {n: ~jnp.isfinite(x).all() for n, x in aux.items() if n.startswith('loss/')}
        return flags, terms

    return jax.jit(forward)


def _by_segment(bad_NBT, sides: Mapping[str, jax.Array], stack: str, G: int) -> jax.Array:
    segments_BT = sides[stack]
    if bad_NBT.shape[-1] != segments_BT.shape[-1]:  # one stack reads both sides
        segments_BT = jnp.concatenate(list(sides.values()), axis=1)
    member_BTG = segments_BT[..., None] == jnp.arange(G + 1)

    def told(bad_BT):
        return jnp.any(jax.reshard(bad_BT, P(BATCH, None))[..., None] & member_BTG, axis=1)

    return jax.reshard(jax.lax.map(told, bad_NBT), P())


def _in_order(cfg: Any, flags: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """The parts of a model in the order in which they are computed, and where each fails."""
    told = []
    for stack in ('encoder', 'decoder'):
        if f'{stack}/embedding' not in flags:
            continue
        told.append((f'{stack}/embedding', flags[f'{stack}/embedding'][0]))
        for i, kind in enumerate(kinds(cfg, stack == 'decoder')):
            for part in PARTS:
                if f'{stack}/{part}' in flags:
                    said = ('moe' if kind.sparse else 'mlp') if part == 'hidden' else part
                    told.append((f'{stack}/layers/{i}/{said}', flags[f'{stack}/{part}'][i]))
        told.append((f'{stack}/norm', flags[f'{stack}/norm'][0]))
    return told + [(name, flags[name][0]) for name in ('logits', 'loss') if name in flags]


@functools.lru_cache(maxsize=4)
def _make_backward(cfg: Any, loss: Callable) -> Callable:
    """Compiles what tells which gradients of a part of a batch fail, and whether any does.

    A gradient whose square overflows fails too: the norm of all, which the step looks at, does.
    """

    def backward(params, batch, key, scale, total):
        grads = jax.grad(loss, has_aux=True)(params, batch, key, scale, total)[0]
        leaves = _not_finite_in(jax.tree.map(jnp.square, grads), _letters(cfg))
        norm = sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads))
        return leaves, ~jnp.isfinite(norm)

    return jax.jit(backward)


def _letters(cfg: Any) -> dict[str, str]:
    return flatten(functional.dims(cfg))


def _not_finite_in(tree: Any, letters: Mapping[str, str]) -> dict[str, jax.Array]:
    """For each weight whether its sum is no number, [N] for those of stacked layers."""
    told = {}
    for path, x in flatten(tree).items():
        axes = tuple(range(1, x.ndim)) if letters[path].startswith('N') else None
        told[path] = jax.reshard(~jnp.isfinite(jnp.sum(x.astype(jnp.float32), axis=axes)), P())
    return told


def _looked_at(
    params: Any, letters: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], tuple[str, float]]:
    """Which weights are no numbers, and the largest of what is one: its path and size."""

    def tell(params):
        zero_or_nan = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), 0.0, jnp.nan), params)
        sizes = jax.tree.map(lambda x: jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0)), params)
        return _not_finite_in(zero_or_nan, letters), flatten(sizes)

    flags, sizes = jax.device_get(jax.jit(tell)(params))
    path = max(sizes, key=sizes.get)
    return flags, (path, float(sizes[path]))


def _spelled(cfg: Any, flags: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """The weights that fail, (path with the layer in it, the part of the model), in order."""
    told = []
    for path, bad in flags.items():
        for index in np.flatnonzero(np.atleast_1d(bad)).tolist():
            names = path.split('/')
            if np.ndim(bad) and names[1:2] == ['layers']:
                stretch = period(kinds(cfg, names[0] == 'decoder'))
                within = int(names.pop(2)) if stretch > 1 else 0
                names.insert(2, str(index * stretch + within))
            elif np.ndim(bad):
                names.append(str(index))
            told.append(('/'.join(names), '/'.join(names[:-1]) or names[0]))
    return told


def _from_the_end(part: str) -> tuple:
    """Sorts parts of a model as a backward pass comes to them."""
    names = part.split('/')
    first = dict(heads=0, logits=1, decoder=2, encoder=3).get(names[0], 4)
    if names[1:2] == ['layers']:
        order = ('mlp', 'moe', 'mlp_norm', 'cross', 'cross_norm', 'attention', 'attention_norm')
        within = order.index(names[3]) if names[3:] and names[3] in order else len(order)
        return first, 1, -int(names[2]), within
    return first, 0 if names[1:2] == ['norm'] else 2, 0, 0


def _first(names: list[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(path for path, _ in names[:NAMED])


def gathered(mine: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of one shape on every process, [processes, ...]."""
    if jax.process_count() == 1:
        return {name: np.asarray(x)[None] for name, x in mine.items()}
    octets = {name: np.ascontiguousarray(x).view(np.uint8) for name, x in mine.items()}
    found = multihost_utils.process_allgather(octets)  # JAX would make 64 bits into 32
    return {name: np.ascontiguousarray(x).view(mine[name].dtype) for name, x in found.items()}
