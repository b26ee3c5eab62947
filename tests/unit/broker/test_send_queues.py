"""Send queues: messages for clients whose pipe is full."""

from __future__ import annotations

from itertools import pairwise

from axon_zmq.broker.send_queues import (
    LATEST_RETRY,
    InFlight,
    SendQueues,
)
from axon_zmq.protocol.msgpack import unpack


class Tracker:
    def __init__(self) -> None:
        self.done = False


def test_large_messages_are_counted_until_zeromq_has_let_go_of_them():
    flight = InFlight(per_client=10)
    first, second = Tracker(), Tracker()
    assert flight.has_room(b"a")
    flight.add(b"a", first, 100)  # one goes whatever its size
    assert not flight.has_room(b"a")
    assert flight.has_room(b"b")
    first.done = True
    assert flight.has_room(b"a")
    flight.add(b"a", second, 9)
    assert flight.has_room(b"a")
    flight.add(b"a", Tracker(), 1)
    assert not flight.has_room(b"a")
    flight.forget(b"a")
    assert flight.has_room(b"a")
    assert repr(flight) == "<InFlight 0 clients>"


def test_clients_share_what_may_be_in_flight_and_who_has_taken_everything_is_forgotten():
    flight = InFlight(per_client=100, in_all=200)
    trackers = [Tracker() for _ in range(40)]
    for number, tracker in enumerate(trackers[:4]):
        flight.add(b"%d" % number, tracker, 50)
    assert not flight.has_room(b"0")  # 200 for four
    assert flight.has_room(b"new")
    for tracker in trackers[:3]:
        tracker.done = True
    assert flight.has_room(b"0")
    for number, tracker in enumerate(trackers):
        tracker.done = True  # read, and left: nothing is ever sent to it again
        flight.add(b"once %d" % number, tracker, 50)
    assert int(repr(flight).split()[1]) <= 17


def test_past_the_bound_over_all_only_who_holds_more_than_its_share_is_blocked():
    outboxes = SendQueues(in_all=10_000)
    assert not outboxes.add(b"hog", b"complete", b"1", b"x" * 9000)
    assert not outboxes.add(b"modest", b"complete", b"1", b"x" * 1500)
    assert not outboxes.add(b"modest", b"chunk", b"2", b"x" * 1500)
    assert outboxes.add(b"hog", b"chunk", b"2", b"x")


def test_a_first_answer_has_a_place_only_while_there_is_one():
    outboxes = SendQueues(in_all=10_000)
    for number in range(100):
        outboxes.add(b"%d" % number, b"complete", b"1", b"x" * 5000)
    kept = [outboxes.waiting[b"%d" % number][0][0] for number in range(100)]
    assert kept == [b"complete"] * 3 + [b"error"] * 97


def test_answers_that_wait_do_not_end_a_clients_streams():
    outboxes = SendQueues(per_client=1000, answers=10_000)
    assert not outboxes.add(b"a", b"complete", b"1", b"x" * 5000)
    assert not outboxes.add(b"a", b"chunk", b"2", b"x" * 500)
    assert outboxes.add(b"a", b"chunk", b"2", b"x" * 500)


def test_who_stays_full_is_tried_less_and_less_often_and_who_takes_some_at_once_again():
    outboxes = SendQueues()
    for _ in range(10):
        outboxes.add(b"a", b"chunk", b"1", b"x")
    tries: list[float] = []
    now = 0.0
    while now < 1.0:
        now = max(now, outboxes.next_retry())
        outboxes.flush_due(lambda *_, at=now: bool(tries.append(at)), now)
    gaps = [round(later - earlier, 6) for earlier, later in pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == LATEST_RETRY
    assert len(tries) < 30
    outboxes.flush_due(lambda *_: len(outboxes.waiting[b"a"]) > 5, now + 1)
    assert outboxes.next_retry() < now + 1 + 2 * LATEST_RETRY / 10
    outboxes.flush_due(lambda *_: True, now + 2)
    assert not outboxes.waiting
    assert outboxes.next_retry() == float("inf")


def test_a_blocked_client_loses_chunks_but_never_its_terminal():
    outboxes = SendQueues(per_client=2000)
    assert not outboxes.add(b"a", b"chunk", b"1", b"x" * 1500)
    assert outboxes.add(b"a", b"chunk", b"1", b"x" * 200)
    assert outboxes.add(b"a", b"chunk", b"2", b"x")  # dropped, and said each time: this run may be new
    assert outboxes.add(b"a", b"pong", b"3", b"x")
    outboxes.add(b"a", b"error", b"1", b"the end")
    sent: list[tuple[bytes, bytes, bytes, bytes]] = []
    outboxes.flush(b"a", lambda *message: not sent.append(message))
    assert [kind for _, kind, _, _ in sent] == [b"chunk", b"chunk", b"error"]
    assert not outboxes.waiting
    assert not outboxes.add(b"a", b"chunk", b"2", b"x")  # unblocked


def test_an_outbox_full_of_the_smallest_chunks_still_has_a_place_for_the_terminal():
    outboxes = SendQueues()
    while not outboxes.add(b"a", b"chunk", b"1", b""):
        pass
    outboxes.add(b"a", b"error", b"1", b"the end")
    assert outboxes.waiting[b"a"][-1] == (b"error", b"1", b"the end")


def test_answers_over_their_bound_become_slow_consumer():
    outboxes = SendQueues(answers=2000)
    for id in (b"1", b"2", b"3"):
        outboxes.add(b"a", b"complete", id, b"x" * 1500)
    kept = list(outboxes.waiting[b"a"])
    assert [kind for kind, _, _ in kept] == [b"complete", b"complete", b"error"]
    assert unpack(kept[-1][2], "it")["error_type"] == "slow_consumer"


def test_the_bound_over_all_clients_hits_the_one_that_passes_it():
    outboxes = SendQueues(per_client=1000, in_all=1500)
    assert not outboxes.add(b"a", b"chunk", b"1", b"x" * 700)
    assert outboxes.add(b"b", b"chunk", b"1", b"x" * 700)
    outboxes.forget(b"a")
    outboxes.forget(b"b")
    assert repr(outboxes) == "<SendQueues 0 clients, 0 blocked, 0 bytes>"


def test_flushing_stops_where_the_pipe_is_full_and_keeps_the_order():
    outboxes = SendQueues()
    for number in range(3):
        outboxes.add(b"a", b"chunk", b"%d" % number, b"x")
    took: list[bytes] = []

    def send(_client: bytes, _kind: bytes, id: bytes, _body: bytes) -> bool:
        if len(took) == 1:
            return False
        took.append(id)
        return True

    outboxes.flush(b"a", send)
    assert took == [b"0"]
    assert [id for _, id, _ in outboxes.waiting[b"a"]] == [b"1", b"2"]
