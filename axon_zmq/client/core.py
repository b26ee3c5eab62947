"""The client's side of the protocol, without I/O: what to send, and what a received message means.

`ClientCore` implements the rules that every client must follow: the sequence of each run, `resume` after a gap, a
new broker or a lost message, tool calls that are executed once and answered until the answer has arrived, and
the `ping` that finds out whether a broker is there. Frames go out through `outgoing` and come in through
`receive`; time is passed in.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from axon_zmq.client.messages import Alive, Catalog, Failed, Pong, Received, Resumed, decode
from axon_zmq.client.options import (
    BODY_KEYS,
    CALL_KEYS,
    HEADER_KEYS,
    Agent,
    CallOptions,
    Prompt,
    RequestOptions,
    RunOptions,
    check_keys,
    chosen,
)
from axon_zmq.client.tool_calls import ToolCalls
from axon_zmq.errors import AxonError, RequestError, RunEndedError
from axon_zmq.events import Accepted, Chunk, Complete, Event, Log, Refused, ToolCall, ToolCancelled
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import printable
from axon_zmq.protocol.kinds import RUN_KINDS
from axon_zmq.protocol.msgpack import pack, unpack

ANSWER_GRACE_S: Final = 10.0
"""Seconds for which a terminal message is awaited after a request's own time has passed."""
SILENCE_TIMEOUT_S: Final = 5.0
"""Seconds without any message, while requests are open, after which the client sends a `ping`."""
RESUME_INTERVAL_S: Final = 2.0
"""Seconds between two `resume` messages for one run."""
Item = Event | AxonError | Catalog | Pong
"""What a reader receives: events of a run, the reply to `describe` or `ping`, or the error that ended the request."""


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """One unfinished request: a run, a `describe` or a `ping`."""

    id: bytes
    kind: bytes
    deadline: float
    """When it is given up if no terminal message has arrived."""
    last_seq: int = 0
    """`seq` of the last message that was accepted."""
    highest_seq: int = 0
    """Highest `seq` that arrived, also behind a gap."""
    window: int = 0
    """Messages that may be in flight to the reader; 0: any number."""
    granted: int = 0
    """The credit that the daemon was given: a `seq`."""
    sent_at: float = 0.0
    frames: list[list[bytes]] = field(default_factory=list[list[bytes]])
    """The request and its `steer`s, kept until the run is known to have started: a restarted broker may have lost
    them."""
    restarted_at: float = float("-inf")
    """When it was sent again. Another message soon afterwards that it never ran answers what was sent before."""
    cancelled: bool = False
    resume_due: bool = False
    """A `resume` is due: the last one was too recent, or the daemon had no room for it or for an answer."""
    tool_calls: ToolCalls = field(default_factory=ToolCalls)
    resumed_at: float = float("-inf")
    ended: bool = False
    inbox: deque[Item] = field(default_factory=deque[Item])
    """Items that have arrived and were not read yet."""

    def __repr__(self) -> str:
        state = "ended" if self.ended else "open"
        return (
            f"<Run {printable(self.kind)} {printable(self.id)} {state}, seq {self.last_seq}, {len(self.inbox)} unread>"
        )


