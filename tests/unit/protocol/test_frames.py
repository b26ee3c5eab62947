"""Frames to messages and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.errors import ERROR_TYPES, RequestError
from axon_zmq.protocol.frames import HEADERS, open_envelope, parse, printable, single_frame
from axon_zmq.protocol.msgpack import pack
from tests.support.strategies import plain


@given(st.lists(st.binary(max_size=80), max_size=7))
def test_arbitrary_frames_give_a_message_or_one_request_error(frames):
    envelope = open_envelope(frames)
    try:
        message = parse(envelope.frames, 1000)
    except RequestError as error:
        assert ERROR_TYPES[error.error_type].family == "caller"
    else:
        assert message.kind in HEADERS


@given(st.sampled_from([b"chunk", b"complete", b"alive"]), st.binary(max_size=64), st.dictionaries(st.text(), plain))
def test_a_single_frame_reply_is_one_array_that_contains_the_body_unchanged(kind, id, body):
    import msgpack

    packed = pack(body)
    frame = single_frame(kind, id, packed)
    assert frame.endswith(packed)
    assert msgpack.unpackb(frame) == [kind.decode(), id, body]
    assert msgpack.unpackb(single_frame(kind, id, b""))[2] == {}


def test_a_kind_that_is_not_ascii_does_not_end_the_broker():
    import msgpack

    assert msgpack.unpackb(single_frame(b"c\x8c", b"1", b""))[1:] == [b"1", {}]


def test_ids_are_printed_as_one_printable_line():
    assert printable(b"caf\xc3\xa9-1") == "caf\N{LATIN SMALL LETTER E WITH ACUTE}-1"
    assert printable(b"a\n2026 forged\x1b[2J\xff") == "a\\n2026 forged\\x1b[2J\\\\xff"
