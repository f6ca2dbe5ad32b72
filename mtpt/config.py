"""From a ConfigDict to frozen dataclasses, with words for whoever mistyped a key.

A config file returns an `ml_collections.ConfigDict`; `read` turns it into the dataclass that lives
beside the code it configures, and nothing past this door sees a ConfigDict. Defaults stand in the
dataclass.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """Bad input: one sentence that names the thing and the cure. The command line shows it bare."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Says which known names a wrong one may have meant, and lists a few of them."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    hint = f'did you mean {" or ".join(map(repr, close))}? ' if close else ''
    more = f', ... ({len(known)} in all)' if len(known) > 12 else ''
    return f'{hint}known: {", ".join(known[:12]) or "none"}{more}'


def choose(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """Picks a method by name from the dict at the end of its file.

    Raises:
      UserError: no such name; the message lists the right ones.
    """
    if name not in table:
        raise UserError(f'no {kind} {name!r}; {nearest(name, table)}')
    return table[name]


def read(cls: type, config: Mapping[str, Any], path: str = 'config') -> Any:
    """Reads a mapping into the frozen dataclass `cls`, section by section.

    Raises:
      UserError: an unknown key (with the nearest known ones), a wrong type, a section that is no
        mapping.
    """
    if dataclasses.is_dataclass(config):
        return config
    if not isinstance(config, Mapping) and not hasattr(config, 'items'):
        raise UserError(f'{path} must be a section with keys, got {config!r}')
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls) if f.init}
    values = {}
    for key, value in config.items():
        if key not in fields:
            raise UserError(f'{path}.{key} is not a setting; {nearest(key, fields)}')
        values[key] = _coerce(hints[key], value, f'{path}.{key}')
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(f'{path}: {error}') from error


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """Checks one value against its type hint; integers serve as floats, lists as tuples."""
    if dataclasses.is_dataclass(hint):
        return read(hint, value, path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if float in args and isinstance(value, str) and _is_number(value):
            return float(value)  # a flag of a field that may hold text gives text
        for option in args:
            try:
                return _coerce(option, value, path)
            except UserError:
                continue
        raise UserError(f'{path} must be {hint}, got {value!r}')
    if hint is Any:
        return value
    if hint is type(None):
        if value is None:
            return None
    elif origin is tuple or hint is tuple:
        if isinstance(value, (list, tuple)):
            inner = args[0] if args else Any
            return tuple(_coerce(inner, v, f'{path}[{i}]') for i, v in enumerate(value))
        if isinstance(value, str) and args and args[0] is str:
            return tuple(part.strip() for part in value.split(',') if part.strip())
    elif origin is dict or hint is dict:
        if hasattr(value, 'items'):
            inner = args[1] if args else Any
            return {str(k): _coerce(inner, v, f'{path}.{k}') for k, v in value.items()}
    elif hint is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if math.isnan(value):
                raise UserError(f'{path}={value} is no number; give one')
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(value, hint):
        return value
    name = getattr(hint, '__name__', str(hint))
    raise UserError(f'{path} must be {name}, got {value!r} ({type(value).__name__})')


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def several(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names as they were told: a text is one name, or several with commas between them."""
    if isinstance(names, str):
        return tuple(part.strip() for part in names.split(',') if part.strip())
    return tuple(names)


def as_dict(config: Any) -> dict[str, Any]:
    """The plain, JSON-ready form of a config dataclass (tuples become lists)."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))
