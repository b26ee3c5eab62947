"""A client's side of the contract, without I/O: what to send, and what a message means.

`ClientCore` keeps the rules that every client must: the sequence of each run, `resume` after a gap, a
new broker or a lost message, tool calls that are run once and answered until the answer has arrived, and
the `ping` that asks whether anybody is there. Frames go out through `outgoing` and come in through
`receive`; time is passed in.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from axon_zmq.client.calls import Calls
from axon_zmq.errors import AxonError, RequestError, RunEndedError
from axon_zmq.events import Chunk, Complete, Event, Refused, ToolCall, ToolCancelled, event_of
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import printable
from axon_zmq.protocol.kinds import RUN_KINDS
from axon_zmq.protocol.msgpack import pack, unpack

HEADER_KEYS: Final = ("timeout_ms", "max_attempts", "ack", "credit", "on_disconnect", "traceparent", "tracestate")
"""Options of a run that the broker reads."""
BODY_KEYS: Final = (
    "message_history",
    "tools",
    "deferred_tool_results",
    "output_schema",
    "output_mode",
    "deps",
    "model",
    "model_settings",
    "usage_limits",
    "retries",
    "events",
    "log",
    "metadata",
)
"""Options of a run that the worker reads, beside agent and prompt."""
CALL_KEYS: Final = ("agent", "deps")
"""Options of a `call_tool` that the worker reads, beside tool and args."""
PATIENCE: Final = 10.0
"""Seconds over a request's own time that its terminal message is waited for."""
RESUME_AGAIN: Final = 2.0
"""Seconds after which a `resume` that brought nothing is sent again."""


@dataclass(slots=True, eq=False)
class Run:
    """One unfinished request: a run, a `describe` or a `ping`.

    `inbox` holds what has come and was not taken: events, and at the end an `AxonError` or, for
    `describe` and `ping`, the body.
    """

    id: bytes
    kind: bytes
    deadline: float
    last_seq: int = 0
    """Of the last message that was taken."""
    highest_seq: int = 0
    """Of all messages that came, those behind a gap too."""
    window: int = 0
    """Messages that may be on their way to who reads; 0: any number."""
    granted: int = 0
    """The credit that the daemon was given: a `seq`."""
    sent_at: float = 0.0
    frames: list[list[bytes]] = field(default_factory=list[list[bytes]])
    """The request and what was said to it, until it is known to have begun: a daemon may forget what only waited."""
    begun_again_at: float = float("-inf")
    """When it was sent again: another word that it never ran, soon after that, answers what was sent before."""
    cancelled: bool = False
    resume_due: bool = False
    """It came too soon after the last one, or the daemon had no room for it or for an answer: it is asked again."""
    calls: Calls = field(default_factory=Calls)
    resumed_at: float = float("-inf")
    ended: bool = False
    inbox: deque[Event | AxonError | dict[str, Any]] = field(default_factory=lambda: deque[Any]())


