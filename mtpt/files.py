"""What is written whole or not at all, so that a full disk costs nothing saved."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mtpt.config import UserError

T = TypeVar('T')


class Unwritten(UserError):
    """A file could not be written: what only tells of a run goes without it."""


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file whole or leaves what was there; what is there already is not written again.

    Makes the folder where there is none. Text is written as UTF-8, half a surrogate pair as `?`.

    Raises:
      Unwritten: the file cannot be written; an old one is as it was.
    """
    path = pathlib.Path(path)
    content = content.encode('utf-8', 'replace') if isinstance(content, str) else content
    beside = None
    try:
        if path.is_file() and path.read_bytes() == content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.part', dir=path.parent)
        with open(handle, 'wb') as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o666 & ~mask)  # mkstemp's are for its owner alone
        os.replace(beside, path)
    except OSError as error:
        if beside:
            pathlib.Path(beside).unlink(missing_ok=True)
        raise Unwritten(
            f'cannot write {path}: {error.strerror or error}; free some space there or choose '
            'another folder, then give the same command again; what was there is untouched'
        ) from error


def write_folder(out: str | os.PathLike, fill: Callable[[pathlib.Path], T]) -> T:
    """Fills a folder beside `out` and renames it, so that `out` is whole or is not there.

    Args:
      out: a folder that is not there yet, or holds nothing.
      fill: is given the folder to write into.

    Returns:
      What `fill` gives.

    Raises:
      UserError: `out` is taken or cannot be written; what `fill` reads cannot be read.
    """
    out = pathlib.Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f'{out} is there already; choose another --out, or remove it')
    if out == pathlib.Path.cwd():
        raise UserError(f'{out} is the folder you are in; give --out the name of a new one')
    beside = out.parent / f'.{out.name}.part'
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        found = fill(beside)
        if out.is_dir():
            out.rmdir()
        beside.rename(out)
        return found
    except OSError as error:
        why, at = error.strerror or error, pathlib.Path(str(error.filename or beside))
        if at != out and not at.is_relative_to(beside) and not beside.is_relative_to(at):
            raise UserError(f'cannot read {at}: {why}; make it readable') from error
        raise UserError(
            f'cannot write {out}: {why}; free some space or choose another --out'
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


class Unfailing:
    """A stream such as stderr whose disk may be full: what finds no room is let go."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with _without_room():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _without_room():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _without_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
