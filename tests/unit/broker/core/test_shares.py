"""The slots that each client holds in a pool."""

from __future__ import annotations

from axon_zmq.broker.core.shares import Shares

A, B = b"a", b"b"


def test_a_client_holds_the_slots_of_its_active_runs():
    shares = Shares(2)
    for client in (A, A, B):
        shares.add(client)
    shares.remove(A, waits=False)
    assert (shares.held(A), shares.held(B), shares.held(b"c")) == (1, 1, 0)


def test_waiting_runs_count_only_beyond_the_number_that_is_free_of_charge():
    shares = Shares(2)
    held: list[int] = []
    for _ in range(4):
        shares.add(A)
        shares.set_waiting(A, waits=True)
        held.append(shares.held(A))
    assert (held, shares.waiting(A)) == ([0, 0, 1, 2], 4)
    shares.set_waiting(A, waits=False)
    assert (shares.held(A), shares.waiting(A)) == (2, 3)


def test_a_client_without_runs_is_forgotten():
    shares = Shares(2)
    shares.add(A)
    shares.set_waiting(A, waits=True)
    shares.remove(A, waits=True)
    assert (len(shares), shares.held(A), shares.waiting(A)) == (0, 0, 0)