class ClientCore:
    """The requests of one DEALER identity. Not thread-safe."""

    def __init__(self) -> None:
        self.outgoing: deque[list[bytes]] = deque()
        """Frames to send, in order."""
        self.tool_events: deque[tuple[Run, ToolCall | ToolCancelled | Refused]] = deque()
        """What those who run tools hear of, in order; it is in the inbox too."""
        self.open: dict[bytes, Run] = {}
        self.max_body = limits.BrokerLimits().max_body
        """The daemon's bound, once a `pong` has told it."""
        self._instance = secrets.token_hex(8)
        self._probe_id = b"probe-" + secrets.token_hex(16).encode()
        """The id of pings that the core sends by itself; nobody waits for their answer."""
        self._boot: str | None = None
        self._heard_at = float("-inf")
        self._pinged_at = float("-inf")
        self._miscounted = False
        self._connected = False
        self._silent = False

    def __repr__(self) -> str:
        return f"<ClientCore {len(self.open)} open, boot {self._boot}>"

    # --- what to send ------------------------------------------------------------------------------

    def run(
        self, mode: str, agent: str | Mapping[str, Any], prompt: Any, options: Mapping[str, Any], now: float
    ) -> Run:
        """Start a run.

        Args:
            mode: `run_sync`, `run` or `run_stream`.
            agent: A registered name, or an agent as data.
            prompt: Text, a list of parts, or None to go on from `message_history`.
            options: Any of `HEADER_KEYS` and `BODY_KEYS`, and `id`.
            now: Seconds of a monotonic clock.

        Raises:
            TypeError: An option is unknown.
            RequestError: `too_large`, or an id that is open already, empty or over 64 bytes.
        """
        body = {"agent": agent, **_chosen(options, BODY_KEYS)}
        if prompt is not None:
            body["prompt"] = prompt
        return self._start(mode.encode(), options, body, now)

    def call_tool(self, tool: str, args: Mapping[str, Any], options: Mapping[str, Any], now: float) -> Run:
        """Call one Python tool of the daemon's, without a model.

        Args:
            tool: Its name.
            args: Its arguments by name.
            options: Any of `HEADER_KEYS` and `CALL_KEYS`, and `id`.
            now: Seconds of a monotonic clock.

        Raises:
            TypeError: An option is unknown.
            RequestError: As `run`.
        """
        return self._start(kinds.CALL_TOOL, options, {"tool": tool, "args": args, **_chosen(options, CALL_KEYS)}, now)

    def answer(self, id: bytes, call_id: str, body: Mapping[str, Any]) -> bool:
        """Answer a tool call; whether the run was still open here.

        Args:
            id: Of the run.
            call_id: As in the `ToolCall`.
            body: `{result}`, `{result, content?, metadata?}` or `{error: {message, retry}}`.

        Raises:
            RequestError: `too_large`.
        """
        request = self._open_run(id)
        if request is None:
            return False
        packed = self._packed(body)
        request.calls.answered(call_id, packed)
        self._send_answer(id, call_id, packed)
        return True

    def steer(self, id: bytes, content: Any, priority: str) -> bool:
        """Say more to a run under way; whether it was still open here.

        Raises:
            RequestError: `too_large`.
        """
        request = self._open_run(id)
        if request is None:
            return False
        frames = [kinds.STEER, id, b"", self._packed({"content": content, "priority": priority})]
        self.outgoing.append(frames)
        if request.frames:
            request.frames.append(frames)
        return True

    def took(self, request: Run, event: Event) -> None:
        """Its reader has taken an event: give credit for more, once half of the window is used.

        Of what needs no credit, such as a tool call, too: it has a `seq` like the others.
        """
        seq = getattr(event, "seq", 0)
        if request.window and not request.ended and seq + request.window - request.granted > request.window // 2:
            request.granted = seq + request.window
            self.outgoing.append([kinds.CREDIT, request.id, pack({"upto": request.granted})])

    def describe(self, agent: str | None, now: float) -> Run:
        """Ask for the agents."""
        return self._send(kinds.DESCRIBE, None, {}, {"agent": agent} if agent else {}, now, limits.DESCRIBE_TIMEOUT)

    def ping(self, now: float, timeout: float) -> Run:
        """Ask who is there."""
        return self._send(kinds.PING, None, {"instance": self._instance}, {}, now, timeout - PATIENCE)

    def cancel(self, id: bytes) -> None:
        """Ask a run to end; its own terminal message says how it did."""
        self.outgoing.append([kinds.CANCEL, id])
        if (request := self._open_run(id)) is not None:
            request.cancelled = True

    def _start(self, kind: bytes, options: Mapping[str, Any], body: Mapping[str, Any], now: float) -> Run:
        known = (*HEADER_KEYS, *(CALL_KEYS if kind == kinds.CALL_TOOL else BODY_KEYS))
        if unknown := options.keys() - {"id", *known}:
            raise TypeError(f"unknown option {min(unknown)!r}; known are {', '.join(known)}")
        header = _chosen(options, HEADER_KEYS)
        if header.get("credit", 1) < 1:
            raise ValueError("credit must be at least 1, or None for any number of messages")
        timeout = header.get("timeout_ms", limits.DEFAULT_TIMEOUT_MS) / 1000
        request = self._send(kind, options.get("id"), header, body, now, timeout)
        request.window = request.granted = header.get("credit", 0)
        request.frames, request.sent_at = [self.outgoing[-1]], now
        return request

    def _open_run(self, id: bytes) -> Run | None:
        request = self.open.get(id)
        return request if request is not None and request.kind in RUN_KINDS else None

    def _send_answer(self, id: bytes, call_id: str, packed: bytes) -> None:
        self.outgoing.append([kinds.TOOL_RESULT, id, pack({"call_id": call_id}), packed])

    def _packed(self, body: Mapping[str, Any]) -> bytes:
        packed = pack(body) if body else b""
        if len(packed) > self.max_body:
            raise RequestError("too_large", f"the body has {len(packed)} bytes; at most {self.max_body}")
        return packed

    def _send(
        self,
        kind: bytes,
        id: bytes | str | None,
        header: Mapping[str, Any],
        body: Mapping[str, Any],
        now: float,
        timeout: float,
    ) -> Run:
        name = self._name(id)
        packed = self._packed(body)
        packed_header = pack(header) if header else b""
        if not self.open:
            self._heard_at = now  # while nothing was open, silence meant nothing
        request = self.open[name] = Run(name, kind, now + timeout + PATIENCE)
        self.outgoing.append([kind, name, packed_header, packed])
        return request

    def _name(self, id: bytes | str | None) -> bytes:
        if id is None:
            return secrets.token_hex(16).encode()
        name = id.encode() if isinstance(id, str) else id
        if not 1 <= len(name) <= limits.MAX_ID:
            raise RequestError("invalid_request", f"the id has {len(name)} bytes; it must have 1 to {limits.MAX_ID}")
        if name in self.open:
            raise RequestError("invalid_request", f"a request with id {name!r} is open already")
        return name

    def abandon(self, request: Run) -> None:
        """Nobody waits for it any more: cancel it if it is a run, and end it; what was not read is dropped."""
        request.inbox.clear()
        self._give_up(request, RunEndedError("cancelled", "nobody waits for it any more", {"by": "client"}))

    def close(self) -> list[Run]:
        """Nobody will read any more: cancel and end all that is open; the requests that were."""
        closed = list(self.open.values())
        for request in closed:
            self._give_up(request, RunEndedError("cancelled", "the client was closed", {"by": "client"}))
        return closed

    def _give_up(self, request: Run, error: AxonError) -> None:
        if not request.ended:
            if request.kind in RUN_KINDS:
                self.cancel(request.id)
            self._end(request, error)

    # --- what came ---------------------------------------------------------------------------------

    def receive(self, frames: list[bytes], now: float) -> Run | None:
        """Take one message; the request that it was for, if there is something new in its inbox."""
        self._heard_at = now
        if len(frames) < 3:
            return None
        kind, id, packed = frames[-3:]  # from the tail: stale frames may stand in front after a reconnect
        if kind == kinds.ALIVE:
            with suppress(RequestError):
                self._alive(unpack(packed, "alive"), now)
            return None
        request = self.open.get(id)
        if request is None:
            return None
        try:
            return request if self._read(request, kind, packed, now) else None
        except (RequestError, LookupError, TypeError, AttributeError) as fault:
            why = f"the daemon's answer cannot be read: {type(fault).__name__}: {fault}"
            self._give_up(request, RunEndedError("internal", why, {"by": "client"}))
            return request

    def _read(self, request: Run, kind: bytes, packed: bytes, now: float) -> bool:
        body = unpack(packed, kind.decode("ascii", "replace"))
        seq = body.get("seq")
        if seq is not None and not self._in_order(request, seq, now):
            return False
        return self._take(request, kind, body, now)

    def _begin_again(self, request: Run, now: float) -> bool:
        """The daemon was restarted while the run waited, and says that it never began; whether that ends it."""
        if request.cancelled:
            self._end(request, RunEndedError("cancelled", "cancelled before it was started", {"by": "client"}))
            return True
        if now - request.begun_again_at < RESUME_AGAIN:
            return False
        request.begun_again_at = now
        (kind, id, header, body), *said = request.frames
        left = max(1, int((request.deadline - PATIENCE - now) * 1000))
        header = pack({**unpack(header, "the header"), "timeout_ms": left})
        self.outgoing.extend([[kind, id, header, body], *said])
        return False

    def _in_order(self, request: Run, seq: int, now: float) -> bool:
        request.highest_seq = max(request.highest_seq, seq)
        if seq == request.last_seq + 1:
            request.last_seq = seq
            request.frames.clear()
            return True
        if seq > request.last_seq:
            self._resume(request, now)
        return False

    def _take(self, request: Run, kind: bytes, body: dict[str, Any], now: float) -> bool:
        match kind:
            case kinds.ERROR:
                error = AxonError.from_body(body)
                if request.frames and _never_ran(error, now - request.sent_at):
                    return self._begin_again(request, now)
                self._end(request, error)
            case kinds.PONG:
                self._learn(body.get("limits"))
                self._met(body.get("boot"), now)
                if self._silent:  # alive, and yet it had nothing to say about what is open here
                    self._silent = False
                    self._resume_all(now)
                self._end(request, body)
            case kinds.CATALOG:
                self._end(request, body)
            case kinds.RESUMED:
                return self._resumed(request, body)
            case _:
                event = event_of(kind, body)
                return event is not None and self._hear(request, event)
        return True

    def _resumed(self, request: Run, body: dict[str, Any]) -> bool:
        if body.get("gap"):
            lost = f"messages {request.last_seq + 1} to {body['from'] - 1} are no longer kept"
            self._give_up(request, RunEndedError("slow_consumer", lost))
            return True
        listed = [call["call_id"] for call in body.get("open_calls") or ()]
        last = body.get("last")
        for call_id, packed in request.calls.resumed(listed, request.highest_seq if last is None else last):
            self._send_answer(request.id, call_id, packed)
        return False

    def _hear(self, request: Run, event: Event) -> bool:
        """Take one event; whether it is news to whoever reads."""
        match event:
            case Chunk():
                pass
            case Complete():
                self._end(request, event)
                return True
            case Refused() if event.of == printable(request.kind):  # another run has this id: nothing more will come
                self._end(request, AxonError.of(event.error_type, event.message))
                return True
            case Refused(of="resume" | "tool_result", error_type="overloaded"):
                request.resume_due = True
                return False
            case ToolCall() | ToolCancelled() | Refused():
                if not _is_news(request.calls, event):
                    return False
                self.tool_events.append((request, event))
            case _:
                pass
        request.inbox.append(event)
        return True

    def _end(self, request: Run, last: Event | AxonError | dict[str, Any]) -> None:
        request.inbox.append(last)
        request.ended = True
        self.open.pop(request.id, None)

    # --- who is there ------------------------------------------------------------------------------

    def connected(self, now: float) -> None:
        """The connection is there, or there again: ask who it is, and for what was lost meanwhile."""
        if self._connected:
            self._resume_all(now)
        self._connected = True
        self._probe(now)

    def _alive(self, body: Mapping[str, Any], now: float) -> None:
        self._met(body.get("boot"), now)
        mine = sum(request.kind != kinds.PING for request in self.open.values())
        wrong = body.get("open") != mine
        if wrong and self._miscounted:
            self._resume_all(now)
        self._miscounted = wrong and not self._miscounted

    def _learn(self, bounds: Any) -> None:
        if isinstance(bounds, dict) and type(max_body := bounds.get("max_body")) is int:
            self.max_body = max_body

    def _met(self, boot: Any, now: float) -> None:
        if not isinstance(boot, str):
            return
        if self._boot is not None and boot != self._boot:
            self._resume_all(now)
        self._boot = boot

    def _resume_all(self, now: float) -> None:
        for request in self.open.values():
            if request.kind in RUN_KINDS:
                self._resume(request, now)

    def _resume(self, request: Run, now: float) -> None:
        if now - request.resumed_at >= RESUME_AGAIN:
            request.resumed_at, request.resume_due = now, False
            header = {"from": request.last_seq + 1} | ({"upto": request.granted} if request.window else {})
            self.outgoing.append([kinds.RESUME, request.id, pack(header)])
            if request.cancelled:
                self.outgoing.append([kinds.CANCEL, request.id])
        else:
            request.resume_due = True

    def tick(self, now: float) -> list[Run]:
        """Time has passed: ask after a silence, and give up what is overdue; the requests given up."""
        if self.open and now - max(self._heard_at, self._pinged_at) > limits.CLIENT_SILENCE:
            self._silent = True
            self._probe(now)
        for request in self.open.values():
            if request.resume_due:
                self._resume(request, now)
        overdue = [request for request in self.open.values() if now > request.deadline]
        for request in overdue:
            self._end(request, RunEndedError("deadline_exceeded", "the daemon did not answer", {"by": "client"}))
        return overdue

    def _probe(self, now: float) -> None:
        self._pinged_at = now
        self.outgoing.append([kinds.PING, self._probe_id, pack({"instance": self._instance})])
        self.open[self._probe_id] = Run(self._probe_id, kinds.PING, now + limits.CLIENT_SILENCE)


def _is_news(calls: Calls, event: ToolCall | ToolCancelled | Refused) -> bool:
    match event:
        case ToolCall():
            return calls.take(event)
        case ToolCancelled():
            return calls.cancelled(event.call_id)
        case _:
            if event.call_id is not None and event.error_type != "unknown_request":
                calls.refused(event.call_id)
            return True


def _never_ran(error: AxonError, age: float) -> bool:
    """Whether the daemon is sure that a run, sent `age` seconds ago, was never begun."""
    if error.error_type != "unknown_request":
        return False
    return error.details.get("may_have_run") is False or age * 1000 < error.details.get("never_ran_within_ms", 0)


def _chosen(options: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: options[key] for key in keys if options.get(key) is not None}
