"""What the broker core wants done: effects, as values."""

from __future__ import annotations

from typing import NamedTuple


class ToClient(NamedTuple):
    """Send `[kind, id, body]` to a client, in its framing."""

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
    """Send SIGKILL to a worker's process, if it is still there."""

    worker: bytes
    name: str
    pid: int
    is_linked: bool
    """Whether the worker is registered: then its pid is its own as long as its link is up."""


class ProbeWorkers(NamedTuple):
    """Look now, and for a short while, which workers' links are down."""


class Enqueued(NamedTuple):
    """A run that never was with a worker waits: to be known as such after a crash of this process."""

    client: bytes
    id: bytes


class Dequeued(NamedTuple):
    """It waits no longer; to be written down before what follows."""

    client: bytes
    id: bytes


class Registered(NamedTuple):
    """A worker is there: should this process die, the next one waits for it."""

    worker: bytes
    pid: int


class Unregistered(NamedTuple):
    """A worker is there no more."""

    worker: bytes
    lost_at: float
    """When runs were last lost with it, in seconds of the monotonic clock; 0.0: none were."""


class Note(NamedTuple):
    """Write a line to the log."""

    level: int
    text: str
    id: bytes = b""


JournalEffect = Enqueued | Dequeued | Registered | Unregistered
"""What the next broker must know."""
Effect = ToClient | ToWorker | Kill | ProbeWorkers | JournalEffect | Note
