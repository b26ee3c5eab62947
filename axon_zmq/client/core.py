"""The client's side of the protocol, without I/O.

`ClientCore` implements the rules that every client must follow (`docs/protocol.md`):

- The messages of a run are accepted in sequence. After a gap, a reconnect, a restart of the broker or a wrong count of
  open requests, the client sends `resume`.
- A tool call is executed once. Its answer is sent again until it has arrived.
- If nothing is received for some time, the client sends `ping` to find out whether a broker is running.

The shell passes received frames and the time to `receive` and `tick`, and sends the frames in `outgoing`.
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
"""Seconds after the deadline of a request for which the client still waits for a terminal message."""
SILENCE_TIMEOUT_S: Final = 5.0
"""Seconds without a received message, while requests are open, after which the client sends a `ping`."""
RESUME_INTERVAL_S: Final = 2.0
"""Seconds between two `resume` messages for one run."""
Item = Event | AxonError | Catalog | Pong
"""Item in the inbox of a request: an event of a run, the reply to `describe` or `ping`, or the error that ended it."""


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """State of one request: a run, a `describe` or a `ping`."""

    id: bytes
    kind: bytes
    deadline: float
    """Time at which the client gives the request up if no terminal message has arrived. Like all times here, in seconds
    of the monotonic clock that the shell uses."""
    last_seq: int = 0
    """`seq` of the last message that was accepted."""
    highest_seq: int = 0
    """Highest `seq` that was received, including messages after a gap."""
    window: int = 0
    """Number of messages that may be in flight to the reader; 0: no limit."""
    granted: int = 0
    """Credit of the run: the daemon may send messages up to this `seq`."""
    sent_at: float = 0.0
    """Time at which the request was first sent."""
    frames: list[list[bytes]] = field(default_factory=list[list[bytes]])
    """The request and its `steer` messages. They are kept until the run is known to have started, because a broker that
    is restarted may lose them."""
    restarted_at: float = float("-inf")
    """Time at which the request was last sent again. An `unknown_request` that follows within `RESUME_INTERVAL_S` may
    answer an earlier message, so it does not cause another repetition."""
    cancelled: bool = False
    """Whether the client has sent `cancel`."""
    resume_due: bool = False
    """Whether another `resume` is needed; it is sent when the last one is `RESUME_INTERVAL_S` old. This is set if a
    `resume` was needed earlier than that, or if the daemon refused a `resume` or a tool's answer as `overloaded`."""
    tool_calls: ToolCalls = field(default_factory=ToolCalls)
    """Record of the run's tool calls."""
    resumed_at: float = float("-inf")
    """Time at which the last `resume` was sent."""
    ended: bool = False
    """Whether the last item was put into the inbox."""
    inbox: deque[Item] = field(default_factory=deque[Item])
    """Items that the application has not read yet."""

    def __repr__(self) -> str:
        state = "ended" if self.ended else "open"
        return (
            f"<Run {printable(self.kind)} {printable(self.id)} {state}, seq {self.last_seq}, {len(self.inbox)} unread>"
        )


