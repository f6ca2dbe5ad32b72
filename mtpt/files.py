"""Files that are whole: written complete or not at all, so that a full disk costs nothing saved."""

import os
import pathlib
import tempfile

from mtpt.config import UserError


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file whole or leaves what was there; what is there already is not written again.

    Makes the folder where there is none. Text is written as UTF-8, half a surrogate pair as `?`.

    Raises:
      UserError: the file cannot be written; an old one is as it was.
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
        raise UserError(
            f'cannot write {path}: {error.strerror or error}; free some space there or choose '
            'another folder, then give the same command again; what was there is untouched'
        ) from error
