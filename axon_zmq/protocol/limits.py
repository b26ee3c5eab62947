"""Limits that several modules use, with unit and reason; a limit that only one module uses is defined in that module.

Limits that operators can set are fields of `BrokerLimits`; the others are fixed. The broker reports the limits that
concern clients in `pong.limits`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

KIB = 1024
MIB = 1024 * KIB

# --- numbers of the client protocol ----------------------------------------------------------------

PROTOCOL = 1
"""Version of the client protocol: `v` in the header."""
MAX_ID = 64
"""Maximum length of a request id in bytes. A UUID with a prefix fits; the broker keeps each id for the resume
window."""
MAX_CALL_ID = 512
"""Maximum length of a tool call's id in characters. The ids of providers have about 30."""
MAX_FRAMES = 64
"""Maximum number of frames in one message; a message with more is dropped unread. The protocol itself needs at most
five."""
MAX_HEADER = 16 * KIB
"""Maximum size of a header in bytes. A header has a dozen small keys, of which `tracestate` is the longest."""
DEFAULT_TIMEOUT_MS = 600_000
"""Time limit of a run whose header has no `timeout_ms`, in milliseconds: ten minutes."""
DESCRIBE_TIMEOUT = 10.0
"""Seconds after which a `describe` ends with an error if no worker has accepted it."""

# --- times, in seconds -----------------------------------------------------------------------------

RESUME_WINDOW = 60.0
"""Resume window: how long an ended run is kept, so that a repeated id or a `resume` can be answered."""
DEAD_HOST = 10.0
"""How long sent data may stay unacknowledged before a connection is closed. A host or network that fails closes no
connection, and TCP alone would retransmit for up to 15 minutes. Most short network failures end sooner and are not
noticed. On an idle connection no data is unacknowledged; there, keepalive finds a dead peer within 30 s."""

# --- sizes -----------------------------------------------------------------------------------------

WAITING_BYTES = 64 * KIB
"""Bytes of a run's messages that may wait for credit in its worker; with more, the worker stops reading the model's
response. The number is part of the client protocol."""

REPLAY_BYTES_PER_RUN = 8 * MIB
"""Bytes of one run's messages that its worker keeps for replay; if there are more, the oldest are dropped."""
MAX_ITEMS = 400_000
"""Maximum number of msgpack items in a body: each list, map, list element, map key and map value counts. Bytes alone do
not limit memory: an empty map is one byte, and 72 bytes once it is unpacked. A history of 5,000 messages, as
pydantic-ai 2.62 dumps it, has about 270,000 items."""
MIN_RUN_BYTES = 64 * MIB
"""Lower bound of the limit on the bodies of one run: its request, its tool results and its steers. The limit is four
times `max_body` if that is more."""
MAX_SCHEMA = 256 * KIB
"""Maximum size of a JSON Schema in bytes, packed as msgpack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLimits:
    """Limits that operators can set with `AXON_MAX_BODY`, `AXON_MAX_TIMEOUT_MS` and so on."""

    max_body: int = 16 * MIB
    """Maximum size of a request body in bytes. A larger one is refused as `too_large`."""
    max_timeout_ms: int = 3_600_000
    """Maximum `timeout_ms` of a request, in milliseconds."""
    max_queued: int = 10_000
    """Maximum number of queued runs in one mode. Further requests are refused as `overloaded`."""
    max_queued_per_client: int = 1_000
    """Maximum number of queued runs of one client in one mode, so that one client cannot fill the queue for all
    others."""
    max_queued_bytes: int = 256 * MIB
    """Maximum total size of the queued request bodies of all modes and clients, in bytes. One client may use half of
    it, or one body if that is larger."""
    max_in_flight_bytes: int = 128 * MIB
    """Maximum total size of the request bodies that one worker has, in bytes; further runs wait in the queue. Bodies of
    at most 64 KiB do not count."""
    max_in_flight_bytes_per_client: int = 64 * MIB
    """Maximum total size of the request bodies of one client that all workers have, in bytes; its further runs wait in
    the queue. Bodies of at most 64 KiB do not count."""
    max_waiting_per_client: int = 16
    """Number of runs of one client in one mode that may wait for the client's tools without counting against the slots
    that the client may use. Further waiting runs leave their slots to other clients only."""
    max_keep_ms: int = 300_000
    """Milliseconds after which a run with `on_disconnect: "keep"` ends if it only waits for tools of a gone client."""
    hang_seconds: int = 30
    """Seconds without progress after which a worker is killed; the default is that of gunicorn's `timeout`."""
    max_connections: int = 4_096
    """Maximum number of connections of clients. Each needs one file descriptor, so the broker lowers the number if the
    process may not open that many."""
    max_connections_per_address: int = 256
    """Maximum number of connections from one IP address of another machine."""

    def to_wire(self) -> dict[str, int]:
        """Return `pong.limits`: the limits that concern clients, including the fixed ones."""
        client_facing = asdict(self)
        for internal in ("hang_seconds", "max_connections", "max_connections_per_address"):
            del client_facing[internal]
        return {
            **client_facing,
            "max_id": MAX_ID,
            "max_header": MAX_HEADER,
            "max_items": MAX_ITEMS,
            "max_schema": MAX_SCHEMA,
            "default_timeout_ms": DEFAULT_TIMEOUT_MS,
            "resume_window_ms": int(RESUME_WINDOW * 1000),
        }
