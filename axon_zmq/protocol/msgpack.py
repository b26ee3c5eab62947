"""Packs values as msgpack, and unpacks msgpack from the wire with strict checks. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, cast

import msgpack

from axon_zmq.errors import RequestError

_MAYBE_NOT_A_NUMBER = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]|\xca[\x7f\xff][\x80-\xff]")
"""Matches the encoding of a float that is NaN or infinite. The match may also be a part of other data, so it only
decides whether the slower search through the whole value is needed."""


class _RefusedError(Exception):
    pass


def _map(pairs: list[tuple[object, object]]) -> dict[object, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _RefusedError("a map has a duplicate key")
    for key in made:
        if type(key) is not str:
            raise _RefusedError(f"a map has a key of type {type(key).__name__}; keys must be strings")
    return made


def _extension(code: int, _data: bytes) -> Any:
    raise _RefusedError(f"extension type {code} is not supported; only timestamps (-1) are")


def unpack(data: bytes, what: str) -> dict[str, Any]:
    """Unpack one msgpack map with string keys; empty bytes count as an empty map.

    The function rejects extension types other than timestamps, duplicate keys, keys of other types than string, NaN,
    infinities, bytes after the map, and nesting deeper than 1024 (the limit of the library).

    Args:
        data: The packed map.
        what: Name of the data for error messages, such as `the header`.

    Raises:
        RequestError: `invalid_msgpack`; the message gives the reason.
    """
    if not data:
        return {}
    # The library itself accepts duplicate keys (the last one wins), any type of key, unknown extension types and NaN.
    try:
        value = msgpack.unpackb(data, timestamp=3, object_pairs_hook=_map, ext_hook=_extension)
    except _RefusedError as refused:
        raise RequestError("invalid_msgpack", f"{what}: {refused}") from None
    except (ValueError, OverflowError, RecursionError, TypeError, msgpack.UnpackException) as fault:
        raise RequestError("invalid_msgpack", f"{what} is not valid msgpack: {_fault_text(fault)}") from None
    if not isinstance(value, dict):
        raise RequestError("invalid_msgpack", f"{what} must be a map, not {type(value).__name__}")
    if _MAYBE_NOT_A_NUMBER.search(data) and (path := _not_a_number(value)) is not None:
        raise RequestError("invalid_msgpack", f"{what} contains NaN or an infinity at {path or '/'}")
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
    """Return the JSON pointer of a float that is NaN or infinite, or None if there is none."""
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
    """Return a packing function for repeated use in one thread; it packs times as timestamps and bytes as bin.

    The packing function replaces lone surrogates by `?`, because they cannot be encoded. The delta of a model may end
    with one.

    Args:
        default: Converts a value of a type that msgpack does not know to another type. It is called again until the
            type is known.
    """
    made = msgpack.Packer(datetime=True, default=default, unicode_errors="replace")
    return cast("Callable[[object], bytes]", made.pack)


def pack(value: object) -> bytes:
    """Pack one value; any thread may call this function."""
    return cast("bytes", msgpack.packb(value, datetime=True))
