"""Rule 9: who does not read is put off, bounded in bytes, and nobody else notices."""

from __future__ import annotations

import time
from itertools import pairwise

import psutil
import zmq

from axon_zmq import Client, limits, wire
from axon_zmq.broker.outboxes import LATEST_RETRY, InFlight, Outboxes
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


def test_who_stays_full_is_tried_less_and_less_often_and_who_takes_some_at_once_again():
    outboxes = Outboxes()
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


def stalled(own: Daemon, context: zmq.Context) -> zmq.Socket:
    """A client that reads nothing, and has no room of its own for what it does not read."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.setsockopt(zmq.RCVBUF, 4096)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(own.endpoint)
    return socket


def test_large_answers_that_are_not_read_stay_out_of_the_brokers_memory():
    with running("run") as own, Client(own.endpoint) as healthy:
        context = zmq.Context()
        socket = stalled(own, context)
        broker = psutil.Process(own.processes["broker"].pid)
        before = broker.memory_info().rss
        large = "x" * (4 * limits.MIB)
        for number in range(60):  # 240 MiB of answers, and as much again in their messages
            body = {"agent": "echo", "prompt": f"{number} {large}"}
            socket.send_multipart([b"run", b"%d" % number, b"", wire.pack(body)])
        wait_until(lambda: "is too slow" in own.log("broker") or "slow_consumer" in own.log("run-1"), "its end", 60)
        wait_until(lambda: healthy.ping()["modes"]["run"]["free"] == 256, "all runs' ends", 60)
        assert broker.memory_info().rss - before < 120 * limits.MIB
        assert healthy.run("echo", "served").result == "served"
        ends = []
        while socket.poll(2000):
            kind, *_ = socket.recv_multipart()[-3:]
            ends.append(kind)
        assert set(ends) >= {b"complete", b"error"}
        socket.close(0)
        context.term()


def test_large_answers_come_in_order_and_whole():
    with running("run_stream") as own, Client(own.endpoint) as client:
        size = limits.LARGE_MESSAGE
        chunks = client.stream({"model": f"synthetic:tokens=40,delay_ms=0,size={size}"}, "x")
        seqs = [event.seq for event in chunks]
        assert seqs == list(range(1, len(seqs) + 1))


def test_many_clients_that_do_not_read_cost_the_broker_little():
    with running("run_stream") as own:
        context = zmq.Context()
        sockets = [stalled(own, context) for _ in range(50)]
        for socket in sockets:
            flood = {"agent": {"model": "synthetic:tokens=1500,delay_ms=0,size=4000"}, "prompt": "x"}
            socket.send_multipart([b"run_stream", b"1", b"", wire.pack(flood)])
        done = lambda: own.log("run_stream-1").count("run_stream complete") == 50  # noqa: E731
        wait_until(done, "the ends of all runs", 60)
        broker = psutil.Process(own.processes["broker"].pid)
        before, began = sum(broker.cpu_times()[:2]), time.monotonic()
        wait_until(lambda: time.monotonic() > began + 2, "two seconds")
        share = (sum(broker.cpu_times()[:2]) - before) / (time.monotonic() - began)
        print(f"the broker spends {share:.1%} of a core on 50 clients that do not read")
        assert share < 0.25
        for socket in sockets:
            socket.close(0)
        context.term()
