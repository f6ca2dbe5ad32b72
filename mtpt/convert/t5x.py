"""Checkpoints of T5X, of its own T5 and of Flaxformer's, dense and sparse, scanned or not.

A checkpoint is a folder with a file `checkpoint` (msgpack, in Flax's form) that holds small arrays
and names the large ones, each a zarr folder beside it. It tells the shapes of a model and no more:
what gates its hidden layers has to be said.

V vocabulary  D model width  H heads  K head width  F hidden width  U buckets  E experts
"""

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.serialization
import ml_dtypes
import numpy as np
import tensorstore as ts

from mtpt.checkpoint.leaves import Leaf
from mtpt.config import UserError
from mtpt.convert import names
from mtpt.convert.hugging_face import sized
from mtpt.convert.safetensors import compare
from mtpt.model.config import ModelConfig

FILE = 'checkpoint'
LARGEST = 2 << 30  # bytes of the msgpack file, which is read whole
GATED = 'wi_0/kernel'


class Array(NamedTuple):
    """An array of a checkpoint, in memory or on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype
    held: Any

    def read(self, index: tuple[Any, ...]) -> np.ndarray:
        x = self.held[index]
        x = x if isinstance(x, np.ndarray) else x.read().result()
        return x.view(self.dtype)  # bfloat16 was once written as uint16


def is_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a folder looks like a checkpoint of T5X."""
    return (folder / FILE).is_file()


def read(folder: pathlib.Path, mlp: str | None) -> tuple[ModelConfig, dict[str, Leaf]]:
    """A model's config and its leaves, to be read one by one.

    Args:
      folder: a checkpoint, such as checkpoint_1000000.
      mlp: the kind of hidden layer (`layers.MLPS`), which gated models need.

    Raises:
      UserError: a damaged checkpoint, a model that ours cannot be, or no `mlp` where one is needed.
    """
    found = arrays(folder)
    scanned = any(name.startswith('encoder/encoder/') for name in found)
    cfg = sized(_fields(folder, found, scanned, mlp))
    shapes, at, wanted = names.shapes(cfg), {}, {}
    for place in names.places(cfg):
        name, index = names.t5x(cfg, place, scanned)
        at.setdefault(place.path, {})[place.index] = place, name, index
        wanted[name] = found[name].shape if name in found else ()
    compare(found, wanted, str(folder))
    for parts in at.values():
        for place, name, index in parts.values():
            _check_size(folder, found[name], place, name, index)

    def leaf(path):
        def part(where):
            place, name, index = at[path][where]
            return names.from_t5x(place, found[name].read(index))

        dtype = found[next(iter(at[path].values()))[1]].dtype
        return Leaf(shapes[path], dtype, len(next(iter(at[path]))), part)

    return cfg, {path: leaf(path) for path in shapes}


def _check_size(folder, array, place, name, index):
    """Heads may be joined in one axis or not, so what must agree is the number of entries."""
    part = [n for i, n in enumerate(array.shape) if i >= len(index) or isinstance(index[i], slice)]
    if len(array.shape) < len(index) or math.prod(part) != math.prod(place.shape):
        raise UserError(
            f'{folder}: {name} is {array.shape}, which does not hold {place.path} of {place.shape}'
        )


def arrays(folder: pathlib.Path) -> dict[str, Array]:
    """The parameters of a checkpoint, by path.

    Raises:
      UserError: it is damaged, too large to be one, or names an array outside of its folder.
    """
    file = folder / FILE
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(
                f'{file} has more than {LARGEST >> 30} GiB; T5X writes large arrays apart'
            )
        told = flax.serialization.msgpack_restore(file.read_bytes())
        target = told['optimizer']['target']
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'{file} is no checkpoint of T5X, or damaged ({error}); fetch it again'
        ) from error
    return {name: _array(folder, name, value) for name, value in _leaves(target).items()}


def _leaves(tree: Any, prefix: str = '') -> dict[str, Any]:
    """The arrays of a tree, by path; what tells of an array on disk counts as one."""
    if not isinstance(tree, Mapping) or {'driver', 'kvstore'} <= set(tree):
        return {prefix: tree}
    found = {}
    for name, value in tree.items():
        found |= _leaves(value, f'{prefix}/{name}' if prefix else str(name))
    return found


