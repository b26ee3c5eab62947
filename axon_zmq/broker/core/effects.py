"""Effects: the output of the broker core, as values that the server applies in order."""

from __future__ import annotations

from typing import NamedTuple


class ToClient(NamedTuple):
    """Send `[kind, id, body]` to a client, in the framing that the client uses."""

    client: bytes
    kind: bytes
    id: bytes
    body: bytes


class ToWorker(NamedTuple):
    """Send `[client, kind, id, *rest]` to a worker."""

    worker: bytes
    client: bytes
    kind: bytes
    id: bytes
    rest: tuple[bytes, ...]


class Kill(NamedTuple):
    """Send SIGKILL to a worker's process if the process still exists."""

    worker: bytes
    name: str
    pid: int
    is_linked: bool
    """Whether the worker is registered with this broker. If so, its pid is valid as long as its link is up."""


class ProbeWorkers(NamedTuple):
    """Check now, and repeatedly for a short time, which workers' links are down."""


class Enqueued(NamedTuple):
    """Write to the journal that a run is queued and was never dispatched."""

    client: bytes
    id: bytes


class Dequeued(NamedTuple):
    """Write to the journal that a run is no longer queued, before the following effects are applied."""

    client: bytes
    id: bytes


class Registered(NamedTuple):
    """Write to the journal that a worker is registered, so that the next broker waits for it."""

    worker: bytes
    pid: int


class Unregistered(NamedTuple):
    """Write to the journal that a worker is no longer registered."""

    worker: bytes
    lost_at: float
    """When the worker last lost or forgot runs, in seconds of the monotonic clock; 0.0 if it never did."""


class Note(NamedTuple):
    """Write a line to the log."""

    level: int
    text: str
    id: bytes = b""


JournalEffect = Enqueued | Dequeued | Registered | Unregistered
"""Effects that change the journal."""
Effect = ToClient | ToWorker | Kill | ProbeWorkers | JournalEffect | Note
