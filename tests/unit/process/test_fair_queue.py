"""Queued runs are served round-robin over clients."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.process.fair_queue import FairQueue


class Item:
    def __init__(self, client: bytes, number: int) -> None:
        self.client, self.number, self.size = client, number, number


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(0, 9)), max_size=60))
def test_no_waiting_client_is_skipped_by_the_fair_queue(arrivals):
    queue: FairQueue[Item] = FairQueue()
    waiting: dict[bytes, deque[Item]] = {}
    for client, number in arrivals:
        item = Item(client, number)
        waiting.setdefault(client, deque()).append(item)
        queue.push(item)
    served_in_round: set[bytes] = set()
    while queue.count:
        item = queue.pop()
        assert waiting[item.client].popleft() is item  # the order of each client
        if item.client in served_in_round:
            assert not [c for c, items in waiting.items() if items and c not in served_in_round]
            served_in_round = set()
        served_in_round.add(item.client)
    assert queue.bytes == 0
    assert [queue.bytes_of_client(client) for client in waiting] == [0] * len(waiting)
    assert not any(waiting.values())


def test_runs_can_be_removed_from_the_queue_and_returned_to_it():
    queue: FairQueue[Item] = FairQueue()
    items = [Item(b"a", number) for number in (1, 2, 3)]
    for item in items:
        queue.push(item)
    queue.remove(items[1])
    assert (queue.count, queue.bytes, queue.of_client(b"a")) == (2, 4, 2)
    queue.push(Item(b"b", 5))
    queue.grow(items[0], 7)
    assert (queue.bytes, queue.bytes_of_client(b"a"), queue.bytes_of_client(b"b")) == (16, 11, 5)
    queue.grow(items[0], -7)
    queue.remove(next(item for item in queue.firsts() if item.client == b"b"))
    first = queue.pop()
    queue.push_front(first)
    assert [queue.pop(), queue.pop()] == [items[0], items[2]]
    with pytest.raises(KeyError):
        queue.remove(items[1])


def test_a_client_that_is_held_back_keeps_its_place_and_its_order():
    queue: FairQueue[Item] = FairQueue()
    for client, number in ((b"a", 1), (b"a", 2), (b"b", 3), (b"c", 4)):
        queue.push(Item(client, number))
    assert queue.has_others(b"a")
    first, second = (queue.pop_unless(lambda client: client == b"a") for _ in range(2))
    assert [first and first.number, second and second.number] == [3, 4]
    assert queue.pop_unless(lambda _: True) is None
    assert not queue.has_others(b"a")
    assert queue.has_others(b"b")
    queue.push(Item(b"b", 5))
    assert [queue.pop().number for _ in range(3)] == [1, 5, 2]
    assert not queue.has_others(b"a")
    assert (queue.count, queue.bytes) == (0, 0)
