"""The workers' event loops: asyncio's own, or uvloop where it is installed; what they do is the same."""

from __future__ import annotations

import asyncio
import signal
import sys
import time

import pytest

from axon_zmq import Client
from axon_zmq.cli.doctor import examine
from axon_zmq.errors import ConfigurationError
from axon_zmq.process.event_loop import Turns, new_loop
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.requests import ClientTool
from axon_zmq.worker.adapter.client_tools import RemoteCall, RemoteCalls, remote_tools
from tests.conftest import AGENTS, Dealer, running

LONG = {"agent": {"model": "synthetic:tokens=1000,delay_ms=20"}, "prompt": "x"}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_worker_runs_ends_and_survives_on_either(loop):
    with (
        running(*MODES, AXON_AGENTS=AGENTS, AXON_LOOP=loop, AXON_DRAIN_SECONDS="0") as own,
        Client(own.endpoint) as client,
        Dealer(own.endpoint) as dealer,
    ):
        for number, mode in enumerate(MODES, 1):
            assert f"slots on {loop}" in own.log(f"{mode}-{number}")
            dealer.send(mode.encode(), mode.encode(), None, {"agent": "exiting", "prompt": "x"})
            assert dealer.until_end(mode.encode())[-1][0] == b"error"
            kind, body = dealer.ask(mode.encode(), mode.encode() + b"2", None, {"agent": "echo", "prompt": "hello"})
            assert (kind, body["result"]) == (b"complete", "hello")
        dealer.send(b"run_stream", b"leaving", None, {"agent": "leaving", "prompt": "x"})
        assert dealer.until_end(b"leaving")[-1][1]["error_type"] == "internal"
        *chunks, complete = client.stream({"model": "synthetic:tokens=200,delay_ms=1,size=5"}, "x")
        assert "".join(chunk.data for chunk in chunks) == complete.result
        assert len(complete.result.split()) == 200
        dealer.send(b"run_stream", b"long", None, LONG)
        assert dealer.recv()[0] == b"chunk"
        dealer.send(b"cancel", b"long")
        assert dealer.until_end(b"long")[-1][1]["error_type"] == "cancelled"
        dealer.send(b"run_stream", b"last", None, LONG)
        assert dealer.recv()[0] == b"chunk"
        assert own.kill("run_stream-3", signal.SIGTERM) == 0
        assert dealer.until_end(b"last")[-1][1]["error_type"] == "shutting_down"


def test_where_uvloop_is_not_installed_auto_is_asyncio_and_uvloop_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    loop = new_loop("auto")
    assert isinstance(loop, asyncio.SelectorEventLoop)
    loop.close()
    with pytest.raises(ConfigurationError, match=r"pip install 'axon-zmq\[uvloop\]'"):
        new_loop("uvloop")


def test_doctor_says_which_loop_workers_have(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AXON_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("AXON_LOOP", "uvloop")
    findings = {finding.subject: finding for finding in examine("tcp://127.0.0.1:1")}
    assert (findings["event loop"].state, findings["event loop"].detail) == ("ok", "uvloop")
    monkeypatch.setitem(sys.modules, "uvloop", None)
    findings = {finding.subject: finding for finding in examine("tcp://127.0.0.1:1")}
    assert findings["event loop"].state == "FAIL"
    assert "not installed" in findings["event loop"].detail


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_turns_pass_with_what_is_ready_and_no_later_than_they_may(kind):
    turns, passed = Turns(10), list[str]()

    async def look() -> None:
        start = time.monotonic()
        turns.pass_before(lambda: passed.append("first"), start + 60)
        for _ in range(5):
            await asyncio.sleep(0)
        turns.pass_before(lambda: passed.append("second"), start + 60)
        assert passed == []
        for _ in range(6):
            await asyncio.sleep(0)
        assert passed == ["first"]
        for _ in range(6):
            await asyncio.sleep(0)
        assert passed == ["first", "second"]
        turns.pass_before(lambda: passed.append("late"), start)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert passed[2:] == ["late"]

    loop = new_loop(kind)
    loop.run_until_complete(look())
    loop.close()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_the_time_of_a_tool_can_be_stopped_when_it_is_just_over(kind):
    """For a time that has passed, uvloop returns a handle that does not know its time."""
    sent: list[bytes] = []

    async def pause() -> None:
        calls = RemoteCalls(lambda kind, _body: sent.append(kind) or len(sent))
        [tool] = remote_tools([ClientTool(name="ask", parameters={"type": "object"}, timeout_ms=1)])
        call = RemoteCall(tool=tool, wanted_id="a", args={}, answer=asyncio.get_running_loop().create_future())
        calls.open(call)
        calls.pause()
        call.left = 0.0
        calls.go_on()
        calls.pause()
        calls.go_on()
        assert await call.answer is None

    loop = new_loop(kind)
    loop.run_until_complete(pause())
    loop.close()
    assert sent == [b"tool_call", b"tool_cancelled"]
