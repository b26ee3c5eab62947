"""Events: the input of the worker core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from axon_zmq.errors import AxonError
from axon_zmq.protocol.frames import RunKey
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer


class Connected(NamedTuple):
    """The link is up, perhaps to a new broker; all messages of the previous broker have been received before."""


class Disconnected(NamedTuple):
    """The link is down, so no client can be reached."""


class Received(NamedTuple):
    """A message from the broker has arrived."""

    frames: Sequence[bytes]


class Completed(NamedTuple):
    """A run's code has returned a result."""

    run: ActiveRun
    body: dict[str, Any]
    """The body of `complete`."""


class Failed(NamedTuple):
    """A run's code has raised an exception, or its result cannot be sent."""

    run: ActiveRun
    error: AxonError


class Sent(NamedTuple):
    """The terminal message of a `Finish` effect was sent."""

    run: ActiveRun


class OnlyWaits(NamedTuple):
    """A run's code only waits for tools that its client executes."""

    run: ActiveRun


class Answered(NamedTuple):
    """A run that only waited has got an answer, and its code wants to continue."""

    run: ActiveRun


class CodeReturned(NamedTuple):
    """A run's code has returned, so it no longer occupies the worker."""

    run: ActiveRun


class GraceOver(NamedTuple):
    """A run's code had enough turns of the event loop to end; answers an `AwaitTurns` effect."""

    run: ActiveRun


class HandoverWritten(NamedTuple):
    """Writing the handover file has finished."""

    file: str | None
    """Name of the file; None if there were no ended runs, or if it could not be written."""


class HandoverRead(NamedTuple):
    """A handover file was read."""

    runs: Sequence[tuple[RunKey, ReplayBuffer]]
    """The runs in the file whose resume window has not closed."""
    is_whole: bool
    """Whether the whole file could be read."""


class MemoryUsed(NamedTuple):
    """The process uses too much memory, and collecting garbage has not helped; reported while this is so."""

    used: int
    """Bytes in use."""
    most: int
    """Bytes that the process should use at most."""


class Leave(NamedTuple):
    """The process received a signal to stop."""


class Tick(NamedTuple):
    """Time has passed."""


Event = (
    Connected
    | Disconnected
    | Received
    | Completed
    | Failed
    | Sent
    | OnlyWaits
    | Answered
    | CodeReturned
    | GraceOver
    | HandoverWritten
    | HandoverRead
    | MemoryUsed
    | Leave
    | Tick
)
