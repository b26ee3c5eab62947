"""Bounded msgpack: what is accepted from the wire, and how values are packed. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, cast

import msgpack

from axon_zmq.errors import RequestError

_MAYBE_NOT_A_NUMBER = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]|\xca[\x7f\xff][\x80-\xff]")
"""Where a float that is NaN or infinite may stand: the walk that finds it is taken only then."""


class _RefusedError(Exception):
    pass


def _map(pairs: list[tuple[object, object]]) -> dict[object, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _RefusedError("a map has one key twice")
    for key in made:
        if type(key) is not str:
            raise _RefusedError(f"a map has a key that is no string ({type(key).__name__})")
    return made


def _extension(code: int, _data: bytes) -> Any:
    raise _RefusedError(f"extension type {code} is unknown; only timestamps (-1) are taken")


def unpack(data: bytes, what: str) -> dict[str, Any]:
    """Read one msgpack map with string keys; empty bytes are an empty map.

    Extension types other than timestamps, keys that are no strings or come twice, NaN, infinities,
    trailing bytes and nesting over msgpack's own bound of 1024 are refused.

    Args:
        data: The packed map.
        what: How to name it in the error.

    Raises:
        RequestError: `invalid_msgpack`.
    """
    if not data:
        return {}
    try:
        value = msgpack.unpackb(data, timestamp=3, object_pairs_hook=_map, ext_hook=_extension)
    except _RefusedError as refused:
        raise RequestError("invalid_msgpack", f"{what}: {refused}") from None
    except (ValueError, OverflowError, RecursionError, TypeError, msgpack.UnpackException) as fault:
        raise RequestError("invalid_msgpack", f"{what} is not valid msgpack: {_fault_text(fault)}") from None
    if not isinstance(value, dict):
        raise RequestError("invalid_msgpack", f"{what} must be a map, not {type(value).__name__}")
    if _MAYBE_NOT_A_NUMBER.search(data) and (path := _not_a_number(value)) is not None:
        raise RequestError("invalid_msgpack", f"{what} holds NaN or an infinity at {path or '/'}")
    return value


def _fault_text(fault: Exception) -> str:
    match fault:
        case msgpack.ExtraData():
            return f"{len(fault.extra)} bytes follow the map"
        case msgpack.StackError():
            return "it is nested more than 1024 deep"
        case UnicodeDecodeError():
            return "a string is not UTF-8 (send bytes as bin)"
        case _:
            return str(fault) or type(fault).__name__


def _not_a_number(value: object, path: str = "") -> str | None:
    """The JSON pointer of the first float that is NaN or infinite."""
    pending = [(path, value)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return path
        if isinstance(value, dict):
            pending += [(f"{path}/{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(f"{path}/{index}", item) for index, item in enumerate(value)]
    return None


def packer(default: Callable[[object], object]) -> Callable[[object], bytes]:
    """A reusable packing function for one thread: times as timestamps, bytes as bin.

    Half a character (a lone surrogate, as a model's delta may end with) becomes `?`.

    Args:
        default: Makes a type that msgpack does not know plainer.
    """
    made = msgpack.Packer(datetime=True, default=default, unicode_errors="replace")
    return cast("Callable[[object], bytes]", made.pack)


def pack(value: object) -> bytes:
    """Pack one value, from any thread."""
    return cast("bytes", msgpack.packb(value, datetime=True))