class ClientCore:
    """All requests of one DEALER socket, and the rules of the protocol for them. It is not thread-safe."""

    def __init__(self) -> None:
        self.outgoing: deque[list[bytes]] = deque()
        """Frames to send, in order."""
        self.tool_events: deque[tuple[Run, ToolCall | ToolCancelled | Refused]] = deque()
        """Events about tool calls, in order, for the shell that executes the tools. They are also in the inboxes."""
        self.open: dict[bytes, Run] = {}
        """Unfinished requests by id."""
        self.max_body = limits.BrokerLimits().max_body
        """Size of the largest body that the daemon accepts, in bytes: the default until the first `pong`."""
        self.shared = False
        """Whether the last `pong` reported that another process or connection recently used the same routing id."""
        self._instance = secrets.token_hex(8)
        """Random name of this client process. Brokers of earlier versions detect by it that two processes have the same
        routing id."""
        self._probe_id = b"probe-" + secrets.token_hex(16).encode()
        """Id of the pings that the core itself sends; the application does not read their replies."""
        self._boot: str | None = None
        """Name of the last known broker process."""
        self._received_at = float("-inf")
        self._pinged_at = float("-inf")
        self._did_count_differ = False
        """Whether the last `alive` had another number of open requests than this client."""
        self._was_connected = False
        self._was_silent = False
        """Whether the last `ping` was sent because nothing was received for `SILENCE_TIMEOUT_S`."""

    def __repr__(self) -> str:
        return f"<ClientCore {len(self.open)} open, boot {self._boot}>"

    # --- requests and messages of the application ----------------------------------------------------

    def run(self, mode: str, agent: Agent, prompt: Prompt | None, options: RunOptions, now: float) -> Run:
        """Start a run.

        Args:
            mode: `run_sync`, `run` or `run_stream`.
            agent: Name of a registered agent, or an agent as data.
            prompt: Text, a list of parts, or None to continue from `message_history`.
            options: See `RunOptions`; here `tools` must be maps.
            now: Current time in seconds of a monotonic clock.

        Returns:
            The run, whose inbox receives its events.

        Raises:
            RequestError: `too_large`: the body exceeds the daemon's limit; or `invalid_request`: the id is empty, over
                64 bytes, or belongs to an open request.
            TypeError: An option is unknown.
            ValueError: `credit` is less than 1.
        """
        check_keys(options, BODY_KEYS)
        body: dict[str, object] = {"agent": agent, **chosen(options, BODY_KEYS)}
        if prompt is not None:
            body["prompt"] = prompt
        return self._start(mode.encode(), options, body, now)

    def call_tool(self, tool: str, args: Mapping[str, object], options: CallOptions, now: float) -> Run:
        """Call one Python tool of the daemon without a model.

        Args:
            tool: Name of the tool.
            args: Arguments of the tool by name.
            options: See `CallOptions`.
            now: Current time in seconds of a monotonic clock.

        Returns:
            The run, whose inbox receives its events.

        Raises:
            RequestError: See `run`.
            TypeError: An option is unknown.
            ValueError: `credit` is less than 1.
        """
        check_keys(options, CALL_KEYS)
        return self._start(kinds.CALL_TOOL, options, {"tool": tool, "args": args, **chosen(options, CALL_KEYS)}, now)

    def answer(self, id: bytes, call_id: str, body: Mapping[str, object]) -> bool:
        """Answer a tool call.

        Args:
            id: Request id of the run.
            call_id: Id of the call, as in the `ToolCall`.
            body: `{result, content?, metadata?}` or `{error: {message, retry}}`.

        Returns:
            True if the run is open and the answer will be sent; otherwise False.

        Raises:
            RequestError: `too_large`: the body exceeds the daemon's limit.
        """
        run = self._open_run(id)
        if run is None:
            return False
        packed = self._packed(body)
        run.tool_calls.answered(call_id, packed)
        self._send_answer(id, call_id, packed)
        return True

    def steer(self, id: bytes, content: object, priority: str) -> bool:
        """Send a user message to a running agent.

        Returns:
            True if the run is open and the message will be sent; otherwise False.

        Raises:
            RequestError: `too_large`: the body exceeds the daemon's limit.
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
        """Record that the application has read an event of a run, and grant more credit if half of the window is used.

        Events that need no credit, such as a tool call, count too, because credit is a `seq` and they have one.
        """
        seq = getattr(event, "seq", 0)
        if run.window and not run.ended and seq + run.window - run.granted > run.window // 2:
            run.granted = seq + run.window
            self.outgoing.append([kinds.CREDIT, run.id, pack({"upto": run.granted})])

    def describe(self, agent: str | None, now: float) -> Run:
        """Request the catalog of agents and toolsets."""
        deadline = now + limits.DESCRIBE_TIMEOUT + ANSWER_GRACE_S
        return self._send(kinds.DESCRIBE, None, {}, {"agent": agent} if agent else {}, deadline, now)

    def ping(self, now: float, timeout: float) -> Run:
        """Send a `ping`; the request ends with an error if no `pong` arrives within `timeout` seconds."""
        return self._send(kinds.PING, None, {"instance": self._instance}, {}, now + timeout, now)

    def cancel(self, id: bytes) -> None:
        """Send `cancel` for a run. The run stays open until its terminal message arrives."""
        self.outgoing.append([kinds.CANCEL, id])
        if (run := self._open_run(id)) is not None:
            run.cancelled = True

    def _start(self, kind: bytes, options: RequestOptions, body: Mapping[str, object], now: float) -> Run:
        window = options.get("credit") or 0
        if window < 1 and options.get("credit") is not None:
            raise ValueError(f"invalid credit {window}: expected at least 1, or None for no limit")
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
            raise RequestError(
                "too_large", f"body too large: {len(packed)} bytes, at most {self.max_body} (pong.limits.max_body)"
            )
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
            self._received_at = now  # time without open requests does not count as silence
        run = self.open[name] = Run(id=name, kind=kind, deadline=deadline)
        self.outgoing.append([kind, name, packed_header, packed])
        return run

    def _name(self, id: bytes | str | None) -> bytes:
        if id is None:
            return secrets.token_hex(16).encode()
        name = id.encode() if isinstance(id, str) else id
        if not 1 <= len(name) <= limits.MAX_ID:
            raise RequestError(
                "invalid_request", f"invalid request id of {len(name)} bytes: expected 1 to {limits.MAX_ID} bytes"
            )
        if name in self.open:
            raise RequestError("invalid_request", f"this client already has an open request with id {name!r}")
        return name

    def abandon(self, run: Run) -> None:
        """End a request whose reader has left: drop its unread items, and send `cancel` if it is a run."""
        run.inbox.clear()
        self._give_up(run, RunEndedError("cancelled", "the reader left the stream", {"by": "client"}))

    def close(self) -> list[Run]:
        """End all open requests, and send `cancel` for each run.

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

    # --- received messages ---------------------------------------------------------------------------

    def receive(self, frames: list[bytes], now: float) -> Run | None:
        """Process one message.

        A malformed message ends the request that it belongs to; a malformed `alive` is ignored.

        Args:
            frames: Frames of the message.
            now: Current time in seconds of a monotonic clock.

        Returns:
            The request whose inbox has a new item, or None.
        """
        self._received_at = now
        if len(frames) < 3:
            return None
        # Only the last three frames count, which is a rule for all clients: after a disconnect in the middle of a
        # multipart message, some libraries (chumak, for one) deliver its frames in front of the next message.
        kind, id, packed = frames[-3:]
        run = None if kind == kinds.ALIVE else self.open.get(id)
        if run is None and kind != kinds.ALIVE:
            return None
        try:
            received = decode(kind, packed)
        except RequestError as fault:
            return None if run is None else self._end_malformed(run, kind, fault)
        if run is not None:
            return run if self._process(run, received, now) else None
        if isinstance(received.message, Alive):
            self._compare_open_count(received.message, now)
        return None

    def _end_malformed(self, run: Run, kind: bytes, fault: RequestError) -> Run:
        message = f"malformed `{printable(kind)}` message from the daemon: {fault.message}"
        self._give_up(run, RunEndedError("internal", message, {"by": "client"}))
        return run

    def _process(self, run: Run, received: Received, now: float) -> bool:
        """Apply a message to its request, and return whether the inbox has a new item."""
        if received.seq is not None and not self._in_order(run, received.seq, now):
            return False
        match received.message:
            case Chunk() | Log() | Accepted() as event:  # first, because nearly all messages are chunks
                run.inbox.append(event)
            case Failed() as failed:
                return self._fail(run, failed, now)
            case Pong() as pong:
                self._process_pong(pong, now)
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
            run.frames.clear()  # the run has started, so its request must not be sent again
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
        """Send the request again, because a restarted broker lost it before a worker started it.

        Returns:
            True if the inbox has a new item, because the run was cancelled and ends instead; otherwise False.
        """
        if run.cancelled:
            self._end(run, RunEndedError("cancelled", "cancelled before it was started", {"by": "client"}))
            return True
        if now - run.restarted_at < RESUME_INTERVAL_S:
            return False
        run.restarted_at = now
        (kind, id, header, body), *steers = run.frames
        # The broker counts `timeout_ms` from the arrival of the request, so only the remaining time is sent.
        left = max(1, int((run.deadline - ANSWER_GRACE_S - now) * 1000))
        header = pack({**unpack(header, "the header"), "timeout_ms": left})
        self.outgoing.extend([[kind, id, header, body], *steers])
        return False

    def _resumed(self, run: Run, resumed: Resumed) -> bool:
        if resumed.gap:
            # The run ends, because otherwise its reader would miss a part of the answer without noticing it.
            lost = f"messages {run.last_seq + 1} to {resumed.start - 1} are no longer kept for replay"
            self._give_up(run, RunEndedError("slow_consumer", lost))
            return True
        last = run.highest_seq if resumed.last is None else resumed.last
        for call_id, packed in run.tool_calls.resumed(resumed.open_calls, last):
            self._send_answer(run.id, call_id, packed)
        return False

    def _refused(self, run: Run, refused: Refused) -> bool:
        if refused.of == printable(run.kind):  # the id belongs to another run, so no terminal message will follow
            self._end(run, AxonError.of(refused.error_type, refused.message))
            return True
        if refused.error_type == "overloaded" and refused.of in ("resume", "tool_result"):
            # A broker in recovery holds a limited number of messages. A later `resume` replaces the refused one, and
            # its reply shows which answers are missing.
            run.resume_due = True
            return False
        return self._deliver(run, refused)

    def _deliver(self, run: Run, event: ToolCall | ToolCancelled | Refused) -> bool:
        """Pass an event to the application and to the shell that executes tools, unless it is a repetition."""
        if not _is_new(run.tool_calls, event):
            return False
        self.tool_events.append((run, event))
        run.inbox.append(event)
        return True

    def _end(self, run: Run, last: Item) -> None:
        run.inbox.append(last)
        run.ended = True
        self.open.pop(run.id, None)

    # --- reconnects, restarts of the broker, and timers ----------------------------------------------

    def connected(self, now: float) -> None:
        """Handle a new connection: send a `ping`, and after a reconnect a `resume` for each run."""
        if self._was_connected:
            self._resume_all(now)
        self._was_connected = True
        self._probe(now)

    def _compare_open_count(self, alive: Alive, now: float) -> None:
        self._check_boot(alive.boot, now)
        own_count = sum(run.kind != kinds.PING for run in self.open.values())
        does_differ = alive.open != own_count
        # One difference is normal while a request or a terminal message is in flight; two in a row show a lost message.
        if does_differ and self._did_count_differ:
            self._resume_all(now)
        self._did_count_differ = does_differ and not self._did_count_differ

    def _process_pong(self, pong: Pong, now: float) -> None:
        if pong.max_body is not None:
            self.max_body = pong.max_body
        self.shared = pong.shared
        if pong.boot is not None:
            self._check_boot(pong.boot, now)
        if self._was_silent:  # the broker is alive but sent nothing about the open requests: messages may be lost
            self._was_silent = False
            self._resume_all(now)

    def _check_boot(self, boot: str, now: float) -> None:
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
            # The `credit` messages may be lost, too, so `resume` repeats the credit.
            header = {"from": run.last_seq + 1} | ({"upto": run.granted} if run.window else {})
            self.outgoing.append([kinds.RESUME, run.id, pack(header)])
            if run.cancelled:  # the `cancel` may be lost, too
                self.outgoing.append([kinds.CANCEL, run.id])
        else:
            run.resume_due = True

    def tick(self, now: float) -> list[Run]:
        """Process the timers: send a due `ping` and due `resume` messages, and end overdue requests.

        Returns:
            The requests that were ended.
        """
        if self.open and now - max(self._received_at, self._pinged_at) > SILENCE_TIMEOUT_S:
            self._was_silent = True
            self._probe(now)
        for run in self.open.values():
            if run.resume_due:
                self._resume(run, now)
        overdue = [run for run in self.open.values() if now > run.deadline]
        for run in overdue:
            self._end(run, RunEndedError("deadline_exceeded", "the daemon did not answer in time", {"by": "client"}))
        return overdue

    def _probe(self, now: float) -> None:
        self._pinged_at = now
        self.outgoing.append([kinds.PING, self._probe_id, pack({"instance": self._instance})])
        # The probe is an open request like any other, so that its `pong` is processed. It always has the same id, so
        # that an unanswered probe is replaced by the next one.
        deadline = now + SILENCE_TIMEOUT_S
        self.open[self._probe_id] = Run(id=self._probe_id, kind=kinds.PING, deadline=deadline)


def _is_new(tool_calls: ToolCalls, event: ToolCall | ToolCancelled | Refused) -> bool:
    """Record an event about a tool call, and return whether the application must see it."""
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
    """Whether the daemon guarantees that a run that was sent `age` seconds ago was never started."""
    if failed.error.error_type != "unknown_request":
        return False
    return failed.never_ran or age * 1000 < failed.never_ran_within_ms
