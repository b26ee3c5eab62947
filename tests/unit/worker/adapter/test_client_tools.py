"""The time limit of a tool call."""

from __future__ import annotations

import asyncio

import pytest

from axon_zmq.process.event_loop import new_loop
from axon_zmq.protocol.requests import ClientTool
from axon_zmq.worker.adapter.client_tools import RemoteCall, RemoteCalls, remote_tools


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_tool_timeout_can_be_paused_when_it_has_just_expired(kind):
    """uvloop returns a handle without its time if the time has passed."""
    sent: list[bytes] = []

    async def pause() -> None:
        calls = RemoteCalls(lambda kind, _body: sent.append(kind) or len(sent))
        [tool] = remote_tools([ClientTool(name="ask", parameters={"type": "object"}, timeout_ms=1)])
        call = RemoteCall(tool=tool, wanted_id="a", args={}, answer=asyncio.get_running_loop().create_future())
        calls.open(call)
        calls.pause_timers()
        call.left = 0.0
        calls.continue_timers()
        calls.pause_timers()
        calls.continue_timers()
        assert await call.answer is None

    loop = new_loop(kind)
    loop.run_until_complete(pause())
    loop.close()
    assert sent == [b"tool_call", b"tool_cancelled"]
