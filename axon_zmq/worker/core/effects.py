"""Effects: the output of the worker core, as values that the host applies in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from axon_zmq.protocol.backend import Describe, Message, RunStart, ToRun
from axon_zmq.protocol.frames import RunKey
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer


class Send(NamedTuple):
    """Send `[client, kind, id, body]` to the broker."""

    client: bytes
    kind: bytes
    id: bytes
    body: bytes


class Control(NamedTuple):
    """Send a control message to the broker."""

    message: Message


class Start(NamedTuple):
    """Execute a run, now or after `Continue`."""

    run: ActiveRun
    message: RunStart
    has_slot: bool
    """Whether the run has a slot now. If not, its code starts after `Continue`; until then the run can be steered and
    asked to end like any other."""


class Continue(NamedTuple):
    """Let the code of a run execute that waited for a slot: a new run, or one whose client has answered."""

    run: ActiveRun


class AskToEnd(NamedTuple):
    """Ask a run's code to end; the run's `reason` is set."""

    run: ActiveRun


class AwaitTurns(NamedTuple):
    """Report `GraceOver` after some turns of the event loop.

    Elapsed time alone does not show that the code had a chance to run: if hundreds of runs end at once, each waits for
    its turn on the same loop.
    """

    run: ActiveRun
    give_up: float
    """Seconds of the monotonic clock at which `GraceOver` is reported in any case."""


class Finish(NamedTuple):
    """Send a run's terminal message after all its waiting messages, and report `Sent`.

    If no body can be packed, nothing is sent, and `Failed` is reported instead.
    """

    run: ActiveRun
    kind: bytes
    bodies: tuple[dict[str, Any], ...]
    """In order of preference: the first that can be packed is sent."""


class Deliver(NamedTuple):
    """Pass a client's message to its run's code, or refuse it."""

    run: ActiveRun
    message: ToRun


class Grant(NamedTuple):
    """Extend a run's credit to this `seq`, which its resuming client sent; only for a run that uses credit."""

    run: ActiveRun
    upto: int


class ReplayComplete(NamedTuple):
    """Continue to read the model's response of a run: a replay has sent all its messages so far."""

    run: ActiveRun


class PauseTools(NamedTuple):
    """Stop the timers of a run's open tool calls, because its client is gone."""

    run: ActiveRun


class ContinueTools(NamedTuple):
    """Continue the timers of a run's open tool calls, because its client is back."""

    run: ActiveRun


class Catalog(NamedTuple):
    """Answer a `describe` request."""

    message: Describe


class WriteHandover(NamedTuple):
    """Write ended runs into a handover file, and report `HandoverWritten`."""

    runs: Sequence[tuple[RunKey, ReplayBuffer]]


class ReadHandover(NamedTuple):
    """Read and delete a handover file, and report `HandoverRead`."""

    file: str


class Exit(NamedTuple):
    """Close the link once it has sent its waiting messages, and end the process."""


class Note(NamedTuple):
    """Write a line to the log."""

    level: int
    text: str
    id: bytes = b""
    """Request id of the run that the line is about; empty if it is about the worker."""


Effect = (
    Send
    | Control
    | Start
    | Continue
    | AskToEnd
    | AwaitTurns
    | Finish
    | Deliver
    | Grant
    | ReplayComplete
    | PauseTools
    | ContinueTools
    | Catalog
    | WriteHandover
    | ReadHandover
    | Exit
    | Note
)
