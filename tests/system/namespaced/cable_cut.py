"""A cable is cut: packets are lost, and neither a FIN nor a RST arrives."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from axon_zmq import Client
from axon_zmq.broker.core.broker import CLIENT_GRACE_S
from axon_zmq.protocol import limits
from tests.support.daemon import Daemon, Dealer, running, wait_until

IDENTITY = b"cut-off"
VANISHING = """
import sys, zmq
from axon_zmq.protocol.msgpack import pack, unpack
socket = zmq.Context().socket(zmq.DEALER)
socket.identity = sys.argv[2].encode()
socket.connect(sys.argv[1])
body = pack({"agent": {"model": "synthetic:tokens=4500,delay_ms=10"}, "prompt": "x"})
for id, what in ((b"cancel", "cancel"), (b"keep", "keep")):
    socket.send_multipart([b"run_stream", id, pack({"on_disconnect": what}), body])
while True:
    print(socket.recv_multipart()[1].decode(), flush=True)
"""


def loopback(state: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", state], check=True)


@contextmanager
def cut() -> Iterator[None]:
    loopback("down")
    try:
        yield
    finally:
        loopback("up")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    loopback("up")
    with running("run_stream") as own:
        yield own


@pytest.mark.timeout(180)
def test_rule_8_a_client_behind_a_cut_cable_is_counted_as_gone_and_its_runs_end_or_are_kept(daemon: Daemon):
    client = subprocess.Popen(
        [sys.executable, "-c", VANISHING, daemon.endpoint, IDENTITY.decode()], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    seen: set[str] = set()
    while seen < {"cancel", "keep"}:
        seen.add(client.stdout.readline().strip())
    with cut():
        client.kill()  # its FIN is lost
        client.wait()
        client.stdout.close()
        began = time.monotonic()
        wait_until(lambda: "client cut-off is gone, with 2 open" in daemon.log("broker"), "the notice", 60)
        noticed = time.monotonic() - began
        wait_until(lambda: "id=cancel" in daemon.log("run_stream-1"), "the end of its run", CLIENT_GRACE_S + 10)
        ended = time.monotonic() - began - noticed
    print(f"noticed after {noticed:.1f} s, ended {ended:.1f} s later")
    assert noticed < limits.DEAD_HOST + 5
    assert "run_stream cancelled" in daemon.log("run_stream-1")
    assert "id=keep" not in daemon.log("run_stream-1")
    with Dealer(daemon.endpoint, IDENTITY) as again:
        again.send(b"resume", b"keep", {"from": 1})
        while (message := again.recv())[0] != b"resumed":
            assert message[:2] == (b"chunk", b"keep")  # sent before the `resume` was read
        messages = again.until_end(b"keep")
        assert [body["seq"] for _, body in messages] == list(range(1, len(messages) + 1))
        kind, body = messages[-1]
        assert (kind, len(body["result"])) == (b"complete", 22_500)
        assert "".join(body["data"] for kind, body in messages if kind == b"chunk") == body["result"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("seconds", "tokens"), [(3, 600), (20, 2500)])
def test_a_stream_over_a_cable_that_was_cut_for_a_while_is_complete(daemon: Daemon, seconds: int, tokens: int):
    with Client(daemon.endpoint) as client:
        stream = client.stream({"model": f"synthetic:tokens={tokens},delay_ms=10"}, f"{seconds}")
        events = [next(stream)]
        with cut():
            time.sleep(seconds)  # the duration of the cut
        began = time.monotonic()
        while time.monotonic() - began < 0.1:  # events that had arrived before
            events.append(next(stream))
        waited = time.monotonic() - began
        events.extend(stream)
    print(f"cut for {seconds} s: goes on {waited:.1f} s after")
    assert waited < limits.DEAD_HOST
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert len(events[-1].result) == 5 * tokens
