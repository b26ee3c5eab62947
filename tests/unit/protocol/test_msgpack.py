"""Packing and bounded unpacking."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.errors import RequestError
from axon_zmq.protocol.msgpack import pack, unpack
from tests.support.strategies import plain


@given(st.dictionaries(st.text(), plain, max_size=5))
def test_what_is_packed_comes_back(value):
    assert unpack(pack(value), "it") == value


@given(st.binary(max_size=200))
def test_any_bytes_give_a_map_or_one_clear_error(data):
    try:
        assert isinstance(unpack(data, "it"), dict)
    except RequestError as error:
        assert error.error_type == "invalid_msgpack"
        assert error.message.startswith("it")
