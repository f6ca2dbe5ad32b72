"""Whether the files of a folder are those that were written: a list with sizes and SHA-256.

The list (`checksums.json`) is written when all files are; it says of itself whether it is whole.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mtpt import files

NAME = 'checksums.json'


def write(folder: str | os.PathLike, unless: Iterable[str] = (), threads: int = 2) -> None:
    """Lists what a folder holds, in it.

    Args:
      unless: paths in the folder that may still change.
      threads: how many read; few, beside a run.

    Raises:
      UserError: the list cannot be written; OSError: a file cannot be read.
    """
    folder = pathlib.Path(folder)
    names = sorted(_present(folder) - {NAME, *unless})
    with ThreadPoolExecutor(threads) as pool:
        listed = dict(zip(names, pool.map(lambda name: _measured(folder / name), names)))
    files.write(folder / NAME, json.dumps(dict(files=listed, seal=_seal(listed))))


def fault(
    folder: str | os.PathLike,
    unless: Iterable[str] = (),
    items: Sequence[str] = (),
    share: tuple[int, int] = (0, 1),
    threads: int = 16,
) -> str:
    """What is wrong with a folder that has a list, or ''.

    Args:
      unless: as `write` was given.
      items: folders in it whose content is read; all by default. Names and sizes are of all files.
      share: (i, n) for the i-th of n processes that read a part each.
    """
    folder, unless = pathlib.Path(folder), {NAME, *unless}
    try:
        told = json.loads((folder / NAME).read_text(encoding='utf-8'))
        listed = {str(name): tuple(entry) for name, entry in told['files'].items()}
        if told['seal'] != _seal(told['files']):
            return f'{NAME} is not as it was written'
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f'{NAME} cannot be read ({type(error).__name__})'
    found = _present(folder) - unless
    for name in sorted(found ^ listed.keys()):
        return f'{name} is missing' if name in listed else f'{name} does not belong there'
    for name, (size, _) in listed.items():
        if (now := (folder / name).stat().st_size) != size:
            return f'{name} has {now:,} bytes where {size:,} were written'
    wanted = [n for n in sorted(listed) if not items or n.partition('/')[0] in items]
    return _first_fault(folder, {n: listed[n] for n in wanted[share[0] :: share[1]]}, threads)


def _first_fault(folder: pathlib.Path, listed: dict[str, Any], threads: int) -> str:
    def differs(name: str) -> str:
        try:
            digest = _measured(folder / name)[1]
        except OSError as error:
            return f'{name} cannot be read ({error.strerror or error})'
        wanted = listed[name][1]
        if digest == wanted:
            return ''
        return f'{name} has SHA-256 {digest[:12]}... where {wanted[:12]}... was written'

    with ThreadPoolExecutor(threads) as pool:
        return next(filter(None, pool.map(differs, listed)), '')


def _present(folder: pathlib.Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob('*') if not p.is_dir()}


def _measured(path: pathlib.Path) -> tuple[int, str]:
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
        return file.tell(), digest


def _seal(listed: Any) -> str:
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
