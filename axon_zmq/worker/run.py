"""One run in a worker: what a mode needs of it, and how its messages leave: numbered, kept, within credit."""

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
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.delivery.credit import NEEDS_CREDIT, Credit
from axon_zmq.worker.link import Link

BEHIND: Final = 0.008
"""Seconds that a process may be late with what it sends until chunks are merged."""
HOLD_BY: Final = 4
"""How many times as long as it is late chunks wait for others."""
LONGEST_HOLD: Final = 0.1
"""Seconds that they wait at most."""
MOST_HELD: Final = 4 * limits.KIB
"""Bytes that wait so: larger chunks gain nothing, and fill the clients' pipes, which are counted in messages."""


class Mode(Protocol):
    """How a worker executes a kind: `run_sync`, `run`, `run_stream` or `call_tool`."""

    async def execute(self, run: Run) -> dict[str, Any]:
        """Run to the end; the body of `complete`, or an exception."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """One run as its code sees it: what it was asked, how its messages leave, what ends it.

    `token` ends the agent's run from any thread; `active.reason` says why it was asked to end.
    """

    active: ActiveRun
    """The core's record of it."""
    header: Mapping[str, Any]
    body: bytes
    link: Link
    loop: asyncio.AbstractEventLoop
    """The link's."""
    credit: Credit
    token: CancellationToken = field(default_factory=CancellationToken)
    on_end: Callable[[], object] | None = None
    """What else ends its code."""
    steering: Steering = field(default_factory=Steering)
    remote: RemoteCalls = field(init=False)
    _more_credit: asyncio.Event = field(default_factory=asyncio.Event)
    _release_is_due: bool = False

    def __post_init__(self) -> None:
        self.remote = RemoteCalls(self.send)

    @property
    def kind(self) -> bytes:
        """The kind of its request."""
        return self.active.kind

    @property
    def key(self) -> RunKey:
        """Routing id of its client, and its id."""
        return self.active.key

    @property
    def name(self) -> str:
        """The id, for log lines."""
        return printable(self.active.id)

    @property
    def ended(self) -> bool:
        """Whether its terminal message was sent."""
        return self.active.ended

    @property
    def is_ending(self) -> bool:
        """Whether it was asked to end."""
        return self.active.reason is not None

    def post(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function on the link's loop: now, or from another thread as soon as it gets there, in order."""
        call_on(self.loop, function, *arguments)

    def end(self) -> None:
        """Ask its code to end."""
        self.token.cancel()
        self._more_credit.set()  # what reads the model is not the code that the token ends
        if self.on_end is not None:
            self.on_end()

    def steer(self, body: bytes) -> None:
        """Take what its client says to it meanwhile.

        Raises:
            AxonError: `invalid_request` or `invalid_msgpack`, where it is none, cannot be or is too late; `overloaded`.
        """
        if self.kind == kinds.CALL_TOOL:
            raise RequestError("invalid_request", "call_tool has no model that could be steered")
        self.steering.say(checked(Steer, unpack(body, "the body")), len(body))

    # --- its messages; on the link's loop only -----------------------------------------------------

    def send(self, kind: bytes, body: dict[str, Any]) -> int:
        """Send a message, now or when there is credit for it; the `seq` of the last one that went.

        Raises:
            ModelError: `invalid_output`, where it cannot be packed.
        """
        buffer = self.active.buffer
        if self.active.ended:
            return buffer.seq
        if kind in NEEDS_CREDIT and self._has_to_wait():
            self.credit.hold(kind, body)
            if self._release_is_due and self.credit.bytes >= MOST_HELD:
                self._go_on()
            return buffer.seq
        while self.credit.waiting:
            self._put(*self.credit.take())
        self._put(kind, body)
        return buffer.seq

    def finish(self, kind: bytes, body: dict[str, Any]) -> None:
        """Send the terminal message, after everything that waits.

        Raises:
            ModelError: `invalid_output`, if it cannot be packed; it may be tried again with another body.
        """
        assert not self.active.ended
        self.send(kind, body)

    def _has_to_wait(self) -> bool:
        """Whether a chunk waits: for credit, for those before it, or since this process is behind with its work.

        Then what comes meanwhile is merged: larger chunks, in place of ever longer queues.
        """
        if self.credit.waiting or self.active.buffer.seq >= self.credit.upto:
            return True
        late = self.link.late()
        if late < BEHIND:
            return False
        self._release_is_due = True
        self.link.call_at(self.loop.time() + min(LONGEST_HOLD, HOLD_BY * late), self._release)
        return True

    def _release(self) -> None:
        self._release_is_due = False
        if not self.ended:
            self._go_on()

    def grant(self, upto: int) -> None:
        """Its client takes messages up to that `seq`.

        Raises:
            RequestError: `invalid_request`, where the request came without credit.
        """
        if not self.credit.is_given:
            raise RequestError("invalid_request", "the run was started without credit: everything is sent at once")
        self.credit.grow(upto)
        if not self._release_is_due:
            self._go_on()

    def _go_on(self) -> None:
        while self.credit.waiting and self.active.buffer.seq < self.credit.upto:
            self._put(*self.credit.take())
        if not self.credit.full:
            self._more_credit.set()

    def congested(self) -> bool:
        """Whether what was sent waits in this process, for the broker or for credit."""
        return self.link.congested() or (self.credit.bytes >= limits.WAITING_BYTES and self.active.reason is None)

    async def room(self) -> None:
        """Wait until it does no longer."""
        while self.congested():
            await self.link.room()
            if self.credit.full and self.active.reason is None:
                self._more_credit.clear()
                await self._more_credit.wait()

    def _put(self, kind: bytes, body: dict[str, Any]) -> None:
        active = self.active
        send = self.link.send_soon if kind == kinds.CHUNK else self.link.send
        send(active.client, kind, active.id, active.buffer.put(kind, body))

    def chunk(self, type: str, data: Any, step: int, part: int) -> None:
        """Send one `chunk`; what it shows of a tool's or a model's values is no answer, and never ends the run."""
        shown = data if isinstance(data, str) else plain(data)
        self.send(kinds.CHUNK, PlainMap(type=type, data=shown, step=step, part=part))
