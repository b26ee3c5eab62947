"""The scripted broker's side of a connection: actions with which a script sends and expects messages."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import zmq

from axon_zmq.errors import ConfigurationError, RequestError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import parse, printable
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.msgpack import pack, unpack

CLIENT_TIMEOUT_S: Final = 8.0
"""Seconds in which a client must send the expected message; it sends a `ping` after 5 s of silence."""
QUIET_TIME_S: Final = 1.5
"""Seconds in which an idle client must send nothing."""
ALIVE_INTERVAL_S: Final = 2.0
"""Seconds between two `alive` messages."""

Received = tuple[str, bytes, dict[str, Any], dict[str, Any]]
"""A message of the client: kind, id, header, body."""


class BrokenRuleError(Exception):
    """The client broke a rule of the protocol; the message names the rule."""


class Peer:
    """A ROUTER socket on a port that stays the same across simulated restarts.

    Args:
        host: A loopback address.
        port: The port; 0 for any free one.
    """

    def __init__(self, host: str, port: int) -> None:
        self._context = zmq.Context()
        self._host = host
        self._port = port
        self._socket = self._bind()
        self.boot = secrets.token_hex(8)
        self.client = self.id = b""
        """Routing id of the client, and id of the current run."""
        self.credit: float = math.inf
        """Highest `seq` that may be sent; infinite if the run does not use credit."""
        self.is_silent = False
        """If true, no `alive` is sent, and only the script answers a `ping`."""
        self._alive_at = 0.0

    def __repr__(self) -> str:
        return f"<Peer {self.endpoint}, boot {self.boot}>"

    @property
    def endpoint(self) -> str:
        """Endpoint to which clients connect."""
        return f"tcp://{self._host}:{self._port}"

    def _bind(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            if self._port:
                socket.bind(self.endpoint)
            else:
                self._port = socket.bind_to_random_port(f"tcp://{self._host}")
        except zmq.ZMQError as fault:
            self._context.destroy(linger=0)
            raise ConfigurationError(
                f"cannot listen on {self.endpoint}: {fault.strerror}; choose another port with --endpoint"
            ) from None
        return socket

    def close(self) -> None:
        """Close the socket; messages that are still queued have 1 s to be sent."""
        self._context.destroy(linger=1000)

    # --- actions of a script -----------------------------------------------------------------------

    def begin(self, client: bytes, id: bytes, header: dict[str, Any]) -> None:
        """Start the script of another run."""
        self.client, self.id = client, id
        self.credit = header.get("credit", math.inf)
        self.is_silent = False
        self._alive_at = time.monotonic() + ALIVE_INTERVAL_S

    def send(self, kind: str, **body: object) -> None:
        """Send a message of the current run."""
        self.send_of(self.id, kind, **body)

    def send_of(self, id: bytes, kind: str, **body: object) -> None:
        """Send a message with another id."""
        self.send_frames(kind.encode(), id, pack(body))

    def send_frames(self, *frames: bytes) -> None:
        """Send frames to the client unchanged."""
        self._socket.send_multipart([self.client, *frames])

    def chunks(self, first: int, last: int) -> None:
        """Send chunks of one word each; the word is the `seq` of the chunk."""
        for seq in range(first, last + 1):
            self.send("chunk", seq=seq, type="text", data=f"{seq} ", step=1, part=0)

    def complete(self, seq: int) -> None:
        """End the run with `complete`."""
        self.send("complete", seq=seq, result="done", usage={}, messages=[], finish_reason="stop", model="scripted")

    def fail(self, error_type: str, message: str = "", *, retryable: bool = False, **more: object) -> None:
        """End the run with an error; `more` may hold `seq` and `details`."""
        body = {"status": "error", "error_type": error_type, "message": message, "details": {}, "retryable": retryable}
        self.send("error", **{**body, **more})

    def resumed(
        self, start: int, last: int, *, gap: bool = False, open_calls: Sequence[Mapping[str, object]] = ()
    ) -> None:
        """Send `resumed`, the first answer to a `resume`."""
        self.send("resumed", **{"from": start, "gap": gap, "open_calls": list(open_calls), "last": last})

    def call(self, seq: int, text: str) -> dict[str, Any]:
        """Return a call of the client's tool `note`, as it appears in `tool_call` and `resumed`."""
        return {"seq": seq, "call_id": f"call-{text}", "name": "note", "args": {"text": text}}

    def alive(self, open_requests: int = 1) -> None:
        """Send `alive` with the number of requests that the broker knows."""
        self.send_of(b"", "alive", boot=self.boot, open=open_requests)
        self._alive_at = time.monotonic() + ALIVE_INTERVAL_S

    def restart(self, *, away: float = 0.3) -> None:
        """Simulate a restart: close the socket, and bind it again with a new boot after `away` seconds."""
        self._socket.close(0)
        time.sleep(away)
        self._socket = self._bind()
        self.succeed()
        self._alive_at = 0.0

    def succeed(self) -> None:
        """Change the boot: from now on this is another broker, on the same connection."""
        self.boot = secrets.token_hex(8)

    def expect(self, kind: str, rule: str, *, seconds: float = CLIENT_TIMEOUT_S) -> Received:
        """Wait for the next message of the client and return it.

        Args:
            kind: Expected kind.
            rule: Rule that is broken if another message arrives, or if no message arrives.
            seconds: How long to wait.

        Raises:
            BrokenRuleError: No message arrived in time, or a message of another kind arrived.
        """
        received = self.receive(time.monotonic() + seconds)
        if received is None:
            raise BrokenRuleError(f"{rule}: no {kind} arrived within {seconds:g} s")
        if received[0] != kind:
            raise BrokenRuleError(f"{rule}: expected {kind}, received {received[0]}")
        return received

    def expect_credit(self, received: Received | None) -> None:
        """Check that a message raises the credit.

        Raises:
            BrokenRuleError: The message is missing, is not `credit`, or does not raise the credit.
        """
        if received is None or received[0] != "credit":
            kind = "nothing" if received is None else received[0]
            raise BrokenRuleError(f"rule 9: expected credit after seq {self.credit:g}, received {kind}")
        if received[2].get("upto", 0) <= self.credit:
            raise BrokenRuleError(f"rule 9, credit only grows: {received[2]} after {self.credit:g}")
        self.credit = received[2]["upto"]

    def expect_resume(self, start: int, rule: str, *, seconds: float = 5.0) -> Received:
        """Wait for a `resume` from a given `seq`.

        Raises:
            BrokenRuleError: No `resume` arrived in time, or it has another `from`.
        """
        received = self.expect("resume", rule, seconds=seconds)
        if received[2].get("from", 1) != start:
            raise BrokenRuleError(f"{rule}: expected resume from {start}, received from {received[2].get('from', 1)}")
        return received

    def expect_nothing(self, rule: str, seconds: float = QUIET_TIME_S) -> None:
        """Check that the client sends nothing for a while.

        Raises:
            BrokenRuleError: The client sent a message.
        """
        received = self.receive(time.monotonic() + seconds)
        if received is not None:
            raise BrokenRuleError(f"{rule}: received {received[0]}")

    def receive(self, deadline: float) -> Received | None:
        """Return the next message of the client; None if none arrives before the deadline.

        A `ping` is answered and not returned, unless the script is silent.
        """
        while time.monotonic() < deadline:
            now = time.monotonic()
            if not self.is_silent and self.id and now >= self._alive_at:
                self.alive()
            if not self._socket.poll(int(1000 * min(0.2, max(0.0, deadline - now)))):
                continue
            client, *frames = self._socket.recv_multipart()
            message = parse(frames, limits.BrokerLimits().max_body)
            if message.kind != kinds.PING:
                self.client = client
                return printable(message.kind), message.id, message.header, _body(message.body)
            if self.is_silent:
                return printable(message.kind), message.id, message.header, {}
            self.client = client
            self.pong(message.id)
        return None

    def pong(self, id: bytes) -> None:
        """Answer a `ping`."""
        modes = {mode: {"workers": 1, "free": 1, "queued": 0, "degraded": False} for mode in MODES}
        self.send_of(
            id,
            "pong",
            protocol=limits.PROTOCOL,
            version="scripted",
            features=["resume", "tools"],
            boot=self.boot,
            settling=False,
            draining=False,
            shared=False,
            limits=limits.BrokerLimits().to_wire(),
            modes=modes,
            dropped=0,
        )


def _body(packed: bytes) -> dict[str, Any]:
    try:
        return unpack(packed, "the body")
    except RequestError as error:
        raise BrokenRuleError(f"the body is not a msgpack map: {error}") from None
