"""Examples as plain values: what JSON can hold, so that any reader sees the same.

Other values become: bytes, text (UTF-8; what is no UTF-8 becomes U+FFFD); NumPy numbers and
arrays, numbers and lists; dates and times, ISO 8601 text; tuples, lists; sets, sorted lists;
decimals, text. Anything else is an error that names the field.
"""

import datetime
import decimal
from collections.abc import Mapping
from typing import Any

from mtpt.config import UserError


def plain(example: Any, where: str = 'an example') -> dict[str, Any]:
    """The example with every value as JSON would hold it, by the rule at the top of this file.

    Raises:
      UserError: it is no dict, or a value has no plain form.
    """
    if not isinstance(example, Mapping):
        raise UserError(f'{where} is {type(example).__name__}, not a dict of fields')
    return {str(key): _plain(value, where, str(key)) for key, value in example.items()}


def _plain(value: Any, where: str, field: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, bytes):
        return value.decode('utf-8', 'replace')
    if isinstance(value, Mapping):
        return {str(k): _plain(v, where, f'{field}.{k}') for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, where, field) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(v, where, field) for v in value), key=lambda v: (str(type(v)), v))
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    for base in (str, bool, int, float):  # subclasses, such as enumerations
        if isinstance(value, base):
            return base(value)
    for method in ('to_list', 'tolist', 'item'):  # ragged tensors, NumPy arrays and scalars
        if hasattr(value, method):
            return _plain(getattr(value, method)(), where, field)
    raise UserError(f'{where}: field {field!r} is a {type(value).__name__}, which JSON cannot hold')
