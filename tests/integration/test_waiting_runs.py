"""Runs that only wait for tools of their client: they block nobody, and continue when the client answers."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from axon_zmq.protocol.kinds import MODES
from axon_zmq.supervise import broker_status
from tests.support.daemon import Daemon, Dealer, running, wait_until

SLOTS = 2
ASK = {"name": "ask", "parameters": {"type": "object"}}
WAITS = {"agent": {"model": "tools"}, "prompt": '[{"name": "ask", "args": {}}]', "tools": [ASK]}
ECHO = {"agent": {"model": "echo"}, "prompt": "hello"}
KEEP = {"on_disconnect": "keep", "timeout_ms": 3_600_000}
MAX_KEEP_MS = 1500


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon with one worker of each mode, and few slots."""
    slots = {f"AXON_{mode.upper()}_SLOTS": str(SLOTS) for mode in MODES}
    with running(*MODES, broker=(f"--max-keep-ms={MAX_KEEP_MS}",), **slots) as daemon:
        yield daemon


def waiting_runs(attacker: Dealer, mode: str, count: int, name: str = "run") -> dict[bytes, dict[str, Any]]:
    """Start runs that wait for a tool; return the calls by request id when all have called it."""
    for number in range(count):
        attacker.send(mode.encode(), f"{name}-{number}".encode(), KEEP, WAITS)
    open_calls: dict[bytes, dict[str, Any]] = {}
    while len(open_calls) < count:
        kind, id, body = attacker.recv()
        if kind == b"tool_call":
            open_calls[id] = body
    return open_calls


def status_of(daemon: Daemon, mode: str) -> dict[str, Any]:
    [worker] = [each for each in broker_status.status(daemon.run_dir)["workers"] if each["mode"] == mode]
    return worker


@pytest.mark.parametrize("mode", MODES)
def test_runs_that_wait_for_their_client_do_not_block_another_client(daemon: Daemon, mode: str):
    # More runs than slots: the later ones start only if the earlier ones leave their slots.
    with Dealer(daemon.endpoint, uuid.uuid4().bytes) as attacker, Dealer(daemon.endpoint, uuid.uuid4().bytes) as other:
        calls = waiting_runs(attacker, mode, 3 * SLOTS)
        for number in range(5):
            kind, body = other.ask(mode.encode(), b"%d" % number, {}, ECHO)
            assert (kind, body.get("result")) == (b"complete", "hello")
        wait_until(lambda: status_of(daemon, mode)["waiting"] == 3 * SLOTS, "all runs to wait")
        assert status_of(daemon, mode)["busy"] == 0
        for id, call in calls.items():
            attacker.send(b"tool_result", id, {"call_id": call["call_id"]}, {"result": 7})
        results = {}
        while len(results) < len(calls):
            kind, id, body = attacker.recv()
            if kind in (b"complete", b"error"):
                results[id] = body.get("result", body)
        assert results == dict.fromkeys(calls, "[7]")
    status = status_of(daemon, mode)
    assert (status["waiting"], status["busy"]) == (0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_run_sync_has_more_threads_only_while_runs_wait(daemon: Daemon):
    with Dealer(daemon.endpoint, uuid.uuid4().bytes) as client:
        calls = waiting_runs(client, "run_sync", 4 * SLOTS)
        most = threads_of(daemon, "run_sync-1")
        for id, call in calls.items():
            client.send(b"tool_result", id, {"call_id": call["call_id"]}, {"result": 7})
        # Each waiting run has its own thread; afterwards, one is left for each slot.
        wait_until(lambda: threads_of(daemon, "run_sync-1") <= most - 3 * SLOTS, "the surplus threads to end")
        for number in range(2 * SLOTS):
            assert client.ask(b"run_sync", b"again-%d" % number, {}, ECHO)[0] == b"complete"


def threads_of(daemon: Daemon, name: str) -> int:
    return sum(1 for _ in Path(f"/proc/{daemon.processes[name].pid}/task").iterdir())


def test_kept_runs_that_wait_for_a_gone_client_end_after_max_keep_ms(daemon: Daemon):
    identity = uuid.uuid4().bytes
    with Dealer(daemon.endpoint, identity) as attacker:
        for mode in MODES:
            waiting_runs(attacker, mode, SLOTS, mode)
        wait_until(lambda: all(status_of(daemon, mode)["waiting"] == SLOTS for mode in MODES), "the runs to wait")
    wait_until(lambda: all(status_of(daemon, mode)["waiting"] == 0 for mode in MODES), "the runs to end")
    with Dealer(daemon.endpoint, identity) as attacker:
        for mode in MODES:
            id = f"{mode}-0".encode()
            attacker.send(b"resume", id, {"from": 1})
            end = attacker.until_end(id)[-1][1]
            assert end["error_type"] == "cancelled"
            assert "max_keep_ms" in end["message"]
            assert end["details"]["partial"]["messages"]
