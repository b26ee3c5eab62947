"""Ended runs of a worker that left are replayed by another one."""

from __future__ import annotations

import signal
from pathlib import Path

from axon_zmq.process.run_dir import HANDOVER
from tests.support.daemon import WAIT_TIMEOUT_S, Daemon, Dealer, running, wait_until

ECHO = {"agent": "echo", "prompt": "one two three"}
LONG = {"agent": {"model": "synthetic:tokens=2000,delay_ms=10"}, "prompt": "x"}


def files(run_dir: Path) -> list[Path]:
    return list((run_dir / HANDOVER).glob("*"))


def leave(own: Daemon, name: str) -> None:
    """Stop a worker with SIGTERM and wait for its end."""
    process = own.processes.pop(name)
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_TIMEOUT_S) == 0


def test_an_ended_run_is_replayed_by_another_worker_of_any_mode_after_its_own_has_left():
    with running("run_stream", "run") as own, Dealer(own.endpoint) as dealer:
        dealer.send(b"run_stream", b"1", None, ECHO)
        first = dealer.until_end(b"1")
        leave(own, "run_stream-1")
        dealer.send(b"resume", b"1", {"from": 2})
        assert dealer.until_end(b"1")[1:] == first[1:]
        dealer.send(b"run_stream", b"1", None, ECHO)
        again = dealer.until_end(b"1")
        assert [kind for kind, _ in again[:2]] == [b"accepted", b"resumed"]
        assert again[2:] == first
        assert dealer.ask(b"run_stream", b"1", None, {**ECHO, "prompt": "other"})[0] == b"refused"
        assert files(own.run_dir) == []


def test_with_a_single_worker_a_resume_waits_for_its_replacement():
    with running("run") as own, Dealer(own.endpoint) as dealer:
        first = dealer.ask(b"run", b"1", None, ECHO)
        leave(own, "run-1")
        dealer.send(b"resume", b"1")
        own.start_worker("run", 2)
        assert dealer.until_end(b"1")[-1] == first


def test_ended_runs_survive_a_restart_of_the_whole_daemon():
    with running("run") as own, Dealer(own.endpoint, b"a-client-that-returns") as dealer:
        first = dealer.ask(b"run", b"1", None, ECHO)
        leave(own, "run-1")
        own.kill("broker", signal.SIGTERM)
        assert len(files(own.run_dir)) == 1
        dealer.send(b"resume", b"1")
        own.start_worker("run", 2)
        wait_until(
            lambda: "serves run" in own.log("run-2"), "its start"
        )  # which may take longer than the recovery of a broker
        own.start_broker()
        assert dealer.until_end(b"1")[-1] == first
        assert files(own.run_dir) == []


def test_a_run_ended_as_shutting_down_is_replayed_by_another_worker():
    with running("run_stream", "run_stream", AXON_DRAIN_SECONDS="0.2") as own, Dealer(own.endpoint) as dealer:
        for id in (b"1", b"2"):
            dealer.send(b"run_stream", id, None, LONG)
        wait_until(lambda: dealer.recv()[0] == b"chunk", "a start")
        leave(own, "run_stream-1")
        ended: dict[bytes, dict] = {}
        while not ended:
            kind, id, body = dealer.recv()
            if kind == b"error":
                ended[id] = body
        [(id, body)] = ended.items()
        assert body["error_type"] == "shutting_down"
        dealer.send(b"resume", id, {"from": body["seq"]})
        assert dealer.until_end(id)[-1] == (b"error", body)
