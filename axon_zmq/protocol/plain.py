"""What agents and tools answer, as msgpack: Python's and pydantic's types made plain.

Plain is what msgpack and every language have: nil, booleans, integers of 64 bits, finite floats, text,
bytes, times with a zone, lists, and maps with text for keys. NaN and infinities become nil; a time
without a zone, a date, a duration, a Decimal or a UUID becomes its text in ISO form or digits; an Enum
its value; a set or tuple a list; a model or dataclass a map.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from math import isfinite
from operator import attrgetter
from typing import Any, Final

from pydantic_core import to_jsonable_python

from axon_zmq.errors import ModelError
from axon_zmq.protocol import msgpack

DEEPEST: Final = 256
"""Maps and lists in one another. msgpack's own packer stops at 511, and JSON readers at 200 or so."""
_LONGEST_TEXT: Final = 1_000
"""Characters that stand for an object of which nothing is known."""


class Plain(list[Any]):
    """A list that is plain already, all through; it is not looked at again."""


class PlainMap(dict[str, Any]):
    """The same of a map."""


def strictly_plain(value: object) -> Any:
    """A value as msgpack can hold it.

    Raises:
        ValueError: It has no plain form.
    """
    return value if _is_plain([value]) else _made_plain(value, True, set())


def plain(value: object) -> Any:
    """A value as msgpack can hold it, whatever it is; what has no plain form is told in text.

    For what is a record of the run, such as its messages: an odd value in a tool's metadata must not end
    a run that succeeded. Integers over 64 bits become their digits; functions, connections and whatever
    else pydantic does not know, what raises when it is asked for its fields, and what holds itself or is
    nested too deep, a short text.
    """
    return value if _is_plain([value]) else _made_plain(value, False, set())


def packer() -> Callable[[object], bytes]:
    """A packing function for one thread.

    The function raises ModelError `invalid_output` for what has no plain form, such as integers over
    64 bits: the value is an answer, by a tool or a model, and an answer is not changed.
    """
    pack = msgpack.packer(_step)

    def packed(value: object) -> bytes:
        nonlocal pack
        try:
            return pack(strictly_plain(value))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            pack = msgpack.packer(_step)  # a Packer that failed midway still holds what it had packed
            raise ModelError("invalid_output", f"the answer cannot be packed as msgpack: {error}") from error

    return packed


_AS_IS: Final = frozenset((str, bytes, bool, type(None), Plain, PlainMap))
_LEAST, _MOST = -(2**63), 2**64 - 1
"""Integers as msgpack has them."""


def _is_plain(holder: Any, depth: int = 0) -> bool:
    """Whether a map or list is plain already, as nearly all are; that is found out faster than a copy is made."""
    if depth >= DEEPEST:
        return False
    if type(holder) is dict:
        for key in holder:
            if type(key) is not str:
                return False
        holder = holder.values()
    for item in holder:
        kind = type(item)
        if kind in _AS_IS or (kind is int and _LEAST <= item <= _MOST):
            continue
        if not (_is_plain(item, depth + 1) if kind is dict or kind is list else _is_plain_leaf(item)):
            return False
    return True


def _is_plain_leaf(value: Any) -> bool:
    kind = type(value)
    if kind is int:
        return _LEAST <= value <= _MOST
    if kind is float:
        return isfinite(value)
    return kind is datetime and (value.tzinfo is UTC or value.utcoffset() is not None)


def _made_plain(value: Any, strict: bool, path: set[int]) -> Any:
    """The plain form; `path` has the ids of what the value lies in."""
    kind = type(value)
    if kind in _AS_IS or _is_plain_leaf(value):
        return value
    if kind is int:
        return value if strict else describe_value(value)
    if kind is float:
        return None
    if (place := id(value)) in path or len(path) >= DEEPEST:
        return _cut(value, strict)
    path.add(place)
    if kind is dict:
        made = {_key(key): _made_plain(item, strict, path) for key, item in value.items()}
    elif kind is list:
        made = [_made_plain(item, strict, path) for item in value]
    else:
        made = _made_plain(_step(value) if strict else _step_or_text(value), strict, path)
    path.discard(place)
    return made


def _cut(value: object, strict: bool) -> str:
    if strict:
        raise ValueError(f"it holds itself, or is nested more than {DEEPEST} deep")
    return f"<{type(value).__name__} that holds itself, or is nested more than {DEEPEST} deep>"


def _time(value: datetime) -> datetime | str:
    """A time of a type of its own as Python's; one without a zone as text."""
    text = value.isoformat()
    return text if value.utcoffset() is None else datetime.fromisoformat(text)


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
    """One step towards msgpack, for a type that it does not know.

    Raises:
        ValueError: Nothing is known of the type, or its own code raised.
    """
    for types, step in _STEPS:
        if isinstance(value, types):
            return step(value)
    if not isinstance(value, type):
        serializer = getattr(value, "__pydantic_serializer__", None)
        if serializer is not None and (made := serializer.to_python(value, warnings=False)) is not value:
            return made
        if dataclasses.is_dataclass(value):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return to_jsonable_python(value)


def _step_or_text(value: object) -> Any:
    try:
        return _step(value)
    except Exception:  # whatever the value's own code raises
        return describe_value(value)


def describe_value(value: object) -> str:
    """A text in place of a value that has no plain form."""
    try:
        return str(value) if isinstance(value, int) else str(value)[:_LONGEST_TEXT]
    except Exception:  # its own `__str__`, or Python's bound on digits
        return f"<{type(value).__name__}>"


def _key(key: object) -> str:
    """A key, which pydantic writes so in JSON."""
    if type(key) is str:
        return key
    try:
        return next(iter(to_jsonable_python({key: None})))
    except Exception:  # nothing is known of its type
        return describe_value(key)
