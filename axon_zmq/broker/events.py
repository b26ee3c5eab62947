"""What can happen to the broker, and what it can do about it."""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from axon_zmq.wire import RunKey


class FromClient(NamedTuple):
    """A message arrived from a client, `frames` without its identity."""

    client: bytes
    frames: list[bytes]
    arrived: float
    """Seconds of the monotonic clock; its `timeout_ms` counts from here, wherever it waits."""
    digest: bytes = b""
    """Of its body, where that was large and has been digested already."""


class FromWorker(NamedTuple):
    """A control message arrived at the backend, from a worker or from supervisord's side; see `docs/backend.md`."""

    worker: bytes
    kind: bytes
    body: bytes


class Ended(NamedTuple):
    """A worker's terminal message was relayed."""

    worker: bytes
    client: bytes
    id: bytes
    kind: bytes = b"complete"


class WorkerGone(NamedTuple):
    """A worker's link is down, and all that it had sent was read."""

    worker: bytes
    relayed: Container[RunKey]
    """The runs of which something was relayed: they are never started again."""


class ClientGone(NamedTuple):
    """A send found no such client."""

    client: bytes


class ClientBack(NamedTuple):
    """A send to a client that was gone went through."""

    client: bytes


class ClientBlocked(NamedTuple):
    """A client's outbox is full."""

    client: bytes


class Tick(NamedTuple):
    """Time has passed."""


class Stop(NamedTuple):
    """The broker is about to exit: what only waits is told so."""


Event = FromClient | FromWorker | Ended | WorkerGone | ClientGone | ClientBack | ClientBlocked | Tick | Stop

# --- effects ---------------------------------------------------------------------------------------


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


Remember = Enqueued | Dequeued | Registered | Unregistered
"""What the next broker must know."""
Effect = ToClient | ToWorker | Kill | Remember | Note
