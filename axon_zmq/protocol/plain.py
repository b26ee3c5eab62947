"""Converts results of agents and tools to plain values: msgpack can pack them, and every language has their types.

Plain values are nil, booleans, integers of 64 bits, finite floats, text, bytes, times with a time zone, lists, and maps
with text as keys. Other types are converted:

| type | converted to |
|---|---|
| NaN, infinity | nil |
| time without a time zone, date, duration, `Decimal`, `UUID` | text: ISO 8601 or digits |
| `Enum` | its value |
| set, tuple | list |
| pydantic model, dataclass | map |
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from math import isfinite
from operator import attrgetter
from typing import Any, Final

from pydantic_core import to_jsonable_python

from axon_zmq.errors import ModelError
from axon_zmq.protocol import msgpack

MAX_DEPTH: Final = 256
"""Maximum depth of nested maps and lists. msgpack's packer fails at a depth of 511; many JSON parsers fail at about
200."""
_MAX_TEXT_CHARS: Final = 1_000
"""Maximum length of the text that replaces an object that cannot be converted, in characters."""


class Plain(list[Any]):
    """List whose content is known to be plain at every depth, so that it is not examined again."""


class PlainMap(dict[str, Any]):
    """Map whose content is known to be plain at every depth, so that it is not examined again."""


def strictly_plain(value: object) -> Any:
    """Convert a value to a plain value.

    Raises:
        ValueError: The value, or a part of it, has no plain form.
    """
    return value if _is_plain([value]) else _converted(value, True, set())


def plain(value: object) -> Any:
    """Convert any value to a plain value; parts without a plain form become text.

    This function is for records of a run, such as its messages: an unusual value in a tool's metadata must not fail a
    run that succeeded. Integers of more than 64 bits become their digits. A short text replaces objects whose type
    pydantic does not know (such as functions and connections), objects whose fields raise an exception when they are
    read, objects that contain themselves, and objects that are nested too deeply.
    """
    return value if _is_plain([value]) else _converted(value, False, set())


def packer() -> Callable[[object], bytes]:
    """Return a packing function for one thread.

    The packing function raises ModelError `invalid_output` for a value without a plain form, such as an integer of more
    than 64 bits. It does not replace such a value, because the answer of a model or a tool must not be changed.
    """
    pack = msgpack.packer(_step)

    def packed(value: object) -> bytes:
        nonlocal pack
        try:
            return pack(strictly_plain(value))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            pack = msgpack.packer(_step)  # after an error, msgpack's Packer keeps the bytes that it has packed so far
            raise ModelError("invalid_output", f"the answer cannot be packed as msgpack: {error}") from error

    return packed


_AS_IS: Final = frozenset((str, bytes, bool, type(None), Plain, PlainMap))
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
"""Range of msgpack's integers."""


def _is_plain(holder: Any, depth: int = 0) -> bool:
    """Whether the items of a map or list are plain. Nearly all are, and this check is faster than a conversion."""
    if depth >= MAX_DEPTH:
        return False
    if type(holder) is dict:
        for key in holder:
            if type(key) is not str:
                return False
        holder = holder.values()
    for item in holder:
        kind = type(item)
        if kind in _AS_IS or (kind is int and _MIN_INTEGER <= item <= _MAX_INTEGER):
            continue
        if not (_is_plain(item, depth + 1) if kind is dict or kind is list else _is_plain_leaf(item)):
            return False
    return True


def _is_plain_leaf(value: Any) -> bool:
    kind = type(value)
    if kind is int:
        return _MIN_INTEGER <= value <= _MAX_INTEGER
    if kind is float:
        return isfinite(value)
    return kind is datetime and (value.tzinfo is UTC or value.utcoffset() is not None)


def _converted(value: Any, strict: bool, path: set[int]) -> Any:
    """Return the plain form of a value.

    Args:
        value: Any value.
        strict: Whether a value without a plain form raises ValueError; otherwise it becomes text.
        path: `id`s of the objects that contain the value, to detect an object that contains itself.
    """
    kind = type(value)
    if kind in _AS_IS or _is_plain_leaf(value):
        return value
    if kind is int:  # out of range; in strict mode the packer raises OverflowError
        return value if strict else describe_value(value)
    if kind is float:  # NaN or infinite
        return None
    if (place := id(value)) in path or len(path) >= MAX_DEPTH:
        return _cut(value, strict)
    path.add(place)
    if kind is dict:
        made = {_key(key): _converted(item, strict, path) for key, item in value.items()}
    elif kind is list:
        made = [_converted(item, strict, path) for item in value]
    else:
        made = _converted(_step(value) if strict else _step_or_text(value), strict, path)
    path.discard(place)
    return made


def _cut(value: object, strict: bool) -> str:
    if strict:
        raise ValueError(f"it contains itself, or is nested more than {MAX_DEPTH} deep")
    return f"<{type(value).__name__} that contains itself, or is nested more than {MAX_DEPTH} deep>"


def _time(value: datetime) -> datetime | str:
    """Convert an instance of a subclass of `datetime` to `datetime`, or to text if it has no time zone."""
    text = value.isoformat()
    return text if value.utcoffset() is None else datetime.fromisoformat(text)


# The first type that matches counts: an Enum may also be a str or an int, and becomes its value.
_STEPS: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    (Enum, attrgetter("value")),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    ((bytes, bytearray, memoryview), bytes),
    (datetime, _time),
    (Mapping, dict),
    ((list, tuple, set, frozenset, deque), list),
)


def _step(value: Any) -> Any:
    """Convert a value to a type that is nearer to msgpack's types; the result may need further steps.

    Raises:
        ValueError: The type is unknown, or its own code failed.
    """
    for types, step in _STEPS:
        if isinstance(value, types):
            return step(value)
    if not isinstance(value, type):
        serializer = getattr(value, "__pydantic_serializer__", None)
        if serializer is not None and (made := serializer.to_python(value, warnings=False)) is not value:
            return made
        if dataclasses.is_dataclass(value):
            return _fields(value)
    return to_jsonable_python(value)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _step_or_text(value: object) -> Any:
    with suppress(Exception):  # any exception of the value's own code
        return _step(value)
    if dataclasses.is_dataclass(value):
        with suppress(Exception):  # one field may have made the serializer of the whole dataclass fail
            return _fields(value)
    return describe_value(value)


def describe_value(value: object) -> str:
    """Return a short text in place of a value that has no plain form."""
    try:
        return str(value) if isinstance(value, int) else str(value)[:_MAX_TEXT_CHARS]
    except Exception:  # the value's `__str__` failed, or an integer has more digits than Python converts (4300)
        return f"<{type(value).__name__}>"


def _key(key: object) -> str:
    """Convert the key of a map to text, as pydantic does for JSON."""
    if type(key) is str:
        return key
    try:
        return next(iter(to_jsonable_python({key: None})))
    except Exception:  # pydantic does not know the type of the key
        return describe_value(key)
