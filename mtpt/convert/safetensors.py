"""Safetensors files, read and written one tensor at a time.

A file is eight bytes with the length of a header, the header (JSON: of each tensor its type, shape
and the bytes that it takes), and the bytes. What a header says is believed only once it fits the
file; nothing is ever executed or unpickled.
"""

import itertools
import json
import math
import pathlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mtpt.config import UserError, nearest

HEADER = 100_000_000  # bytes of a header, at most: the format's own limit
BLOCK = 16 << 20  # bytes written at a time
INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'

DTYPES = dict(
    F64=np.dtype(np.float64),
    F32=np.dtype(np.float32),
    F16=np.dtype(np.float16),
    BF16=np.dtype(ml_dtypes.bfloat16),
)
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Tensor(NamedTuple):
    """Where a tensor lies: its file, type and shape, and its first byte there."""

    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """The tensor as a view of the file."""
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, 'r', self.start, self.shape)


def read(folder: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a folder by name, of one file or of several with an index.

    Raises:
      UserError: no such files, a damaged one, a tensor in two of them, or an index that names
        another folder's.
    """
    files = _files(folder)
    found: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in header(file).items():
            if name in found:
                raise UserError(f'{name} is in {found[name].file.name} and again in {file.name}')
            found[name] = tensor
    return found


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    index = folder / INDEX
    if not index.exists():
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
    except (
        OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError
    ) as error:  # fmt: skip
        raise UserError(f'{index} is damaged ({error}); fetch it again') from error
    for name in names:
        if not isinstance(name, str) or pathlib.PurePath(name).name != name or '\\' in name:
            raise UserError(f'{index} names {name!r}, which is not a file of its own folder')
        if not (folder / name).is_file():
            raise UserError(f'{index} names {name}, which is not there; fetch it too')
    return [folder / name for name in names]


def header(file: pathlib.Path) -> dict[str, Tensor]:
    """What a file says that it holds, checked against its length.

    Raises:
      UserError: it cannot be read, or what it says does not hold together.
    """
    try:
        size = file.stat().st_size
        with open(file, 'rb') as opened:
            head = opened.read(8)
            length = struct.unpack('<Q', head)[0] if len(head) == 8 else -1
            if not 2 <= length <= min(HEADER, size - 8):
                raise UserError(
                    f'{file} is not a safetensors file, or was cut short: its header would take '
                    f'{length} bytes of {size}; fetch it again'
                )
            told = json.loads(opened.read(length))
            if not isinstance(told, dict):
                raise ValueError('its header is no table')
        found = {
            name: _tensor(file, name, entry, 8 + length, size)
            for name, entry in told.items()
            if name != '__metadata__'
        }
    except OSError as error:
        raise UserError(f'cannot read {file}: {error.strerror}') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{file} is damaged ({error}); fetch it again') from error
    ends = sorted(
        (t.start, t.start + t.dtype.itemsize * math.prod(t.shape)) for t in found.values()
    )
    if any(end > start for (_, end), (start, _) in itertools.pairwise(ends)):
        raise UserError(f'{file} is damaged: two of its tensors overlap; fetch it again')
    return found


def _tensor(file: pathlib.Path, name: str, entry: Any, base: int, size: int) -> Tensor:
    try:
        dtype, shape, (start, stop) = entry['dtype'], tuple(entry['shape']), entry['data_offsets']
        known = dtype in DTYPES
    except (KeyError, TypeError, ValueError):
        raise UserError(f'{file} is damaged: its header says nothing clear of {name}') from None
    if not known:
        raise UserError(
            f'{name} in {file.name} is of type {dtype}; models of the types '
            f'{", ".join(DTYPES)} can be converted, quantised ones cannot'
        )
    if not all(type(x) is int and x >= 0 for x in (*shape, start, stop)):
        raise UserError(f'{file} is damaged: its header gives {name} a shape or place that is none')
    if stop - start != DTYPES[dtype].itemsize * math.prod(shape) or base + stop > size:
        raise UserError(
            f'{file} is damaged or cut short: {name} of shape {shape} does not fit bytes {start} '
            f'to {stop} of {size - base}; fetch it again'
        )
    return Tensor(file, DTYPES[dtype], shape, base + start)


class Plan(NamedTuple):
    """A tensor to be written."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def write(
    folder: pathlib.Path,
    plans: Mapping[str, Plan],
    tensors: Iterable[tuple[str, np.ndarray]],
    shard: int,
) -> None:
    """Writes tensors, which may come in any order, into a folder.

    Args:
      folder: an existing folder.
      plans: all tensors, in the order of the files.
      tensors: their names and contents; an array is copied block by block.
      shard: bytes of a file, at most; more than that become several files and an index.
    """
    files = _shards(plans, shard)
    opened, where = {}, {}
    try:
        for file, names in files.items():
            opened[file] = open(folder / file, 'wb')
            start = _write_header(opened[file], {name: plans[name] for name in names})
            for name in names:
                where[name] = (opened[file], start)
                start += plans[name].nbytes
        for name, x in tensors:
            file, start = where.pop(name)
            file.seek(start)
            for block in _blocks(np.asarray(x)):
                file.write(np.ascontiguousarray(block, plans[name].dtype).tobytes())
    finally:
        for file in opened.values():
            file.close()
    assert not where, f'not written: {sorted(where)[:3]}'
    if len(files) > 1:
        of = {name: file for file, names in files.items() for name in names}
        total = sum(plan.nbytes for plan in plans.values())
        told = dict(metadata=dict(total_size=total), weight_map=dict(sorted(of.items())))
        (folder / INDEX).write_text(json.dumps(told, indent=2) + '\n')


