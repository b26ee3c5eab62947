"""A worker on each kind of event loop."""

from __future__ import annotations

import signal

import pytest

from axon_zmq import Client
from axon_zmq.protocol.kinds import MODES
from tests.support.daemon import AGENTS, Dealer, running

LONG = {"agent": {"model": "synthetic:tokens=1000,delay_ms=20"}, "prompt": "x"}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_worker_executes_and_ends_runs_on_either_event_loop(loop):
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
