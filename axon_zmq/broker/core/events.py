"""What can happen to the broker, and what it can do about it."""

from __future__ import annotations

from typing import NamedTuple

from axon_zmq.protocol import kinds


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
    kind: bytes = kinds.COMPLETE


class WorkerGone(NamedTuple):
    """A worker's link is down, and all that it had sent was read."""

    worker: bytes


class ClientGone(NamedTuple):
    """A send found no such client."""

    client: bytes


class ClientBack(NamedTuple):
    """A send to a client that was gone went through."""

    client: bytes


class ClientBlocked(NamedTuple):
    """A client's send queue is full."""

    client: bytes


class Tick(NamedTuple):
    """Time has passed."""


class Stop(NamedTuple):
    """The broker is about to exit: what only waits is told so."""


Event = FromClient | FromWorker | Ended | WorkerGone | ClientGone | ClientBack | ClientBlocked | Tick | Stop
