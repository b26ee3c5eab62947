"""One run in a worker, as the code of its mode sees it.

A message of the run is numbered and kept in its replay buffer before it is sent. Chunks and logs wait for credit, and
are merged while they wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pydantic_ai import CancellationToken

from axon_zmq.errors import RequestError
from axon_zmq.process.event_loop import call_on
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import RunKey, printable
from axon_zmq.protocol.msgpack import unpack
from axon_zmq.protocol.plain import PlainMap, plain
from axon_zmq.protocol.requests import Steer, checked
from axon_zmq.worker.adapter.client_tools import RemoteCalls
from axon_zmq.worker.adapter.steering import Steering
from axon_zmq.worker.adapter.tool_wait import ToolWait
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.delivery.credit import NEEDS_CREDIT, Credit
from axon_zmq.worker.link import Link

LATE_THRESHOLD_S: Final = 0.008
"""Seconds that the event loop may be late before chunks are merged."""
HOLD_FACTOR: Final = 4
"""How long chunks are held to be merged, as a multiple of the loop's lateness."""
MAX_HOLD_S: Final = 0.1
"""Maximum seconds for which chunks are held."""
MAX_HELD_BYTES: Final = 4 * limits.KIB
"""Maximum bytes of a run's chunks that are held. Merging more saves no more time, and puts large messages into the
clients' pipes, whose capacity is counted in messages and not in bytes."""


