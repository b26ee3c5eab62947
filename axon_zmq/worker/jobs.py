"""One run in a worker: what a mode needs of it, and how its messages leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pydantic_ai import CancellationToken

from axon_zmq import packing, wire
from axon_zmq.errors import RequestError
from axon_zmq.messages import Steer
from axon_zmq.wire import RunKey
from axon_zmq.worker.loops import call_on
from axon_zmq.worker.outbox import Outbox
from axon_zmq.worker.remote_tools import RemoteCalls
from axon_zmq.worker.steering import Steering


class Mode(Protocol):
    """How a worker executes a kind: `run_sync`, `run`, `run_stream` or `call_tool`."""

    async def execute(self, job: Job) -> dict[str, Any]:
        """Run to the end; the body of `complete`, or an exception."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """One run, from the broker's message until its terminal message.

    `token` ends the agent's run from any thread; `reason` says why it was asked to.
    """

    client: bytes
    id: bytes
    kind: bytes
    header: Mapping[str, Any]
    body: bytes
    started: float
    outbox: Outbox
    send: Callable[[Job, bytes, dict[str, Any]], int]
    """Numbers a message, keeps it and sends it; its `seq`. On the link's loop only."""
    loop: asyncio.AbstractEventLoop
    """The link's."""
    congested: Callable[[], bool]
    """Whether what was sent still waits in this process."""
    room: Callable[[], Awaitable[None]]
    """Waits until it does no longer."""
    token: CancellationToken = field(default_factory=CancellationToken)
    on_end: Callable[[], object] | None = None
    """What else ends its code."""
    steering: Steering = field(default_factory=Steering)
    remote: RemoteCalls = field(init=False)
    reason: str | None = None
    ended: bool = False
    stuck: bool = False
    """It has ended for the client, but its code still holds the slot."""
    timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.remote = RemoteCalls(partial(self.send, self))

    @property
    def key(self) -> RunKey:
        """Client and id."""
        return self.client, self.id

    @property
    def name(self) -> str:
        """The id, for log lines."""
        return wire.shown(self.id)

    def post(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function on the link's loop: now, or from another thread as soon as it gets there, in order."""
        call_on(self.loop, function, *arguments)

    def end(self, reason: str) -> None:
        """Ask its code to end."""
        self.reason = reason
        self.token.cancel()
        if self.on_end is not None:
            self.on_end()

    def hear(self, steer: Steer) -> None:
        """Take what its client says to it meanwhile.

        Raises:
            RequestError: `invalid_request`, where it cannot or is too late.
        """
        if self.kind == b"call_tool":
            raise RequestError("invalid_request", "call_tool has no model that could be steered")
        self.steering.say(steer)

    def chunk(self, type: str, data: Any, step: int, part: int) -> None:
        """Send one `chunk`; what it shows of a tool's or a model's values is no answer, and never ends the run."""
        self.send(self, b"chunk", {"type": type, "data": packing.plain(data), "step": step, "part": part})