class ClientCore:
    """The requests of one DEALER socket. Not thread-safe."""

    def __init__(self) -> None:
        self.outgoing: deque[list[bytes]] = deque()
        """Frames to send, in order."""
        self.tool_events: deque[tuple[Run, ToolCall | ToolCancelled | Refused]] = deque()
        """Events for those who execute tools, in order; they are in the run's inbox too."""
        self.open: dict[bytes, Run] = {}
        self.max_body = limits.BrokerLimits().max_body
        """Bytes of the largest body that the daemon accepts: the default until a `pong` has arrived."""
        self._instance = secrets.token_hex(8)
        self._probe_id = b"probe-" + secrets.token_hex(16).encode()
        """Id of the pings that the core sends on its own; no reader waits for their reply."""
        self._boot: str | None = None
        self._heard_at = float("-inf")
        self._pinged_at = float("-inf")
        self._miscounted = False
        self._connected = False
        self._silent = False

    def __repr__(self) -> str:
        return f"<ClientCore {len(self.open)} open, boot {self._boot}>"

    # --- what to send ------------------------------------------------------------------------------

    def run(self, mode: str, agent: Agent, prompt: Prompt | None, options: RunOptions, now: float) -> Run:
        """Start a run.

        Args:
            mode: `run_sync`, `run` or `run_stream`.
            agent: A registered name, or an agent as data.
            prompt: Text, a list of parts, or None to continue from `message_history`.
            options: See `RunOptions`; `tools` are maps here.
            now: Seconds of a monotonic clock.

        Raises:
            TypeError: An option is unknown.
            RequestError: `too_large`, or an id that is open already, empty or over 64 bytes.
        """
        check_keys(options, BODY_KEYS)
        body: dict[str, object] = {"agent": agent, **chosen(options, BODY_KEYS)}
        if prompt is not None:
            body["prompt"] = prompt
        return self._start(mode.encode(), options, body, now)

    def call_tool(self, tool: str, args: Mapping[str, object], options: CallOptions, now: float) -> Run:
        """Call one Python tool of the daemon, without a model.

        Args:
            tool: Its name.
            args: Its arguments by name.
            options: See `CallOptions`.
            now: Seconds of a monotonic clock.

        Raises:
            TypeError: An option is unknown.
            RequestError: As `run`.
        """
        check_keys(options, CALL_KEYS)
        return self._start(kinds.CALL_TOOL, options, {"tool": tool, "args": args, **chosen(options, CALL_KEYS)}, now)

    def answer(self, id: bytes, call_id: str, body: Mapping[str, object]) -> bool:
        """Answer a tool call.

        Args:
            id: Of the run.
            call_id: As in the `ToolCall`.
            body: `{result}`, `{result, content?, metadata?}` or `{error: {message, retry}}`.

        Returns:
            Whether the run was still open here.

        Raises:
            RequestError: `too_large`.
        """
        run = self._open_run(id)
        if run is None:
            return False
        packed = self._packed(body)
        run.tool_calls.answered(call_id, packed)
        self._send_answer(id, call_id, packed)
        return True

    def steer(self, id: bytes, content: object, priority: str) -> bool:
        """Send a user message to a run that is under way.

        Returns:
            Whether the run was still open here.

        Raises:
            RequestError: `too_large`.
        """
        run = self._open_run(id)
        if run is None:
            return False
        frames = [kinds.STEER, id, b"", self._packed({"content": content, "priority": priority})]
        self.outgoing.append(frames)
        if run.frames:
            run.frames.append(frames)
        return True

    def acknowledge(self, run: Run, event: Event) -> None:
        """Note that a run's reader has read an event; grant more credit once half of the window is used.

        This includes events that need no credit, such as a tool call: they are numbered like the others.
        """
        seq = getattr(event, "seq", 0)
        if run.window and not run.ended and seq + run.window - run.granted > run.window // 2:
            run.granted = seq + run.window
            self.outgoing.append([kinds.CREDIT, run.id, pack({"upto": run.granted})])

    def describe(self, agent: str | None, now: float) -> Run:
        """Ask for the catalog of agents and toolsets."""
        deadline = now + limits.DESCRIBE_TIMEOUT + ANSWER_GRACE_S
        return self._send(kinds.DESCRIBE, None, {}, {"agent": agent} if agent else {}, deadline, now)

    def ping(self, now: float, timeout: float) -> Run:
        """Ask which broker is there; after `timeout` seconds the request ends."""
        return self._send(kinds.PING, None, {"instance": self._instance}, {}, now + timeout, now)

    def cancel(self, id: bytes) -> None:
        """Ask a run to end; its own terminal message says how it ended."""
        self.outgoing.append([kinds.CANCEL, id])
        if (run := self._open_run(id)) is not None:
            run.cancelled = True

    def _start(self, kind: bytes, options: RequestOptions, body: Mapping[str, object], now: float) -> Run:
        window = options.get("credit") or 0
        if window < 1 and options.get("credit") is not None:
            raise ValueError("credit must be at least 1, or None for any number of messages")
        timeout_ms = options.get("timeout_ms")
        seconds = (limits.DEFAULT_TIMEOUT_MS if timeout_ms is None else timeout_ms) / 1000
        deadline = now + seconds + ANSWER_GRACE_S
        run = self._send(kind, options.get("id"), chosen(options, HEADER_KEYS), body, deadline, now)
        run.window = run.granted = window
        run.frames, run.sent_at = [self.outgoing[-1]], now
        return run

    def _open_run(self, id: bytes) -> Run | None:
        run = self.open.get(id)
        return run if run is not None and run.kind in RUN_KINDS else None

    def _send_answer(self, id: bytes, call_id: str, packed: bytes) -> None:
        self.outgoing.append([kinds.TOOL_RESULT, id, pack({"call_id": call_id}), packed])

    def _packed(self, body: Mapping[str, object]) -> bytes:
        packed = pack(body) if body else b""
        if len(packed) > self.max_body:
            raise RequestError("too_large", f"the body has {len(packed)} bytes; at most {self.max_body}")
        return packed

    def _send(
        self,
        kind: bytes,
        id: bytes | str | None,
        header: Mapping[str, object],
        body: Mapping[str, object],
        deadline: float,
        now: float,
    ) -> Run:
        name = self._name(id)
        packed = self._packed(body)
        packed_header = pack(header) if header else b""
        if not self.open:
            self._heard_at = now  # silence while nothing was open does not count
        run = self.open[name] = Run(id=name, kind=kind, deadline=deadline)
        self.outgoing.append([kind, name, packed_header, packed])
        return run

    def _name(self, id: bytes | str | None) -> bytes:
        if id is None:
            return secrets.token_hex(16).encode()
        name = id.encode() if isinstance(id, str) else id
        if not 1 <= len(name) <= limits.MAX_ID:
            raise RequestError("invalid_request", f"the id has {len(name)} bytes; it must have 1 to {limits.MAX_ID}")
        if name in self.open:
            raise RequestError("invalid_request", f"a request with id {name!r} is open already")
        return name

    def abandon(self, run: Run) -> None:
        """End a request that no reader waits for any more: cancel it if it is a run, and drop what was not read."""
        run.inbox.clear()
        self._give_up(run, RunEndedError("cancelled", "nobody waits for it any more", {"by": "client"}))

    def close(self) -> list[Run]:
        """Cancel and end all open requests.

        Returns:
            The requests that were open.
        """
        closed = list(self.open.values())
        for run in closed:
            self._give_up(run, RunEndedError("cancelled", "the client was closed", {"by": "client"}))
        return closed

    def _give_up(self, run: Run, error: AxonError) -> None:
        if not run.ended:
            if run.kind in RUN_KINDS:
                self.cancel(run.id)
            self._end(run, error)

    # --- what was received -------------------------------------------------------------------------

    def receive(self, frames: list[bytes], now: float) -> Run | None:
        """Process one message.

        A malformed message ends the request that it belongs to; a malformed `alive` is ignored.

        Args:
            frames: Those of the message; stale frames may precede it after a reconnect.
            now: Seconds of a monotonic clock.

        Returns:
            The request whose inbox has a new item, if any.
        """
        self._heard_at = now
        if len(frames) < 3:
            return None
        kind, id, packed = frames[-3:]
        run = None if kind == kinds.ALIVE else self.open.get(id)
        if run is None and kind != kinds.ALIVE:
            return None
        try:
            received = decode(kind, packed)
        except RequestError as fault:
            return None if run is None else self._end_unreadable(run, kind, fault)
        if run is not None:
            return run if self._process(run, received, now) else None
        if isinstance(received.message, Alive):
            self._check_count(received.message, now)
        return None

    def _end_unreadable(self, run: Run, kind: bytes, fault: RequestError) -> Run:
        why = f"the daemon's answer cannot be read: {printable(kind)}: {fault.message}"
        self._give_up(run, RunEndedError("internal", why, {"by": "client"}))
        return run

    def _process(self, run: Run, received: Received, now: float) -> bool:
        """Apply a message to its request; whether its inbox has a new item."""
        if received.seq is not None and not self._in_order(run, received.seq, now):
            return False
        match received.message:
            case Chunk() | Log() | Accepted() as event:  # first, because nearly all messages are chunks
                run.inbox.append(event)
            case Failed() as failed:
                return self._fail(run, failed, now)
            case Pong() as pong:
                self._learn(pong, now)
                self._end(run, pong)
            case Catalog() as catalog:
                self._end(run, catalog)
            case Resumed() as resumed:
                return self._resumed(run, resumed)
            case Alive() | None:
                return False
            case Complete() as complete:
                self._end(run, complete)
            case Refused() as refused:
                return self._refused(run, refused)
            case ToolCall() | ToolCancelled() as event:
                return self._deliver(run, event)
        return True

    def _in_order(self, run: Run, seq: int, now: float) -> bool:
        run.highest_seq = max(run.highest_seq, seq)
        if seq == run.last_seq + 1:
            run.last_seq = seq
            run.frames.clear()
            return True
        if seq > run.last_seq:
            self._resume(run, now)
        return False

    def _fail(self, run: Run, failed: Failed, now: float) -> bool:
        if run.frames and _never_ran(failed, now - run.sent_at):
            return self._start_again(run, now)
        self._end(run, failed.error)
        return True

    def _start_again(self, run: Run, now: float) -> bool:
        """Send a run again that the daemon lost, in a restart, before it was started; whether this ends it instead."""
        if run.cancelled:
            self._end(run, RunEndedError("cancelled", "cancelled before it was started", {"by": "client"}))
            return True
        if now - run.restarted_at < RESUME_INTERVAL_S:
            return False
        run.restarted_at = now
        (kind, id, header, body), *steers = run.frames
        left = max(1, int((run.deadline - ANSWER_GRACE_S - now) * 1000))
        header = pack({**unpack(header, "the header"), "timeout_ms": left})
        self.outgoing.extend([[kind, id, header, body], *steers])
        return False

    def _resumed(self, run: Run, resumed: Resumed) -> bool:
        if resumed.gap:
            lost = f"messages {run.last_seq + 1} to {resumed.start - 1} are no longer kept"
            self._give_up(run, RunEndedError("slow_consumer", lost))
            return True
        last = run.highest_seq if resumed.last is None else resumed.last
        for call_id, packed in run.tool_calls.resumed(resumed.open_calls, last):
            self._send_answer(run.id, call_id, packed)
        return False

    def _refused(self, run: Run, refused: Refused) -> bool:
        if refused.of == printable(run.kind):  # the id belongs to another run: nothing will follow
            self._end(run, AxonError.of(refused.error_type, refused.message))
            return True
        if refused.error_type == "overloaded" and refused.of in ("resume", "tool_result"):
            run.resume_due = True
            return False
        return self._deliver(run, refused)

    def _deliver(self, run: Run, event: ToolCall | ToolCancelled | Refused) -> bool:
        """Hand an event to the reader and to those who execute tools, unless it is a repetition."""
        if not _is_news(run.tool_calls, event):
            return False
        self.tool_events.append((run, event))
        run.inbox.append(event)
        return True

    def _end(self, run: Run, last: Item) -> None:
        run.inbox.append(last)
        run.ended = True
        self.open.pop(run.id, None)

    # --- which broker is there ---------------------------------------------------------------------

    def connected(self, now: float) -> None:
        """The connection was established, or again: ask which broker it is, and for messages that were lost."""
        if self._connected:
            self._resume_all(now)
        self._connected = True
        self._probe(now)

    def _check_count(self, alive: Alive, now: float) -> None:
        self._met(alive.boot, now)
        mine = sum(run.kind != kinds.PING for run in self.open.values())
        wrong = alive.open != mine
        if wrong and self._miscounted:
            self._resume_all(now)
        self._miscounted = wrong and not self._miscounted

    def _learn(self, pong: Pong, now: float) -> None:
        if pong.max_body is not None:
            self.max_body = pong.max_body
        if pong.boot is not None:
            self._met(pong.boot, now)
        if self._silent:  # the broker is alive, and yet sent nothing about the open requests
            self._silent = False
            self._resume_all(now)

    def _met(self, boot: str, now: float) -> None:
        if self._boot is not None and boot != self._boot:
            self._resume_all(now)
        self._boot = boot

    def _resume_all(self, now: float) -> None:
        for run in self.open.values():
            if run.kind in RUN_KINDS:
                self._resume(run, now)

    def _resume(self, run: Run, now: float) -> None:
        if now - run.resumed_at >= RESUME_INTERVAL_S:
            run.resumed_at, run.resume_due = now, False
            header = {"from": run.last_seq + 1} | ({"upto": run.granted} if run.window else {})
            self.outgoing.append([kinds.RESUME, run.id, pack(header)])
            if run.cancelled:
                self.outgoing.append([kinds.CANCEL, run.id])
        else:
            run.resume_due = True

    def tick(self, now: float) -> list[Run]:
        """Act on the time: send a `ping` after a silence, due `resume`s, and give up overdue requests.

        Returns:
            The requests that were given up.
        """
        if self.open and now - max(self._heard_at, self._pinged_at) > SILENCE_TIMEOUT_S:
            self._silent = True
            self._probe(now)
        for run in self.open.values():
            if run.resume_due:
                self._resume(run, now)
        overdue = [run for run in self.open.values() if now > run.deadline]
        for run in overdue:
            self._end(run, RunEndedError("deadline_exceeded", "the daemon did not answer", {"by": "client"}))
        return overdue

    def _probe(self, now: float) -> None:
        self._pinged_at = now
        self.outgoing.append([kinds.PING, self._probe_id, pack({"instance": self._instance})])
        deadline = now + SILENCE_TIMEOUT_S
        self.open[self._probe_id] = Run(id=self._probe_id, kind=kinds.PING, deadline=deadline)


def _is_news(tool_calls: ToolCalls, event: ToolCall | ToolCancelled | Refused) -> bool:
    match event:
        case ToolCall():
            return tool_calls.take(event)
        case ToolCancelled():
            return tool_calls.cancelled(event.call_id)
        case _:
            if event.call_id is not None and event.error_type != "unknown_request":
                tool_calls.refused(event.call_id)
            return True


def _never_ran(failed: Failed, age: float) -> bool:
    """Whether the daemon is sure that a run, sent `age` seconds ago, was never started."""
    if failed.error.error_type != "unknown_request":
        return False
    return failed.never_ran or age * 1000 < failed.never_ran_within_ms
