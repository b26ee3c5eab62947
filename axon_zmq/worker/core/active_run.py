"""A run in the worker's run table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from axon_zmq.protocol.backend import EndReason
from axon_zmq.protocol.frames import RunKey
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer


@dataclass(slots=True, weakref_slot=True, eq=False, kw_only=True)
class ActiveRun:
    """A run in the run table, from its start until its code has returned."""

    client: bytes
    """Routing id of its client."""
    id: bytes
    """Request id."""
    kind: bytes
    buffer: ReplayBuffer
    """Numbers and keeps its messages; it stays in the replay store after the run's end."""
    deadline: float
    """Seconds of the monotonic clock."""
    started: float
    """Seconds of the monotonic clock."""
    size: int = 0
    """Bytes of the request body, and of the bodies of the client's messages to the run."""
    open_calls: Callable[[], list[dict[str, Any]]] = list
    """Returns its unanswered tool calls in the form that `resumed` reports; set by the code that executes the run."""
    reason: EndReason | None = None
    """Why it was asked to end; None if it was not."""
    is_replaying: bool = False
    """Whether a replay is under way. New messages are then only added to `buffer`: the replay will reach them."""
    ended: bool = False
    """Whether its terminal message was sent."""
    is_stuck: bool = False
    """Whether it has ended although its code has not returned."""
    end_asked_at: float = 0.0
    """When it was asked to end, in seconds of the monotonic clock; only meaningful if `reason` is set."""
    cancel_deadline: Callable[[], None] | None = None
    """Cancels the timer of its deadline."""

    def weight(self) -> int:
        """Return the bytes of the run's messages, in both directions, as a measure of the memory that it uses."""
        return self.size + self.buffer.bytes

    @property
    def key(self) -> RunKey:
        """The run key: routing id of its client and request id."""
        return self.client, self.id
