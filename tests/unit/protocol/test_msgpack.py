"""Packing and bounded unpacking."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.errors import RequestError
from axon_zmq.protocol.msgpack import pack, unpack
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
