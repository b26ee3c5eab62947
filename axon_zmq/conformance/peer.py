"""The broker's side of one client: what a script sends, and what it expects to hear."""

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

Heard = tuple[str, bytes, dict[str, Any], dict[str, Any]]
"""kind, id, header, body"""


class BrokenRuleError(Exception):
    """A client did not what it must, or what it must not; the message names the rule."""


class Peer:
    """One ROUTER socket, bound to a port that stays the same over its restarts.

    Args:
        host: A loopback address.
        port: 0: any that is free.
    """

    def __init__(self, host: str, port: int) -> None:
        self._context = zmq.Context()
        self._host = host
        self._port = port
        self._socket = self._bind()
        self.boot = secrets.token_hex(8)
        self.client = self.id = b""
        """Who asked, and the run that is played."""
        self.credit: float = math.inf
        """Highest `seq` that may be sent; unbounded if the run asked for no credit."""
        self.is_silent = False
        """Nothing is said unasked, and a `ping` is answered only by the script."""
        self._alive_at = 0.0

    def __repr__(self) -> str:
        return f"<Peer {self.endpoint}, boot {self.boot}>"

    @property
    def endpoint(self) -> str:
        """Where it listens."""
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
            raise ConfigurationError(f"cannot listen on {self.endpoint}: {fault.strerror}; choose another") from None
        return socket

    def close(self) -> None:
        """Let go of the port; what was said last has a second to arrive."""
        self._context.destroy(linger=1000)

    # --- what a script does ------------------------------------------------------------------------

    def begin(self, client: bytes, id: bytes, header: dict[str, Any]) -> None:
        """Another run is played."""
        self.client, self.id = client, id
        self.credit = header.get("credit", math.inf)
        self.is_silent = False
        self._alive_at = time.monotonic() + ALIVE_INTERVAL_S

    def send(self, kind: str, **body: object) -> None:
        """Send a message of the run's."""
        self.send_of(self.id, kind, **body)

    def send_of(self, id: bytes, kind: str, **body: object) -> None:
        """Send a message of another id's."""
        self.send_frames(kind.encode(), id, pack(body))

    def send_frames(self, *frames: bytes) -> None:
        """Send a message as it is."""
        self._socket.send_multipart([self.client, *frames])

    def chunks(self, first: int, last: int) -> None:
        """Chunks of one word each, named by their `seq`."""
        for seq in range(first, last + 1):
            self.send("chunk", seq=seq, type="text", data=f"{seq} ", step=1, part=0)

    def complete(self, seq: int) -> None:
        """The run's end."""
        self.send("complete", seq=seq, result="done", usage={}, messages=[], finish_reason="stop", model="scripted")

    def fail(self, error_type: str, message: str = "", *, retryable: bool = False, **more: object) -> None:
        """End the run with an error; `more` may hold `seq` and `details`."""
        body = {"status": "error", "error_type": error_type, "message": message, "details": {}, "retryable": retryable}
        self.send("error", **{**body, **more})

    def resumed(
        self, start: int, last: int, *, gap: bool = False, open_calls: Sequence[Mapping[str, object]] = ()
    ) -> None:
        """The first answer to a `resume`."""
        self.send("resumed", **{"from": start, "gap": gap, "open_calls": list(open_calls), "last": last})

    def call(self, seq: int, text: str) -> dict[str, Any]:
        """A call of the client's tool `note`, as `tool_call` and `resumed` have it."""
        return {"seq": seq, "call_id": f"call-{text}", "name": "note", "args": {"text": text}}

    def alive(self, open_requests: int = 1) -> None:
        """Say that the broker is there, and how many requests it knows of."""
        self.send_of(b"", "alive", boot=self.boot, open=open_requests)
        self._alive_at = time.monotonic() + ALIVE_INTERVAL_S

    def restart(self, *, away: float = 0.3) -> None:
        """The broker dies, and another one listens in its place a little later."""
        self._socket.close(0)
        time.sleep(away)
        self._socket = self._bind()
        self.succeed()
        self._alive_at = 0.0

    def succeed(self) -> None:
        """From now on this is another broker, on the same connection."""
        self.boot = secrets.token_hex(8)

    def expect(self, kind: str, rule: str, *, seconds: float = CLIENT_TIMEOUT_S) -> Heard:
        """The client's next message.

        Args:
            kind: What it must be.
            rule: The rule that another message, or none, breaks.
            seconds: How long it may take.

        Raises:
            BrokenRuleError: None came, or one of another kind.
        """
        heard = self.hear(time.monotonic() + seconds)
        if heard is None:
            raise BrokenRuleError(f"{rule}: no {kind} came within {seconds:g} s")
        if heard[0] != kind:
            raise BrokenRuleError(f"{rule}: {kind} was expected, and {heard[0]} came")
        return heard

    def expect_credit(self, heard: Heard | None) -> None:
        """What was heard is more credit.

        Raises:
            BrokenRuleError: It is something else, or nothing, or no more than before.
        """
        if heard is None or heard[0] != "credit":
            came = "nothing" if heard is None else heard[0]
            raise BrokenRuleError(f"rule 9: credit was expected after seq {self.credit:g}, and {came} came")
        if heard[2].get("upto", 0) <= self.credit:
            raise BrokenRuleError(f"rule 9, credit only grows: {heard[2]} after {self.credit:g}")
        self.credit = heard[2]["upto"]

    def expect_resume(self, start: int, rule: str, *, seconds: float = 5.0) -> Heard:
        """A `resume` from there on.

        Raises:
            BrokenRuleError: It did not come, or asks for something else.
        """
        heard = self.expect("resume", rule, seconds=seconds)
        if heard[2].get("from", 1) != start:
            raise BrokenRuleError(f"{rule}: resume from {heard[2].get('from', 1)}, not from {start}")
        return heard

    def expect_nothing(self, rule: str, seconds: float = QUIET_TIME_S) -> None:
        """The client has nothing to say.

        Raises:
            BrokenRuleError: It said something.
        """
        heard = self.hear(time.monotonic() + seconds)
        if heard is not None:
            raise BrokenRuleError(f"{rule}: {heard[0]} came")

    def hear(self, give_up: float) -> Heard | None:
        """The client's next message other than `ping`, which is answered; None if none arrives in time."""
        while time.monotonic() < give_up:
            now = time.monotonic()
            if not self.is_silent and self.id and now >= self._alive_at:
                self.alive()
            if not self._socket.poll(int(1000 * min(0.2, max(0.0, give_up - now)))):
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
        raise BrokenRuleError(f"a body that is no msgpack map: {error}") from None
