"""What a thing was made from, in one number: of bytes, and of functions that generate examples."""

import hashlib
import inspect
import pathlib
from typing import Any


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def of_code(function: Any) -> str:
    """What a generating function is: the file it stands in, and what was bound to it."""
    bound = []
    while hasattr(function, 'func'):
        bound.append(repr((function.args, sorted(function.keywords.items()))))
        function = function.func
    try:
        text = pathlib.Path(inspect.getsourcefile(function)).read_text()
    except (TypeError, OSError):
        code = getattr(function, '__code__', None)
        text = repr(function) if code is None else f'{code.co_code!r}{code.co_consts!r}'
    return sha256('\n'.join([*bound, text]).encode())
