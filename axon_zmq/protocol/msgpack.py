"""Packs values as msgpack, and unpacks msgpack from the wire with strict checks. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final, cast

import msgpack

from axon_zmq.errors import RequestError

UNCOUNTED_BYTES: Final = 4096
"""Size in bytes up to which a value is unpacked without counting its items first. Counting takes about 0.2 µs for each
item. A forged length in so few bytes reserves at most 33 MiB for a moment."""
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


def _tables() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the size of an item and its number of children, by its first byte.

    The size of a list or map is 1, without its content. The size is 0 if the first byte does not determine it. The
    number of children is -1 if the item is neither a list nor a map.
    """
    sizes, children = [0] * 256, [-1] * 256
    sizes[0x00:0xA0] = [1] * 160  # small integers, short maps, short lists
    sizes[0xA0:0xC0] = range(1, 33)  # short strings
    sizes[0xE0:0x100] = [1] * 32  # small negative integers
    fixed = {0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3}
    fixed |= {0xD2: 5, 0xD3: 9, 0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}
    for first, size in fixed.items():
        sizes[first] = size
    children[0x80:0x90] = range(0, 32, 2)
    children[0x90:0xA0] = range(16)
    return tuple(sizes), tuple(children)


_SIZES, _CHILDREN = _tables()
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""First byte of bin, ext and str: number of bytes that contain the length."""


def count_items(data: bytes, most: int) -> int:
    """Count the items of a packed value: each list, each map, each element of a list, each key and value of a map.

    A list in a list therefore counts twice: it takes more memory than other elements. A value alone counts as one
    element.

    Nothing is unpacked, so a value that would need too much memory can be refused before it does any harm. Counting
    stops as soon as the result is known to exceed `most`.

    Args:
        data: One packed value. Invalid data may be counted wrongly.
        most: The largest number of interest.

    Returns:
        The number of items; a number above `most` may be smaller than the exact one. -1 if the value is cut off: it
        declares more items than there are bytes left.
    """
    # No stack is needed: how many items are still expected does not depend on the container to which they belong.
    at, end, counted, expected, containers = 0, len(data), 0, 1, 0
    while counted < expected:
        if at >= end:
            return -1
        first = data[at]
        counted += 1
        if size := _SIZES[first]:
            at += size
            children = _CHILDREN[first]
        else:
            at, children = _open_item(data, at, first)
        if children >= 0:
            containers += 1
            expected += children
            if expected - counted > end - at:  # each item has at least one byte
                return -1
            if expected + containers > most:
                return expected + containers
    return expected + containers


def _open_item(data: bytes, at: int, first: int) -> tuple[int, int]:
    """Return where the content of a list or map begins, or where any other item ends, and the number of children.

    The number is -1 for an item that is neither a list nor a map.
    """
    if (width := _LENGTHS.get(first)) is not None:
        type_byte = 1 if 0xC7 <= first <= 0xC9 else 0
        return at + 1 + width + type_byte + int.from_bytes(data[at + 1 : at + 1 + width], "big"), -1
    if first == 0xC1:  # never used; unpacking reports it
        return at + 1, -1
    width = 4 if first & 1 else 2
    length = int.from_bytes(data[at + 1 : at + 1 + width], "big")
    return at + 1 + width, length if first <= 0xDD else 2 * length


def _check_items(data: bytes, what: str, max_items: int) -> None:
    counted = count_items(data, max_items)
    if counted < 0:
        raise RequestError("invalid_msgpack", f"{what} is not valid msgpack: it is cut off, or a length in it is wrong")
    if counted > max_items:
        raise RequestError(
            "too_large",
            f"{what} has at least {counted} msgpack items, the limit is {max_items} (pong.limits.max_items): each "
            f"list, map, list element, map key and map value counts; send fewer, for example a shorter message_history",
            {"items": counted, "max_items": max_items},
        )


def unpack(data: bytes, what: str, max_items: int | None = None) -> dict[str, Any]:
    """Unpack one msgpack map with string keys; empty bytes count as an empty map.

    The function rejects extension types other than timestamps, duplicate keys, keys of other types than string, NaN,
    infinities, bytes after the map, and nesting deeper than 1024 (the limit of the library).

    Args:
        data: The packed map.
        what: Name of the data for error messages, such as `the header`.
        max_items: Maximum number of items, see `count_items`. An item takes up to 60 times its size in memory, and
            far more once it is validated. Default: not limited.

    Raises:
        RequestError: `invalid_msgpack`, or `too_large` with more than `max_items`; the message gives the reason.
    """
    if not data:
        return {}
    if max_items is not None and len(data) > UNCOUNTED_BYTES:
        _check_items(data, what, max_items)
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
