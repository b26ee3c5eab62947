"""Send queues: messages for clients whose pipe is full."""

from __future__ import annotations

from itertools import pairwise

from axon_zmq.broker.send_queues import (
    MAX_RETRY_DELAY_S,
    PipeBytes,
    SendQueues,
)
from axon_zmq.protocol.msgpack import unpack


class Tracker:
    def __init__(self) -> None:
        self.done = False


def test_large_messages_are_counted_until_zeromq_has_released_them():
    pipes = PipeBytes(per_client=10)
    first, second = Tracker(), Tracker()
    assert pipes.has_room(b"a")
    pipes.add(b"a", first, 100)  # one message is sent whatever its size
    assert not pipes.has_room(b"a")
    assert pipes.has_room(b"b")
    first.done = True
    assert pipes.has_room(b"a")
    pipes.add(b"a", second, 9)
    assert pipes.has_room(b"a")
    pipes.add(b"a", Tracker(), 1)
    assert not pipes.has_room(b"a")
    pipes.forget(b"a")
    assert pipes.has_room(b"a")
    assert repr(pipes) == "<PipeBytes 0 clients, 0 bytes>"


def test_clients_share_the_bytes_in_flight_and_drained_clients_are_forgotten():
    pipes = PipeBytes(per_client=100, total=200)
    trackers = [Tracker() for _ in range(40)]
    for number, tracker in enumerate(trackers[:4]):
        pipes.add(b"%d" % number, tracker, 50)
    assert not pipes.has_room(b"0")  # 200 bytes for four clients
    assert pipes.has_room(b"new")
    for tracker in trackers[:3]:
        tracker.done = True
    assert pipes.has_room(b"0")
    for number, tracker in enumerate(trackers):
        tracker.done = True  # it has read everything and disconnected
        pipes.add(b"once %d" % number, tracker, 50)
    assert int(repr(pipes).split()[1]) <= 17


def test_large_messages_in_all_pipes_are_limited_whatever_the_number_of_clients():
    pipes = PipeBytes(per_client=100, total=200, limit=1000)
    trackers = [Tracker() for _ in range(40)]
    sent = 0
    for number, tracker in enumerate(trackers):
        if pipes.has_room(b"%d" % number):
            pipes.add(b"%d" % number, tracker, 60)
            sent += 60
    assert sent == 1020  # the last message may exceed the limit
    assert not pipes.has_room(b"new")
    pipes.forget(b"0")
    assert pipes.has_room(b"new")
    pipes.add(b"new", Tracker(), 60)
    trackers[16].done = True  # a client that is not asked about has read; some clients are examined at each attempt
    assert any(pipes.has_room(b"another") for _ in range(3))


def test_over_the_total_limit_only_clients_above_their_share_are_blocked():
    outboxes = SendQueues(total=10_000)
    assert not outboxes.add(b"hog", b"complete", b"1", b"x" * 9000)
    assert not outboxes.add(b"modest", b"complete", b"1", b"x" * 1500)
    assert not outboxes.add(b"modest", b"chunk", b"2", b"x" * 1500)
    assert outboxes.add(b"hog", b"chunk", b"2", b"x")


def test_the_first_answer_of_a_client_is_queued_only_while_there_is_room():
    outboxes = SendQueues(total=10_000)
    for number in range(100):
        outboxes.add(b"%d" % number, b"complete", b"1", b"x" * 5000)
    kept = [outboxes.waiting[b"%d" % number][0][0] for number in range(100)]
    assert kept == [b"complete"] * 3 + [b"error"] * 97


def test_queued_answers_do_not_end_the_streams_of_a_client():
    outboxes = SendQueues(per_client=1000, answers=10_000)
    assert not outboxes.add(b"a", b"complete", b"1", b"x" * 5000)
    assert not outboxes.add(b"a", b"chunk", b"2", b"x" * 500)
    assert outboxes.add(b"a", b"chunk", b"2", b"x" * 500)


def test_a_full_client_is_retried_less_often_until_it_reads_again():
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
    assert gaps[-1] == MAX_RETRY_DELAY_S
    assert len(tries) < 30
    outboxes.flush_due(lambda *_: len(outboxes.waiting[b"a"]) > 5, now + 1)
    assert outboxes.next_retry() < now + 1 + 2 * MAX_RETRY_DELAY_S / 10
    outboxes.flush_due(lambda *_: True, now + 2)
    assert not outboxes.waiting
    assert outboxes.next_retry() == float("inf")


def test_a_blocked_client_loses_chunks_but_not_the_terminal_message():
    outboxes = SendQueues(per_client=2000)
    assert not outboxes.add(b"a", b"chunk", b"1", b"x" * 1500)
    assert outboxes.add(b"a", b"chunk", b"1", b"x" * 200)
    assert outboxes.add(b"a", b"chunk", b"2", b"x")  # dropped, and reported each time, because this run may be new
    assert outboxes.add(b"a", b"pong", b"3", b"x")
    outboxes.add(b"a", b"error", b"1", b"the end")
    sent: list[tuple[bytes, bytes, bytes, bytes]] = []
    outboxes.flush(b"a", lambda *message: not sent.append(message))
    assert [kind for _, kind, _, _ in sent] == [b"chunk", b"chunk", b"error"]
    assert not outboxes.waiting
    assert not outboxes.add(b"a", b"chunk", b"2", b"x")  # unblocked


def test_a_queue_full_of_small_chunks_still_has_room_for_the_terminal_message():
    outboxes = SendQueues()
    while not outboxes.add(b"a", b"chunk", b"1", b""):
        pass
    outboxes.add(b"a", b"error", b"1", b"the end")
    assert outboxes.waiting[b"a"][-1] == (b"error", b"1", b"the end")


def test_answers_over_the_limit_become_slow_consumer_errors():
    outboxes = SendQueues(answers=2000)
    for id in (b"1", b"2", b"3"):
        outboxes.add(b"a", b"complete", id, b"x" * 1500)
    kept = list(outboxes.waiting[b"a"])
    assert [kind for kind, _, _ in kept] == [b"complete", b"complete", b"error"]
    assert unpack(kept[-1][2], "it")["error_type"] == "slow_consumer"


def test_the_client_that_exceeds_the_total_limit_is_blocked():
    outboxes = SendQueues(per_client=1000, total=1500)
    assert not outboxes.add(b"a", b"chunk", b"1", b"x" * 700)
    assert outboxes.add(b"b", b"chunk", b"1", b"x" * 700)
    outboxes.forget(b"a")
    outboxes.forget(b"b")
    assert repr(outboxes) == "<SendQueues 0 clients, 0 blocked, 0 bytes>"


def test_flushing_stops_at_a_full_pipe_and_keeps_the_order():
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