class Mode(Protocol):
    """Executor of one kind of run: `run_sync`, `run`, `run_stream` or `call_tool`."""

    async def execute(self, run: Run) -> dict[str, Any]:
        """Execute the run and return the body of `complete`, or raise an exception."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """One run: its request, its outgoing messages, and its cancellation."""

    active: ActiveRun
    """The core's record of the run; `active.reason` is why it was asked to end."""
    header: Mapping[str, Any]
    """Header of the request."""
    body: bytes
    """Packed body of the request; empty once it was read."""
    link: Link
    loop: asyncio.AbstractEventLoop
    """The event loop of the link; in mode `run_sync` the agent has another one."""
    credit: Credit
    only_waits: Callable[[], None]
    """Reports that the code only waits for tools of the client; on the event loop of the link."""
    answered: Callable[[], None]
    """Reports that the code wants to continue, for which `proceed` is called; on the event loop of the link."""
    token: CancellationToken = field(default_factory=CancellationToken)
    """Cancels the agent's run, from any thread."""
    on_read: Callable[[], object] | None = None
    """Called once, on the event loop of the link, when the body was read or the run has ended."""
    on_end: Callable[[], object] | None = None
    """Called, in addition to cancelling `token`, when the run is asked to end."""
    steering: Steering = field(default_factory=Steering)
    remote: RemoteCalls = field(init=False)
    """Its open calls of tools that the client executes."""
    wait: ToolWait = field(init=False)
    """Lets the run leave its slot while it only waits for its client."""
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the run may start, because it has a slot, or when it is asked to end."""
    _more_credit: asyncio.Event = field(default_factory=asyncio.Event)
    _release_is_due: bool = False
    """Whether a timer is set that will send the held chunks."""

    def __post_init__(self) -> None:
        self.remote = RemoteCalls(self.send)
        self.wait = ToolWait(lambda: self.post(self.only_waits), lambda: self.post(self.answered))

    @property
    def kind(self) -> bytes:
        """The kind of its request."""
        return self.active.kind

    @property
    def client(self) -> bytes:
        """Routing id of its client."""
        return self.active.client

    @property
    def size(self) -> int:
        """Size of its request body in bytes."""
        return len(self.body)

    @property
    def key(self) -> RunKey:
        """The run key: routing id of its client and request id."""
        return self.active.key

    @property
    def name(self) -> str:
        """The request id as text, for log lines."""
        return printable(self.active.id)

    @property
    def ended(self) -> bool:
        """Whether its terminal message was sent."""
        return self.active.ended

    @property
    def is_ending(self) -> bool:
        """Whether it was asked to end."""
        return self.active.reason is not None

    def read_body(self) -> dict[str, Any]:
        """Unpack the body of the request, and drop the packed one, which may have many megabytes.

        Raises:
            RequestError: `invalid_msgpack`, or `too_large` if it has too many items.
        """
        packed, self.body = self.body, b""
        return unpack(packed, "the body", limits.MAX_ITEMS)

    def body_was_read(self) -> None:
        """Report that the body was read and converted; on the event loop of the link only."""
        on_read, self.on_read = self.on_read, None
        if on_read is not None:
            on_read()

    def post(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function on the event loop of the link, from any thread; calls from one thread stay in order."""
        call_on(self.loop, function, *arguments)

    def proceed(self) -> None:
        """Let the code of the run start or continue, because it has got a slot."""
        if self.started.is_set():
            self.wait.granted()
        else:
            self.started.set()

    def end(self) -> None:
        """Ask the code of the run to end."""
        self.token.cancel()
        self.started.set()
        self.wait.end()
        # The task that reads the model may wait for credit and is woken here: `token` cancels only the agent's task.
        self._more_credit.set()
        if self.on_end is not None:
            self.on_end()

    def steer(self, body: bytes) -> None:
        """Pass a `steer` message of the client to the agent.

        Raises:
            AxonError: `invalid_msgpack` or `invalid_request` if the body is invalid, the run has no model, or the
                run has its answer already; `overloaded` if too many messages wait.
        """
        if self.kind == kinds.CALL_TOOL:
            raise RequestError("invalid_request", "a call_tool cannot be steered: it has no model")
        self.steering.enqueue(checked(Steer, unpack(body, "the body", limits.MAX_ITEMS)), len(body))

    # --- outgoing messages; on the event loop of the link only ----------------------------------------

    def send(self, kind: bytes, body: dict[str, Any]) -> int:
        """Send a message, now or as soon as there is credit for it.

        Returns:
            The `seq` of the last message that was sent: of this one, if it did not have to wait.

        Raises:
            ModelError: `invalid_output` if the body cannot be packed.
        """
        buffer = self.active.buffer
        if self.active.ended:
            return buffer.seq
        if kind in NEEDS_CREDIT and self._has_to_wait():
            self.credit.hold(kind, body)
            if self._release_is_due and self.credit.bytes >= MAX_HELD_BYTES:
                self._send_waiting()
            return buffer.seq
        # All other kinds are sent at once, even without credit, but in order: the messages that wait go first.
        while self.credit.waiting:
            self._put(*self.credit.take())
        self._put(kind, body)
        return buffer.seq

    def finish(self, kind: bytes, body: dict[str, Any]) -> None:
        """Send the terminal message, after all waiting messages.

        Raises:
            ModelError: `invalid_output` if the body cannot be packed; the caller may try again with another body.
        """
        assert not self.active.ended
        self.send(kind, body)

    def _has_to_wait(self) -> bool:
        """Return whether a chunk or log must wait: for credit, for earlier ones, or because the event loop is late.

        A late loop means that the process has more work than it can do. Chunks that wait are merged, so that they
        become larger instead of queues becoming longer.
        """
        if self.credit.waiting or self.active.buffer.seq >= self.credit.upto:
            return True
        late = self.link.late()
        if late < LATE_THRESHOLD_S:
            return False
        self._release_is_due = True
        self.link.call_at(self.loop.time() + min(MAX_HOLD_S, HOLD_FACTOR * late), self._release)
        return True

    def _release(self) -> None:
        self._release_is_due = False
        if not self.ended:
            self._send_waiting()

    def grant(self, upto: int) -> None:
        """Extend the run's credit: the client accepts messages up to the `seq` `upto`.

        Raises:
            RequestError: `invalid_request` if the request did not use credit.
        """
        if not self.credit.is_given:
            raise RequestError(
                "invalid_request", "the run was started without credit, so all its messages are sent at once"
            )
        self.credit.grow(upto)
        if not self._release_is_due:
            self._send_waiting()

    def _send_waiting(self) -> None:
        while self.credit.waiting and self.active.buffer.seq < self.credit.upto:
            self._put(*self.credit.take())
        if not self.credit.full:
            self._more_credit.set()

    def replayed(self) -> None:
        """Continue to read the model's response: a replay has sent all messages so far."""
        self._more_credit.set()

    def congested(self) -> bool:
        """Return whether messages wait in this process, for the broker, for credit or for a replay."""
        return self.link.congested() or self._must_wait()

    def _must_wait(self) -> bool:
        # A replay only catches up with the run if the run does not add messages faster than the replay sends them.
        return (self.credit.full or self.active.is_replaying) and self.active.reason is None

    async def room(self) -> None:
        """Wait until the run is no longer congested, or is asked to end.

        The task that reads the model's response waits here, so that a slow client slows the model down instead of
        filling the worker's memory.
        """
        while self.congested():
            await self.link.room()
            if self._must_wait():
                self._more_credit.clear()
                await self._more_credit.wait()

    def _put(self, kind: bytes, body: dict[str, Any]) -> None:
        active = self.active
        # Only chunks are frequent enough to gain from a delay: all chunks of 1 ms are sent together, so that the broker
        # wakes up once for them.
        send = self.link.send_soon if kind == kinds.CHUNK else self.link.send
        packed = active.buffer.put(kind, body)
        if not active.is_replaying:  # otherwise the replay sends it, after all earlier messages
            send(active.client, kind, active.id, packed)

    def chunk(self, type: str, data: Any, step: int, part: int) -> None:
        """Send one `chunk`.

        Its data may contain values of tools or models that msgpack cannot hold. They are converted: unlike in an
        answer, such a value must not end the run.
        """
        shown = data if isinstance(data, str) else plain(data)
        self.send(kinds.CHUNK, PlainMap(type=type, data=shown, step=step, part=part))
