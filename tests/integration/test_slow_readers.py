"""Clients that do not read: a broker holds a bounded number of bytes for them, and other clients are not delayed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
import zmq

from axon_zmq import Client
from axon_zmq.broker.send_queues import (
    ANSWER_BYTES_PER_CLIENT,
    IN_FLIGHT_BYTES_PER_CLIENT,
    QUEUE_BYTES_TOTAL,
)
from axon_zmq.broker.server import CLIENT_PIPE, LARGE_MESSAGE
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack, unpack
from tests.support.daemon import Daemon, running, wait_until


@contextmanager
def stalled(own: Daemon, count: int = 1) -> Iterator[list[zmq.Socket[bytes]]]:
    """Clients that read nothing and whose receive buffers are minimal."""
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


def test_large_unread_answers_stay_out_of_the_brokers_memory():
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


def test_many_large_answers_to_a_client_that_reads_do_not_make_it_a_slow_consumer():
    with running("run") as own, Client(own.endpoint) as client, ThreadPoolExecutor(20) as pool:
        large = "x" * (2 * limits.MIB)  # over 6 MiB each, with their messages

        def length(number: int) -> int:
            return len(client.run("echo", f"{number:02} {large}").result)

        assert set(pool.map(length, range(20))) == {len(large) + 3}
        assert "reads too slowly" not in own.log("broker")


def test_a_silent_client_is_not_taken_for_a_dead_host():
    with running("run_stream") as own, stalled(own) as [socket]:
        flood = {"agent": {"model": "synthetic:tokens=400,delay_ms=0,size=4000"}, "prompt": "x"}
        socket.send_multipart([b"run_stream", b"1", b"", pack(flood)])
        wait_until(lambda: "run_stream complete" in own.log("run_stream-1"), "its end")
        began = time.monotonic()
        silent = limits.DEAD_HOST + 8
        wait_until(lambda: time.monotonic() > began + silent, "time in which it reads nothing", 2 * silent)
        assert "did not answer" not in own.log("broker")
        text, kind = "", b""
        while kind != b"complete":
            assert socket.poll(60_000)
            kind, _, body = socket.recv_multipart()[-3:]
            if kind == b"chunk":  # a late worker merges deltas, so their number varies
                text += unpack(body, "chunk")["data"]
        assert text == unpack(body, "complete")["result"]


def test_large_answers_arrive_in_order_and_complete():
    with running("run_stream") as own, Client(own.endpoint) as client:
        size = LARGE_MESSAGE
        chunks = client.stream({"model": f"synthetic:tokens=40,delay_ms=0,size={size}"}, "x")
        seqs = [event.seq for event in chunks]
        assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.timeout(480)
def test_many_clients_that_do_not_read_cost_the_broker_little_memory():
    with running("run_stream") as own, stalled(own, 100) as sockets:
        for socket in sockets:
            flood = {"agent": {"model": "synthetic:tokens=500,delay_ms=0,size=8000"}, "prompt": "x"}
            socket.send_multipart([b"run_stream", b"1", b"", pack(flood)])
        broker = psutil.Process(own.processes["broker"].pid)
        before = broker.memory_info().rss
        ended = lambda: own.log("run_stream-1").count(" messages\n") == 100  # noqa: E731
        wait_until(ended, "the ends of all runs", 300)
        broker.cpu_percent()
        shares: list[float] = []

        def at_rest() -> bool:
            shares.append(broker.cpu_percent(interval=2))
            return shares[-1] < 5

        wait_until(at_rest, "the broker to come to rest", 100)
        grown = (broker.memory_info().rss - before) / limits.MIB
        print(f"100 clients that do not read: {shares[-1]:.1f}% of a core, {grown:.0f} MiB")
        pipes = 100 * CLIENT_PIPE * 8000
        assert grown * limits.MIB < 3 * QUEUE_BYTES_TOTAL + pipes
