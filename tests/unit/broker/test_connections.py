"""Connections of the frontend: limits, reserved routing ids and takeovers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.broker import connections
from axon_zmq.broker.connections import AssignedIds, Connection, Connections, Identified

FIRST = b"\0\x10\x00\x00\x00"
LONG = b"0123456789abcdef"


def numbered(number: int) -> bytes:
    """The routing id that libzmq forms of a counter."""
    return b"\0" + (number % 2**32).to_bytes(4, "big")


def table(most: int = 100, per_address: int = 100) -> Connections:
    return Connections(most, per_address)


def opened(connections: Connections, fd: int, address: str = "127.0.0.1") -> Connection:
    """A connection that has completed its handshake."""
    connection, refusal, evicted = connections.add(fd, address, 0.0)
    assert (refusal, evicted) == ("", None)
    connections.handshakes += 1
    return connection


@given(start=st.integers(0, 2**32 - 1), accepted=st.integers(0, 10**6), offset=st.integers(0, 2**32 - 1))
def test_an_id_is_assigned_if_it_is_within_as_many_numbers_as_connections_were_accepted(
    start: int, accepted: int, offset: int
):
    assert AssignedIds(numbered(start)).contains(numbered(start + offset), accepted) is (offset <= accepted)


@given(start=st.integers(0, 2**32 - 1), accepted=st.integers(0, 10**6), chosen=st.binary(max_size=20))
def test_an_id_of_another_length_is_never_assigned(start: int, accepted: int, chosen: bytes):
    if len(chosen) != 4:
        assert not AssignedIds(numbered(start)).contains(b"\0" + chosen, accepted)


def test_a_chosen_id_of_the_form_that_zeromq_assigns_is_reserved():
    some = table()
    connection = opened(some, 7)
    assert some.identify(connection, b"\0\x6b\x8b\x45\x67", AssignedIds(FIRST)) is Identified.RESERVED
    assert some.identify(connection, numbered(0x10000001), AssignedIds(FIRST)) is Identified.NEW
    assert some.identify(opened(some, 8), b"\0mine", AssignedIds(FIRST)) is Identified.RESERVED
    assert "10" not in repr(AssignedIds(FIRST))


def test_a_routing_id_longer_than_zmtp_allows_is_not_remembered():
    some, assigned = table(), AssignedIds(FIRST)
    assert some.identify(opened(some, 7), b"x" * 255, assigned) is Identified.NEW
    connection = opened(some, 8)
    assert some.identify(connection, b"x" * 256, assigned) is Identified.TOO_LONG
    assert connection.client == b""


def test_connections_beyond_the_total_are_refused_until_one_has_ended():
    some = table(most=2)
    opened(some, 7), opened(some, 8)
    third, reason, _ = some.add(9, "127.0.0.1", 0.0)
    assert "2 connections are open, the limit is 2 (AXON_MAX_CONNECTIONS)" in reason
    some.remove(third.fd)
    some.remove(7)
    opened(some, 9)
    assert (len(some), repr(some)) == (2, "<Connections 2 open, 4 accepted>")


def test_the_oldest_connection_without_a_message_makes_room_for_a_new_one():
    some, later = table(most=3), connections.FIRST_MESSAGE_S
    active, first, second = [opened(some, fd) for fd in (7, 8, 9)]
    some.identify(active, LONG, AssignedIds(FIRST))
    assert some.add(10, "127.0.0.1", later / 2).refusal, "a new connection has time to send its first message"
    some.remove(10)
    third, refusal, evicted = some.add(10, "127.0.0.1", later)
    assert (refusal, evicted) == ("", first)
    assert some.add(11, "127.0.0.1", later).evicted is second
    some.remove(8)
    some.remove(9)
    assert some.add(12, "127.0.0.1", later).refusal, "the connection that has sent a message keeps its place"
    some.remove(12)
    some.identify(third, b"another client's id", AssignedIds(FIRST))
    assert some.add(12, "127.0.0.1", 2 * later).evicted == some.open[11]


def test_a_connection_that_was_cut_is_not_evicted():
    some = table(most=2)
    first, second = opened(some, 7), opened(some, 8)
    first.cut = True
    assert some.add(9, "127.0.0.1", connections.FIRST_MESSAGE_S).evicted is second


@pytest.mark.parametrize("local", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", ""])
def test_the_limit_for_each_address_holds_for_other_machines_only(local: str):
    some = table(per_address=2)
    for fd in range(5):
        opened(some, fd, local)
    for address in ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.7"):
        opened(some, 10 + len(some), address), opened(some, 10 + len(some), address)
        extra, reason, _ = some.add(100, address, 0.0)
        assert f"2 connections from {address} are open" in reason
        assert "AXON_MAX_CONNECTIONS_PER_ADDRESS" in reason
        some.remove(extra.fd)
    some.remove(15)
    opened(some, 15, "192.0.2.1")


def test_a_routing_id_used_by_another_open_connection_is_a_takeover():
    some, assigned = table(), AssignedIds(FIRST)
    one, two = opened(some, 7), opened(some, 8)
    assert some.identify(one, LONG, assigned) is Identified.NEW
    assert some.identify(two, LONG, assigned) is Identified.TAKEOVER
    assert some.identify(one, LONG, assigned) is Identified.TAKEOVER


def test_a_takeover_is_found_although_zeromq_has_closed_the_earlier_connection():
    some, assigned = table(), AssignedIds(FIRST)
    assert some.identify(opened(some, 7), LONG, assigned) is Identified.NEW
    two = opened(some, 8)
    some.remove(7)  # closed by libzmq, because the handshake of the second one is complete
    assert some.identify(two, LONG, assigned) is Identified.TAKEOVER


def test_a_reconnect_after_the_end_of_the_earlier_connection_is_no_takeover():
    some, assigned = table(), AssignedIds(FIRST)
    some.identify(opened(some, 7), LONG, assigned)
    some.remove(7)
    assert some.identify(opened(some, 7), LONG, assigned) is Identified.NEW
    # The next one is accepted before the end of the earlier one is reported, but completes its handshake after it.
    again = some.add(8, "127.0.0.1", 0.0).connection
    some.remove(7)
    some.handshakes += 1
    assert some.identify(again, LONG, assigned) is Identified.NEW


def test_a_reused_descriptor_is_another_connection():
    some, assigned = table(), AssignedIds(FIRST)
    some.identify(opened(some, 7), LONG, assigned)
    assert some.identify(opened(some, 7), b"another client's id", assigned) is Identified.NEW
    assert len(some) == 1


@pytest.mark.parametrize("other", [b"another client's id", numbered(0x10000001)])
def test_a_late_message_of_an_ended_connection_makes_no_takeover(other: bytes):
    some, assigned = table(), AssignedIds(FIRST)
    some.identify(opened(some, 7), LONG, assigned)
    some.remove(7)
    reused = opened(some, 7)
    assert some.identify(reused, LONG, assigned) is Identified.NEW  # read only now, with the same descriptor
    assert some.identify(reused, other, assigned) is Identified.NEW
    assert some.identify(opened(some, 8), LONG, assigned) is Identified.NEW


def test_a_short_routing_id_is_reported_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "CLIENTS_KEPT", 2)
    some = table()
    assert [some.is_short(each) for each in (b"web-1", b"web-1", b"web-2", LONG, FIRST)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert some.is_short(b"web-3")
    assert some.is_short(b"web-1"), "it was forgotten"


def test_the_last_users_of_routing_ids_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "CLIENTS_KEPT", 1)
    some, assigned = table(), AssignedIds(FIRST)
    some.identify(opened(some, 7), LONG, assigned)
    some.identify(opened(some, 8), b"another", assigned)
    assert some.identify(opened(some, 9), LONG, assigned) is Identified.NEW
