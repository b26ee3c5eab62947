"""Memory of workers: what a body costs, what remains of it, and the limit of a worker."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from axon_zmq import Client
from axon_zmq.errors import AxonError
from axon_zmq.protocol import limits
from axon_zmq.protocol.limits import MIB
from axon_zmq.protocol.msgpack import count_items, pack
from tests.support.daemon import Daemon, Dealer, running, wait_until

BASE = 64 * MIB
"""Memory that any body may cost, in addition to `FACTOR` times its size."""
FACTOR = 8
RETURNED = 150 * MIB
"""Memory that a worker may keep after large bodies. 128 MiB of it are messages for replay."""


@pytest.fixture(scope="module")
def own() -> Iterator[Daemon]:
    with running("run", "run_stream") as daemon:
        with Client(daemon.endpoint) as client:
            for number in range(8):  # 8 threads, so that no further one is started
                client.run("echo", f"{number}" * 5000)
                client.stream("echo", f"{number}" * 5000).complete()
        yield daemon


@contextmanager
def growth(pid: int) -> Generator[list[int]]:
    """Measure by how many bytes a process grows at most, every 2 ms; the result is added to the list at the end."""
    process = psutil.Process(pid)
    before = peak = process.memory_info().rss
    done = threading.Event()

    def measure() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=measure)
    thread.start()
    grown: list[int] = []
    try:
        yield grown
    finally:
        done.set()
        thread.join()
        grown.append(peak - before)


def history(kind: str, part: dict[str, Any], items: int) -> dict[str, Any]:
    """A body with a history of one message, which has as many parts as its number of items allows."""
    each = count_items(pack(part), items)
    parts = [part] * ((items - 50) // each)
    return {"agent": "echo", "prompt": "x", "message_history": [{"kind": kind, "parts": parts}]}


ITEMS = limits.MAX_ITEMS
BODIES = {
    "text": lambda size: {"agent": "echo", "prompt": "x" * size},
    "wide text": lambda size: {"agent": "echo", "prompt": "x" * size + "\N{GRINNING FACE}"},
    "bytes": lambda size: {
        "agent": "echo",
        "prompt": [{"kind": "binary", "data": b"x" * size, "media_type": "image/png"}],
    },
    "many parts": lambda _size: history("request", {"part_kind": "user-prompt", "content": ""}, ITEMS),
    "many texts": lambda _size: history("response", {"part_kind": "text", "content": ""}, ITEMS),
    "empty maps": lambda _size: {
        "agent": "echo",
        "prompt": [{"kind": "structured-content", "value": [{}] * (ITEMS // 2 - 50)}],
    },
    "synthetic": lambda _size: {"agent": {"model": "synthetic:tokens=65536,delay_ms=0,size=64"}, "prompt": "x"},
}


@pytest.mark.parametrize("mode", ["run", "run_stream"])
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("size", [2 * MIB, pytest.param(16 * MIB - 1000, marks=pytest.mark.long)])
def test_no_body_raises_the_memory_of_a_worker_by_more_than_the_promise(own: Daemon, mode: str, name: str, size: int):
    body = pack(BODIES[name](size))
    worker = next(name for name in own.processes if name.rpartition("-")[0] == mode)
    dealer = Dealer(own.endpoint)
    with growth(own.processes[worker].pid) as grown:
        kind, answer = dealer.ask(mode.encode(), b"1", None, body)
    dealer.close()
    assert kind == b"complete", answer
    print(f"{mode}, {name}: {len(body) / MIB:.1f} MiB raise the memory by {grown[0] / MIB:.1f} MiB")
    assert grown[0] <= BASE + FACTOR * len(body)


def test_a_body_with_too_many_items_is_refused_cheaply(own: Daemon):
    body = pack({"agent": "echo", "prompt": "x", "metadata": {"a": [[]] * 8_000_000}})
    dealer = Dealer(own.endpoint)
    with growth(own.processes["run-1"].pid) as grown:
        kind, error = dealer.ask(b"run", b"1", None, body)
    dealer.close()
    assert (kind, error["error_type"]) == (b"error", "too_large")
    assert f"the limit is {ITEMS} (pong.limits.max_items)" in error["message"]
    assert grown[0] < BASE
    with Client(own.endpoint) as client:
        assert client.ping()["limits"]["max_items"] == ITEMS


def test_a_history_of_5000_messages_is_accepted(own: Daemon):
    with Client(own.endpoint) as client:
        two = client.run("echo", "hello").messages
        done = client.run("echo", "again", message_history=two * 2500)
    assert len(two) * 2500 == 5000
    assert done.result == "again"


@pytest.mark.parametrize(("count", "size"), [(24, 2 * MIB), pytest.param(100, 16 * MIB - 1000, marks=pytest.mark.long)])
def test_the_memory_of_large_bodies_is_returned(count: int, size: int):
    with running("run") as own:
        dealer = Dealer(own.endpoint)
        for number in range(8):
            dealer.ask(b"run", b"w%d" % number, None, {"agent": "echo", "prompt": f"{number}" * 5000})
        process = psutil.Process(own.processes["run-1"].pid)
        before = process.memory_info().rss
        body = pack({"agent": "echo", "prompt": "x" * size})
        open_runs = 0
        for number in range(count):
            dealer.send(b"run", b"%d" % number, None, body)
            open_runs += 1
            while open_runs == 8 or (number == count - 1 and open_runs):
                kind, _, _ = dealer.recv()
                open_runs -= kind == b"complete"
        dealer.close()
        wait_until(lambda: process.memory_info().rss - before < RETURNED, "returned memory", 30)
        print(f"{count} bodies of {size / MIB:.0f} MiB leave {(process.memory_info().rss - before) / MIB:.1f} MiB")


def test_a_run_that_needs_too_much_memory_ends_alone():
    agents = "hoarder=sample_agents:hoarder,echo=axon_zmq.agents.echo:agent"
    limit = 512 * MIB
    with (
        running("run", AXON_AGENTS=agents, AXON_WORKER_MEMORY=str(limit)) as own,
        Client(own.endpoint) as client,
        Dealer(own.endpoint) as other,
    ):
        pid = own.processes["run-1"].pid
        paced = {"agent": {"model": "synthetic:tokens=40,delay_ms=100"}, "prompt": "x"}
        other.send(b"run", b"other", None, paced)
        with growth(pid) as grown:
            # One allocation above the limit: only the kernel can refuse it.
            with pytest.raises(AxonError) as caught:
                client.run("hoarder", f"{4 * limit} at once")
            assert caught.value.error_type == "out_of_memory"
            # Memory that grows: the worker ends its largest run.
            with pytest.raises(AxonError) as caught:
                client.run("hoarder", f"{limit // 16 * 15} in all" + " " * limits.MIB)
            assert caught.value.error_type == "out_of_memory"
            assert "AXON_WORKER_MEMORY" in caught.value.message
            assert "ending this run of 1048" in own.log("run-1")
        assert other.until_end(b"other")[-1][0] == b"complete"
        assert client.run("echo", "still there").result == "still there"
        assert own.processes["run-1"].poll() is None
        assert psutil.Process(pid).memory_info().rss < limit
        assert grown[0] < limit


def test_a_worker_without_a_large_run_leaves_and_its_runs_finish():
    agents = "hoarder=sample_agents:hoarder"
    limit = 512 * MIB
    with running("run", AXON_AGENTS=agents, AXON_WORKER_MEMORY=str(limit)) as own, Dealer(own.endpoint) as dealer:
        dealer.send(b"run", b"paced", None, {"agent": {"model": "synthetic:tokens=45,delay_ms=100"}, "prompt": "x"})
        dealer.send(b"run", b"hoarder", None, {"agent": "hoarder", "prompt": f"{limit // 16 * 15} in all"})
        wait_until(lambda: "replacing this process: the process has used more than" in own.log("run-1"), "the end")
        assert dealer.until_end(b"paced")[-1][0] == b"complete"
        assert "raise AXON_WORKER_MEMORY" in own.log("run-1")


def test_bodies_that_need_too_much_memory_are_refused_as_overloaded():
    with (
        running("run", AXON_WORKER_MEMORY=str(256 * MIB)) as own,
        Client(own.endpoint) as client,
        Dealer(own.endpoint) as dealer,
    ):
        dealer.send(b"run", b"1", None, {"agent": {"model": "synthetic:tokens=20,delay_ms=100"}, "prompt": "x"})
        wait_until(lambda: client.ping()["modes"]["run"]["free"] == 255, "the run")
        large = {"agent": "echo", "prompt": "x" * 8 * MIB}
        kind, error = dealer.ask(b"run", b"2", None, large)
        assert (kind, error["error_type"], error["retryable"]) == (b"error", "overloaded", True)
        assert error["details"]["retry_after_ms"] > 0
        assert "AXON_WORKER_MEMORY" in error["message"]
        assert client.run("echo", "x" * 5000).result == "x" * 5000  # there is room for smaller ones
        assert dealer.until_end(b"1")[-1][0] == b"complete"
        assert dealer.ask(b"run", b"3", None, large)[0] == b"complete"  # alone, it is always admitted
