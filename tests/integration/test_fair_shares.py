"""One client floods the daemon from one connection; the requests of another are answered nearly as fast as before.

The exact bound, at most 5 times the idle latency or 250 ms, is measured by `scripts/attack`. These are short forms,
which allow for a busy machine.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from axon_zmq.protocol.kinds import TERMINAL_KINDS
from tests.support.daemon import Daemon, Dealer, running

SAMPLES = 15
BUSY = 3
"""Factor for a machine that has three times as much work as it can do."""
FACTOR, FLOOR_S = 5, 0.25
"""The latency of another client during an attack is at most this multiple of its idle latency, or this many seconds."""
ECHO = {"agent": "echo", "prompt": "hello"}
TWO_MEGABYTES = " ".join(["x" * 65_000] * 32)
ASK = {"name": "ask", "parameters": {"type": "object"}}
WAITS = {"agent": {"model": "tools"}, "prompt": '[{"name": "ask", "args": {}}]', "tools": [ASK]}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running("run_sync", "run", "run_stream") as daemon:
        yield daemon


@pytest.fixture
def attacker(daemon: Daemon) -> Iterator[Dealer]:
    with Dealer(daemon.endpoint, uuid.uuid4().bytes, unbounded=True) as dealer:
        yield dealer


def slowest(dealer: Dealer, kind: bytes) -> tuple[float, float]:
    """The longest time to the first message and to the end of some requests, in seconds."""
    firsts, ends = list[float](), list[float]()
    for _ in range(SAMPLES):
        id, start = uuid.uuid4().bytes, time.monotonic()
        dealer.send(kind, id, {"timeout_ms": 60_000}, ECHO)
        first = None
        while True:
            answer, of, body = dealer.recv()
            if of != id:
                continue
            first = first or time.monotonic() - start
            if answer in TERMINAL_KINDS:
                assert answer == b"complete", body
                break
        firsts.append(first)
        ends.append(time.monotonic() - start)
    return max(firsts), max(ends)


def assert_fair(daemon: Daemon, scene: str, kind: bytes, idle: tuple[float, float]) -> None:
    """Compare the latency of another client with its latency before the attack."""
    with Dealer(daemon.endpoint, uuid.uuid4().bytes) as other:
        attacked = slowest(other, kind)
    for name, before, now in zip(("first message", "end"), idle, attacked, strict=True):
        limit = BUSY * max(FACTOR * before, FLOOR_S)
        print(
            f"{scene}, {name}: {before * 1000:.0f} ms idle, {now * 1000:.0f} ms attacked, limit {limit * 1000:.0f} ms"
        )
        assert now <= limit, f"{scene}: {name} after {now:.2f} s, {before:.2f} s without the attack"


@pytest.fixture
def idle(daemon: Daemon, request: pytest.FixtureRequest) -> tuple[float, float]:
    with Dealer(daemon.endpoint, uuid.uuid4().bytes) as other:
        slowest(other, request.param)  # the first requests of a worker are slower
        return slowest(other, request.param)


@pytest.mark.parametrize("idle", [b"run_stream"], indirect=True)
def test_thousands_of_describes_delay_no_other_client(daemon: Daemon, attacker: Dealer, idle: tuple[float, float]):
    for number in range(8000):
        attacker.send(b"describe", b"%d" % number)
    attacker.recv()
    assert_fair(daemon, "describes", b"run_stream", idle)


@pytest.mark.parametrize("idle", [b"run_stream"], indirect=True)
def test_thousands_of_resumes_delay_no_other_client(daemon: Daemon, attacker: Dealer, idle: tuple[float, float]):
    attacker.send(b"run_stream", b"large", {}, {"agent": "echo", "prompt": TWO_MEGABYTES})
    attacker.until_end(b"large")
    for _ in range(3000):
        attacker.send(b"resume", b"large")
    attacker.recv()
    assert_fair(daemon, "resumes", b"run_stream", idle)


@pytest.mark.parametrize("idle", [b"run_sync"], indirect=True)
def test_kept_runs_with_an_unanswered_tool_delay_no_other_client(
    daemon: Daemon, attacker: Dealer, idle: tuple[float, float]
):
    for number in range(8):
        header = {"on_disconnect": "keep", "timeout_ms": 3_600_000}
        attacker.send(b"run_sync", b"%d" % number, header, WAITS)
    assert {attacker.recv()[0] for _ in range(8)} == {b"tool_call"}
    assert_fair(daemon, "kept runs", b"run_sync", idle)


@pytest.mark.parametrize("idle", [b"run_stream"], indirect=True)
def test_a_flood_of_small_requests_delays_no_other_client(daemon: Daemon, attacker: Dealer, idle: tuple[float, float]):
    for number in range(700):
        attacker.send(b"run_stream", b"%d" % number, {}, ECHO)
    attacker.recv()
    assert_fair(daemon, "flood", b"run_stream", idle)
