"""Rule 9: who does not read is put off, bounded in bytes, and nobody else notices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import psutil
import pytest
import zmq

from axon_zmq import Client
from axon_zmq.broker.send_queues import (
    ANSWER_BYTES_PER_CLIENT,
    IN_FLIGHT_BYTES_PER_CLIENT,
    MAX_RETRY_DELAY_S,
    QUEUE_BYTES_TOTAL,
    InFlight,
    SendQueues,
)
from axon_zmq.broker.server import CLIENT_PIPE, LARGE_MESSAGE
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack
from tests.conftest import Daemon, running, wait_until


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
    flight = InFlight(per_client=100, total=200)
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
    outboxes = SendQueues(total=10_000)
    assert not outboxes.add(b"hog", b"complete", b"1", b"x" * 9000)
    assert not outboxes.add(b"modest", b"complete", b"1", b"x" * 1500)
    assert not outboxes.add(b"modest", b"chunk", b"2", b"x" * 1500)
    assert outboxes.add(b"hog", b"chunk", b"2", b"x")


def test_a_first_answer_has_a_place_only_while_there_is_one():
    outboxes = SendQueues(total=10_000)
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
    assert gaps[-1] == MAX_RETRY_DELAY_S
    assert len(tries) < 30
    outboxes.flush_due(lambda *_: len(outboxes.waiting[b"a"]) > 5, now + 1)
    assert outboxes.next_retry() < now + 1 + 2 * MAX_RETRY_DELAY_S / 10
    outboxes.flush_due(lambda *_: True, now + 2)
    assert not outboxes.waiting
    assert outboxes.next_retry() == float("inf")


@contextmanager
def stalled(own: Daemon, count: int = 1) -> Iterator[list[zmq.Socket[bytes]]]:
    """Clients that read nothing, and have no room of their own for what they do not read."""
    context = zmq.Context()
    try:
        sockets = [context.socket(zmq.DEALER) for _ in range(count)]
        for socket in sockets:
            socket.setsockopt(zmq.RCVHWM, 1)
            socket.setsockopt(zmq.RCVBUF, 4096)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(own.endpoint)
        yield sockets
    finally:
        context.destroy(linger=0)


def test_large_answers_that_are_not_read_stay_out_of_the_brokers_memory():
    with running("run") as own, Client(own.endpoint) as healthy, stalled(own) as [socket]:
        broker = psutil.Process(own.processes["broker"].pid)
        before = broker.memory_info().rss
        large = "x" * (4 * limits.MIB)
        for number in range(40):  # 160 MiB of answers, and twice as much again in their messages
            body = {"agent": "echo", "prompt": f"{number} {large}"}
            socket.send_multipart([b"run", b"%d" % number, b"", pack(body)])
        wait_until(lambda: "too slowly" in own.log("broker") or "slow_consumer" in own.log("run-1"), "its end", 60)
        wait_until(lambda: healthy.ping()["modes"]["run"]["free"] == 256, "all runs' ends", 60)
        grown = broker.memory_info().rss - before
        print(f"40 answers of over 12 MiB each that nobody read: the broker grew by {grown / limits.MIB:.0f} MiB")
        assert grown < ANSWER_BYTES_PER_CLIENT + IN_FLIGHT_BYTES_PER_CLIENT + 96 * limits.MIB
        assert healthy.run("echo", "served").result == "served"
        ends = []
        while socket.poll(2000):
            kind, *_ = socket.recv_multipart()[-3:]
            ends.append(kind)
        assert set(ends) >= {b"complete", b"error"}


def test_many_large_answers_at_once_to_a_client_that_reads_are_no_slow_consumers():
    with running("run") as own, Client(own.endpoint) as client, ThreadPoolExecutor(20) as pool:
        large = "x" * (2 * limits.MIB)  # over 6 MiB each, with their messages

        def length(number: int) -> int:
            return len(client.run("echo", f"{number:02} {large}").result)

        assert set(pool.map(length, range(20))) == {len(large) + 3}
        assert "reads too slowly" not in own.log("broker")


def test_a_client_that_reads_nothing_for_longer_than_a_dead_host_is_given_is_still_there():
    with running("run_stream") as own, stalled(own) as [socket]:
        flood = {"agent": {"model": "synthetic:tokens=400,delay_ms=0,size=4000"}, "prompt": "x"}
        socket.send_multipart([b"run_stream", b"1", b"", pack(flood)])
        wait_until(lambda: "run_stream complete" in own.log("run_stream-1"), "its end", 30)
        began = time.monotonic()
        silent = limits.DEAD_HOST + 8
        wait_until(lambda: time.monotonic() > began + silent, "time in which it reads nothing", 2 * silent)
        assert "did not answer" not in own.log("broker")
        kinds: list[bytes] = []
        while b"complete" not in kinds:
            assert socket.poll(5000)
            kinds.append(socket.recv_multipart()[-3])
        assert kinds.count(b"chunk") == 400


def test_large_answers_come_in_order_and_whole():
    with running("run_stream") as own, Client(own.endpoint) as client:
        size = LARGE_MESSAGE
        chunks = client.stream({"model": f"synthetic:tokens=40,delay_ms=0,size={size}"}, "x")
        seqs = [event.seq for event in chunks]
        assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.timeout(240)
def test_many_clients_that_do_not_read_cost_the_broker_little():
    with running("run_stream") as own, stalled(own, 100) as sockets:
        for socket in sockets:
            flood = {"agent": {"model": "synthetic:tokens=700,delay_ms=0,size=8000"}, "prompt": "x"}
            socket.send_multipart([b"run_stream", b"1", b"", pack(flood)])
        broker = psutil.Process(own.processes["broker"].pid)
        before = broker.memory_info().rss
        ended = lambda: own.log("run_stream-1").count(" messages\n") == 100  # noqa: E731
        wait_until(ended, "the ends of all runs", 100)
        broker.cpu_percent()
        shares: list[float] = []

        def at_rest() -> bool:
            shares.append(broker.cpu_percent(interval=2))
            return shares[-1] < 5

        wait_until(at_rest, "the broker to come to rest", 40)
        grown = (broker.memory_info().rss - before) / limits.MIB
        print(f"100 clients that do not read: {shares[-1]:.1f}% of a core, {grown:.0f} MiB")
        pipes = 100 * CLIENT_PIPE * 8000
        assert grown * limits.MIB < 3 * QUEUE_BYTES_TOTAL + pipes
