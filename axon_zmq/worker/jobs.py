"""One run in a worker: what a mode needs of it, and how its messages leave."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic_ai import CancellationToken

from axon_zmq import wire
from axon_zmq.wire import RunKey
from axon_zmq.worker.outbox import Outbox


class Mode(Protocol):
    """How a worker runs agents: one of `run_sync`, `run`, `run_stream`."""

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
    send: Callable[[Job, bytes, dict[str, Any]], None]
    congested: Callable[[], bool]
    """Whether what was sent still waits in this process."""
    room: Callable[[], Awaitable[None]]
    """Waits until it does no longer."""
    token: CancellationToken = field(default_factory=CancellationToken)
    reason: str | None = None
    ended: bool = False
    stuck: bool = False
    """It has ended for the client, but its code still holds the slot."""
    timer: asyncio.TimerHandle | None = None

    @property
    def key(self) -> RunKey:
        """Client and id."""
        return self.client, self.id

    @property
    def name(self) -> str:
        """The id, for log lines."""
        return wire.shown(self.id)

    def chunk(self, type: str, data: Any, step: int, part: int) -> None:
        """Send one `chunk`."""
        self.send(self, b"chunk", {"type": type, "data": data, "step": step, "part": part})
