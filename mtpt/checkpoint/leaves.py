"""The parameters of a checkpoint block by block, for models that are larger than memory.

Where `checkpoint.py` saves and loads whole trees, this writes and reads one block of one leaf at a
time, in the same format: what is written here is loaded there, onto any mesh, and the other way.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers

from mtpt.checkpoint import checksums, damaged
from mtpt.config import UserError
from mtpt.trees import unflatten

BLOCK = 64 << 20  # bytes of a block, at most


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf to be written: `lead` axes of it are given one by one, by `part`.

    part: from a place along those axes to the array there, which may be a view of a file: it is
      copied block by block.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    lead: int
    part: Callable[[tuple[int, ...]], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def block(self) -> tuple[int, ...]:
        """The shape in which it is stored: one place along the leading axes, and some rows."""
        inner = self.shape[self.lead :]
        row = int(np.prod(inner[1:])) * self.dtype.itemsize
        rows = (min(inner[0], max(1, BLOCK // row)),) if inner else ()
        return (1,) * self.lead + rows + inner[1:]

    def blocks(self) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
        """Every block and where it goes."""
        rows = self.block()[self.lead]
        for place in np.ndindex(*self.shape[: self.lead]):
            part = self.part(place)
            for start in range(0, part.shape[0], rows):
                block = part[start : start + rows]
                yield (*place, slice(start, start + len(block))), block.astype(self.dtype)


class _Writer(type_handlers.NumpyHandler):
    """Writes a `Leaf` where Orbax would write the array."""

    async def serialize(self, values, infos, args=None):
        for leaf, info in zip(values, infos):
            await info.await_path_creation()
            spec = type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=info.is_ocdbt_checkpoint,
                global_shape=leaf.shape,
                local_shape=leaf.block(),
                dtype=leaf.dtype,
                process_index=0,
            )
            stored = await ts.open(ts.Spec(spec), create=True, context=info.ts_context)
            for place, block in leaf.blocks():
                await stored[place].write(block)
        return []


def write(
    workdir: pathlib.Path, leaves: Mapping[str, Leaf], provenance: Mapping[str, Any], step: int = 0
) -> None:
    """Writes a checkpoint of parameters alone, by path; holds one block at a time in memory.

    provenance: ready for JSON.
    """
    registry = type_handlers.create_type_handler_registry(
        (Leaf, _Writer()), (jax.Array, type_handlers.ArrayHandler())
    )
    handlers = dict(
        params=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        provenance=ocp.JsonCheckpointHandler(),
    )
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    folder = pathlib.Path(workdir).absolute() / 'checkpoints'
    with ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(unflatten(leaves)),
            provenance=ocp.args.JsonSave(dict(provenance)),
        )
        manager.save(step, args=items)
    checksums.write(folder / str(step), damaged.UNSEALED)


class Stored(NamedTuple):
    """A leaf of a checkpoint on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype
    array: Any

    def parts(self, lead: int) -> Iterable[tuple[tuple[int, ...], np.ndarray]]:
        """The arrays at all places along the first `lead` axes, and the places.

        As many are read together as are stored in one block, which is all of a leaf that was saved
        whole; one else.
        """
        block = self.array.chunk_layout.read_chunk.shape[:lead]
        for corner in np.ndindex(*(-(-n // b) for n, b in zip(self.shape, block))):
            start = tuple(c * b for c, b in zip(corner, block))
            stop = tuple(min(s + b, n) for s, b, n in zip(start, block, self.shape))
            together = self.array[tuple(map(slice, start, stop))].read().result()
            for place in np.ndindex(*together.shape[:lead]):
                yield tuple(s + p for s, p in zip(start, place)), together[place]


def read(workdir: pathlib.Path, step: int) -> dict[str, Stored]:
    """Opens the parameters of a checkpoint, by path; nothing of their content is read.

    Raises:
      UserError: the checkpoint is damaged or not one of mtpt.
    """
    folder = pathlib.Path(workdir).absolute() / 'checkpoints' / str(step) / 'params'
    if folder.is_dir() and (wrong := damaged.damage(folder.parent, ('params',))):
        raise UserError(f'{folder.parent} is damaged or foreign: {wrong}; name another run')
    try:
        told = json.loads((folder / '_METADATA').read_text())['tree_metadata']
        names = [[key['key'] for key in leaf['key_metadata']] for leaf in told.values()]
        opened = {'/'.join(keys): _open(folder, '.'.join(keys)) for keys in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{folder} is no checkpoint of mtpt ({error}); name another run') from error
    return {p: Stored(a.shape, np.dtype(a.dtype.numpy_dtype), a) for p, a in opened.items()}


def _open(folder: pathlib.Path, name: str) -> Any:
    store = dict(driver='ocdbt', base=f'file://{folder}/', path=f'{name}/')
    return ts.open(dict(driver='zarr', kvstore=store), open=True, read=True).result()
