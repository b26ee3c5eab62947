"""Packing and bounded unpacking."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.errors import RequestError
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import UNCOUNTED_BYTES, count_items, pack, unpack
from tests.support.strategies import plain


@given(st.dictionaries(st.text(), plain, max_size=5))
def test_packing_and_unpacking_returns_the_same_value(value):
    assert unpack(pack(value), "it") == value


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_map_or_one_request_error(data):
    try:
        assert isinstance(unpack(data, "it"), dict)
    except RequestError as error:
        assert error.error_type == "invalid_msgpack"
        assert error.message.startswith("it")


def items_of(value: Any) -> int:
    """The number of lists, maps, elements, keys and values, without the value itself as an element."""
    if isinstance(value, list):
        return 1 + sum(1 + items_of(each) for each in value)
    if isinstance(value, dict):
        return 1 + sum(2 + items_of(each) for each in value.values())
    return 0


@given(plain)
def test_items_are_counted_without_unpacking(value):
    packed = pack(value)
    exact = 1 + items_of(value)
    assert count_items(packed, exact) == exact
    assert count_items(packed, 0) > 0
    if exact > 1:
        assert count_items(packed, exact - 1) == exact


@pytest.mark.parametrize(
    "value",
    [
        *(["x" * size] for size in (0, 31, 32, 255, 256, 65535, 65536)),
        *([b"x" * size] for size in (0, 255, 256, 65535, 65536)),
        *([[None] * size] for size in (0, 15, 16, 65535, 65536)),
        *([dict.fromkeys(map(str, range(size)))] for size in (0, 15, 16, 65536)),
        *([msgpack.ExtType(5, b"x" * size)] for size in (1, 2, 3, 4, 8, 16, 255, 256, 65536)),
        *([number] for number in (0, -1, -32, -33, 127, 128, 255, 256, 2**16, 2**32, -(2**7), -(2**15), -(2**31))),
        *([number] for number in (-(2**31) - 1, 1.5, True, False, None, datetime.now(UTC))),
    ],
    ids=lambda value: type(value[0]).__name__,
)
def test_every_encoding_is_counted(value):
    packed = cast("bytes", msgpack.packb([value, 0], datetime=True))
    assert count_items(packed, 10**6) == 4 + items_of(value)


def test_a_value_with_too_many_items_is_refused_before_it_is_unpacked():
    packed = pack({"a": [[] for _ in range(3000)], "b": "x" * 5000})
    assert unpack(packed, "it", 6007)["a"] == [[]] * 3000
    with pytest.raises(RequestError) as caught:
        unpack(packed, "it", 6005)
    assert caught.value.error_type == "too_large"
    assert "at least 6006 msgpack items, the limit is 6005 (pong.limits.max_items)" in caught.value.message
    assert caught.value.details == {"items": 6006, "max_items": 6005}


@pytest.mark.parametrize("header", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdc\xff\xff"])
def test_forged_lengths_are_refused_without_reserving_memory(header: bytes):
    # Each of the nested lists reserves memory for its elements at once: 8 bytes for each byte of the data.
    forged = b"\x81\xa1a" + header * 900 + b"\xc0" * (UNCOUNTED_BYTES + 1)
    with pytest.raises(RequestError, match="invalid_msgpack: it is not valid msgpack: it is cut off"):
        unpack(forged, "it", limits.MAX_ITEMS)
    tracemalloc.start()
    try:
        with pytest.raises(RequestError):
            unpack(forged, "it", limits.MAX_ITEMS)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_history_of_5000_messages_is_within_the_limit():
    usage = dict.fromkeys(map(str, range(12)), 0)
    part = dict.fromkeys(map(str, range(6)), "x")
    request = {**dict.fromkeys(map(str, range(7)), "x"), "parts": [part]}
    response = {**dict.fromkeys(map(str, range(17)), "x"), "parts": [part], "usage": usage}
    body = pack({"message_history": [request, response] * 2500})
    assert len(unpack(body, "it", limits.MAX_ITEMS)["message_history"]) == 5000
