"""Unfinished messages: which connections are cut."""

from __future__ import annotations

import os
import struct

import msgpack
import pytest

from axon_zmq.broker import unfinished
from axon_zmq.broker.connections import MESSAGE_CREDIT, Connection
from axon_zmq.broker.unfinished import Bounds, is_small_frames, is_small_properties, measured
from axon_zmq.protocol.limits import MIB

BOUNDS = Bounds.of(16 * MIB)


def connection(held: int = 0, since: float = 0.0) -> Connection:
    made = Connection(fd=7, address="127.0.0.1", opened=0)
    measured(made, 0, 0, 1, since)
    measured(made, held, 0, 1, since)
    return made


def property(name: bytes, value: bytes = b"") -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


def test_bytes_in_the_kernel_and_in_delivered_messages_are_not_held():
    one = connection()
    measured(one, 10_000, 3_000, 0, 1.0)
    assert (one.held, one.undelivered) == (7_000, 10_000)
    one.delivered += MESSAGE_CREDIT + 6_998
    assert (one.held, one.undelivered) == (0, 0)
    measured(one, 10_000, 0, 0, 1.0)
    assert one.held == 0


def test_the_credit_of_many_small_messages_does_not_hide_a_later_large_one():
    one = connection()
    one.delivered += 1_000 * (MESSAGE_CREDIT + 12)
    measured(one, 12_000, 0, 0, 1.0)
    measured(one, 12_000 + 40 * MIB, 0, 0, 1.1)
    assert one.held == 40 * MIB


def test_many_small_messages_do_not_hide_a_large_handshake():
    one = connection(20 * MIB)
    one.client = b"client"
    for second in range(1, 101):
        one.delivered += 100 * (17 + one.credit)
        measured(one, 20 * MIB + second * 1_700, 0, 1, float(second))
    assert one.held == 20 * MIB
    assert one.since == 0.0, "messages are no progress of a handshake"
    assert unfinished.over_total([one], 3 * 20 * MIB - 1, 100.0) == [one]
    assert unfinished.over_total([one], 3 * 20 * MIB, 100.0) == []


def test_commands_after_a_small_handshake_are_covered_by_the_credit_of_messages():
    one = connection(200)
    one.client = b"client"
    one.delivered += 17
    measured(one, 217, 0, 1, 1.0)
    one.delivered += 17 + one.credit
    measured(one, 217 + 17 + 3_000, 0, 1, 2.0)
    assert one.held == 0


def test_a_body_of_twice_max_body_is_not_too_large_and_a_longer_message_is():
    assert not unfinished.is_too_large(connection(), 32 * MIB + 100, BOUNDS)
    assert unfinished.is_too_large(connection(), 34 * MIB, BOUNDS)
    read_since = connection()
    read_since.delivered += 16 * MIB
    assert not unfinished.is_too_large(read_since, 34 * MIB, BOUNDS)


def test_the_bound_for_all_connections_is_never_lower_than_for_a_few():
    assert Bounds.of(1024).total == 256 * MIB
    assert Bounds.of(1024 * MIB).total >= 8 * 2048 * MIB


def test_over_the_total_the_largest_and_longest_are_cut_and_not_a_new_upload():
    attackers = [connection(10 * MIB, since=0.0) for _ in range(30)]
    uploading = connection(16 * MIB, since=9.99)
    cut = unfinished.over_total([*attackers, uploading], 256 * MIB, 10.0)
    assert len(cut) == 6
    assert uploading not in cut
    assert unfinished.over_total([uploading], 256 * MIB, 10.0) == []
    large = connection(40 * MIB, since=0.0)
    assert unfinished.over_total([*attackers, large, uploading], 316 * MIB, 10.0) == [large]


def test_a_message_of_which_nothing_arrives_is_stalled_and_a_slow_one_is_not():
    one = connection(200_000, since=0.0)
    assert not unfinished.is_stalled(one, 9.9)
    assert unfinished.is_stalled(one, 10.0)
    measured(one, 200_001, 0, 0, 9.9)
    assert not unfinished.is_stalled(one, 19.0)
    assert not unfinished.is_stalled(connection(10_000), 1_000.0), "heartbeats of an idle client"


def grown(one: Connection, looks: int, memory: int) -> bool:
    one.small_frames = looks
    return unfinished.has_small_frames(one, memory)


def test_small_frames_are_an_attack_only_if_memory_grows_more_than_the_bytes():
    assert grown(connection(MIB), 3, 17 * MIB)
    assert not grown(connection(MIB), 3, 15 * MIB), "less than other causes explain"
    assert not grown(connection(5 * MIB), 3, 17 * MIB), "no more than a body needs"
    assert not grown(connection(MIB), 2, 17 * MIB), "too few looks"
    assert grown(connection(MIB), 1, 80 * MIB)
    assert not grown(connection(MIB), 0, 80 * MIB)


def test_memory_that_was_used_before_the_first_measurement_is_no_sign():
    one = Connection(fd=7, address="127.0.0.1", opened=0)
    measured(one, MIB, 0, 100 * MIB, 1.0)
    assert not grown(one, 3, 101 * MIB)
    assert grown(one, 3, 120 * MIB)


def test_a_delivered_message_ends_the_suspicion():
    one = connection(MIB)
    measured(one, 2 * MIB, 0, 0, 1.0)
    one.small_frames = 5
    one.delivered += 100
    measured(one, 3 * MIB, 0, 50 * MIB, 1.1)
    assert (one.small_frames, one.memory_before) == (0, 50 * MIB)


@pytest.mark.parametrize(
    "frame", [b"\1\0", b"\1\1x", b"\1\x40" + b"y" * 64, b"\3" + bytes(8), b"\3" + bytes(7) + b"\5abcde"]
)
@pytest.mark.parametrize("offset", [0, 1, 7, 30])
def test_small_frames_are_recognized_from_any_offset(frame: bytes, offset: int):
    assert is_small_frames((b"\x91" * offset + frame * 4096)[:4096])


def test_other_bytes_are_not_taken_for_small_frames():
    others = [
        b"",
        bytes(4096),
        os.urandom(4096),
        b"the quick brown fox " * 200,
        msgpack.packb(list(range(2000))),
        struct.pack("<1000i", *range(1000)),
        b"\1\0" * 40,
        b"\1\x04kind\1\x02id\1\0\0\0",
        b"\1\x64" + b"x" * 100 + b"\1\0" * 20,
    ]
    assert [each[:20] for each in others if is_small_frames(each)] == []


@pytest.mark.parametrize("size", [2, 3, 8])
def test_small_properties_with_different_names_are_recognized(size: int):
    names = range(1, 30_000, 17)
    data = b"".join(property(name.to_bytes(size, "big")) for name in names)
    for offset in (0, 5, 20):
        assert is_small_properties(data[offset : offset + 4096])


def test_other_bytes_are_not_taken_for_small_properties():
    handshake = property(b"Socket-Type", b"DEALER") + property(b"Identity", b"x" * 200)
    others = [
        b"",
        bytes(4096),
        os.urandom(4096),
        handshake,
        struct.pack("<500q", *[3] * 500),
        struct.pack("<1000i", *range(1000)),
        b"the quick brown fox " * 200,
        b"".join(property(b"x%d" % number, b"y" * 100) for number in range(100)),
    ]
    assert [each[:20] for each in others if is_small_properties(each)] == []