def _shards(plans: Mapping[str, Plan], shard: int) -> dict[str, list[str]]:
    groups: list[list[str]] = [[]]
    used = 0
    for name, plan in plans.items():
        if groups[-1] and used + plan.nbytes > shard:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += plan.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    count = len(groups)
    return {f'model-{i:05}-of-{count:05}.safetensors': g for i, g in enumerate(groups, 1)}


def _write_header(file: Any, plans: Mapping[str, Plan]) -> int:
    """Writes the header; gives the place of the first tensor."""
    told: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    start = 0
    for name, plan in plans.items():
        stop = start + plan.nbytes
        told[name] = dict(
            dtype=NAMES[plan.dtype], shape=list(plan.shape), data_offsets=[start, stop]
        )
        start = stop
    text = json.dumps(told, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    file.write(struct.pack('<Q', len(text)) + text)
    file.truncate(8 + len(text) + start)
    return 8 + len(text)


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, BLOCK // max(1, x.nbytes // max(1, len(x))))
    for start in range(0, len(x), rows):
        yield x[start : start + rows]


def compare(found: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compares names and shapes with those of a model.

    Raises:
      UserError: tensors that are missing, left over or of another shape, naming the first few.
    """
    wrong = [
        f'{n} is {tuple(found[n].shape)} where the model has {shape}'
        for n, shape in wanted.items()
        if n in found and tuple(found[n].shape) != shape
    ]
    missing = [n for n in wanted if n not in found]
    extra = [n for n in found if n not in wanted]
    told = []
    if missing:
        told.append(f'{_some(missing)} missing')
    if extra:
        told.append(f'{_some(extra)} not of this model')
    if wrong:
        told.append('; '.join(wrong[:4]) + (f' and {len(wrong) - 4} more' if wrong[4:] else ''))
    if told:
        close = f' ({nearest(missing[0], extra)})' if missing and extra else ''
        raise UserError(
            f'{where} does not hold the model that its config tells: {", and ".join(told)}{close}'
        )


def _some(names: list[str]) -> str:
    more = f' and {len(names) - 4} more' if names[4:] else ''
    return ', '.join(names[:4]) + more + (' is' if len(names) == 1 else ' are')
