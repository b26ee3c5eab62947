"""Events: the input of the broker core."""

from __future__ import annotations

from typing import NamedTuple

from axon_zmq.protocol import kinds


class FromClient(NamedTuple):
    """A client's message was received."""

    client: bytes
    """Routing id of the client."""
    frames: list[bytes]
    """The message without the routing id."""
    arrived: float
    """Time of receipt, in seconds of the monotonic clock. `timeout_ms` counts from here, so time in which the message
    waits for its digest, or for the end of recovery, is included."""
    digest: bytes = b""
    """Digest of the body if the body is large and was hashed in slices; otherwise empty."""


class FromWorker(NamedTuple):
    """A control message was received from a worker, the event listener or a tool; see `docs/backend.md`."""

    worker: bytes
    kind: bytes
    body: bytes


class Ended(NamedTuple):
    """A worker's terminal message was relayed, so the run has ended."""

    worker: bytes
    client: bytes
    id: bytes
    kind: bytes = kinds.COMPLETE


class WorkerGone(NamedTuple):
    """A worker's link is down, and all messages that it had sent have been read."""

    worker: bytes


class ClientGone(NamedTuple):
    """A send failed because the client is not connected."""

    client: bytes


class ClientBack(NamedTuple):
    """A send to a gone client succeeded."""

    client: bytes


class ClientBlocked(NamedTuple):
    """A client's send queue is full."""

    client: bytes


class TakenOver(NamedTuple):
    """A message came from a connection that uses the routing id of another one, which was still open."""

    client: bytes


class Tick(NamedTuple):
    """A timer is due: see `Broker.next_timer`."""


class Stop(NamedTuple):
    """The broker was asked to exit."""


Event = FromClient | FromWorker | Ended | WorkerGone | ClientGone | ClientBack | ClientBlocked | TakenOver | Tick | Stop