def _array(folder: pathlib.Path, name: str, value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return Array(value.shape, value.dtype, value)
    try:  # before tensorstore 0.1.14 the path stood outside of `kvstore`
        place = str(value['kvstore'].get('path') or value['path']).rstrip('/')
    except (KeyError, TypeError, AttributeError):
        raise UserError(f'{folder}: {name} is no array; fetch the checkpoint again') from None
    if pathlib.PurePosixPath(place).name != place or place in ('', '..') or '\\' in place:
        raise UserError(f'{folder}: {name} would lie in {place!r}, outside of the checkpoint')
    store = dict(driver='file', path=f'{folder.absolute() / place}/')
    try:
        opened = ts.open(dict(driver='zarr', kvstore=store), open=True, read=True).result()
    except ValueError as error:
        raise UserError(f'{folder}: {name} cannot be read ({error}); fetch it again') from error
    dtype = np.dtype(opened.dtype.numpy_dtype)
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.uint16 else dtype
    return Array(tuple(opened.shape), dtype, opened)


def _fields(
    folder: pathlib.Path, found: Mapping[str, Array], scanned: bool, mlp: str | None
) -> dict[str, Any]:
    """What the shapes tell of the model."""

    def shape(name):
        if name not in found:
            raise UserError(f'{folder} has no {name}; it is not a T5 encoder-decoder of T5X')
        return found[name].shape

    V, D = shape('token_embedder/embedding')
    H, U = shape('encoder/relpos_bias/rel_embedding')[-2:]
    first = 'encoder/encoder' if scanned else 'encoder/layers_0'
    K = math.prod(shape(f'{first}/attention/query/kernel'))
    layers = {s: _layers(found, s, scanned) for s in ('encoder', 'decoder')}
    K //= D * H * (layers['encoder'] if scanned else 1)
    sparse = {s: _sparse(found, s) for s in ('encoder', 'decoder')}
    width = next((a.shape[-2] for n, a in found.items() if n.endswith('/mlp/wo/kernel')), 0)
    if scanned and width:
        width = shape(f'{first}/mlp/wo/kernel')[0]
    fields = dict(
        V=V, D=D, H=H, K=K, F=width, buckets=U, max_distance=128,
        encoder_layers=layers['encoder'], decoder_layers=layers['decoder'],
        mlp=_mlp(folder, found, mlp), tied='decoder/logits_dense/kernel' not in found,
    )  # fmt: skip
    if any(sparse.values()):
        E, _, F = next(a.shape for n, a in found.items() if re.search(r'/expert/wi(_0)?/', n))
        fields |= dict(F=width or F, moe=dict(E=E, F=F, dispatch='dropless', **sparse))
    return fields


def _layers(found, stack, scanned):
    if scanned:
        own = 'self_attention' if stack == 'decoder' else 'attention'
        name = f'{stack}/{stack}/{own}/query/kernel'
        return found[name].shape[1] if name in found else 0
    numbers = [re.match(rf'{stack}/layers_(\d+)/', name) for name in found]
    return 1 + max((int(n[1]) for n in numbers if n), default=-1)


def _sparse(found, stack):
    numbers = {re.match(rf'{stack}/layers_(\d+)/mlp/expert/', name) for name in found}
    return sorted({int(n[1]) for n in numbers if n})


def _mlp(folder, found, mlp):
    gated = any(name.endswith(GATED) for name in found)
    if mlp is None and gated:
        raise UserError(
            f'the hidden layers in {folder} are gated, and arrays do not tell by what; add '
            '--mlp=geglu (T5 1.1, Flan-T5, mT5, ByT5) or --mlp=swiglu (UL2)'
        )
    if mlp is not None and mlp.endswith('glu') != gated:
        raise UserError(
            f'--mlp={mlp} is {"" if mlp.endswith("glu") else "not "}gated, and the hidden layers '
            f'in {folder} are{"" if gated else " not"}'
        )
    return mlp or 'relu'
