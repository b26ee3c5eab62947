"""The limits that several modules share, with unit and reason; a limit with one user is defined beside it.

Those that a client meets are also in `pong.limits`. Those that an operator may set are fields of `BrokerLimits`; the
rest follow from the protocol or from how the parts behave.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

KIB = 1024
MIB = 1024 * KIB

# --- the contract's numbers ------------------------------------------------------------------------

PROTOCOL = 1
"""Version of the client protocol, the header's `v`."""
MAX_ID = 64
"""Bytes of a request id. A UUID with a prefix fits; the broker keeps each id for the resume window."""
MAX_CALL_ID = 512
"""Characters of a tool call's id. Providers' have 30 or so."""
MAX_FRAMES = 64
"""Frames of one message; more are dropped unread. Four are all that is ever needed."""
MAX_HEADER = 16 * KIB
"""Bytes of a header. It holds a dozen small keys, of which `tracestate` is the longest."""
DEFAULT_TIMEOUT_MS = 600_000
"""A run's time when its header names none: ten minutes."""
DESCRIBE_TIMEOUT = 10.0
"""Seconds after which a `describe` that no worker took is given up."""

# --- times, in seconds -----------------------------------------------------------------------------

RESUME_WINDOW = 60.0
"""How long an ended run is remembered, to answer a repeated id or a `resume`."""
DEAD_HOST = 10.0
"""How long the other host may leave what was sent to it unanswered until the connection is cut: a host that dies and a
cable that is cut say nothing, and of itself TCP goes on for up to 15 minutes. Over most short cuts, nothing is noticed.
Who is there but reads nothing still answers, and is not cut; an idle connection is found by keepalive within 30 s."""

WAITING_BYTES = 64 * KIB
"""What waits in a worker for a client's credit before the model is no longer read; the contract's number."""

# --- sizes -----------------------------------------------------------------------------------------

REPLAY_BYTES_PER_RUN = 8 * MIB
"""Messages of one run that its worker keeps for replay; the oldest go first."""
MAX_SCHEMA = 256 * KIB
"""Bytes of one JSON Schema, packed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLimits:
    """The bounds that an operator may set (`AXON_` and the name in capitals)."""

    max_body: int = 16 * MIB
    """Bytes of one request body. Over it: `too_large`."""
    max_timeout_ms: int = 3_600_000
    """Most that `timeout_ms` may ask for."""
    max_queued: int = 10_000
    """Runs that wait in one mode. Over it: `overloaded`."""
    max_queued_per_client: int = 1_000
    """Runs of one client that wait in one mode: one client cannot fill the queue for all."""
    max_queued_bytes: int = 256 * MIB
    """Bodies that wait, over all modes and clients."""
    hang_seconds: int = 30
    """How long a worker may make no progress until it is killed. gunicorn's `timeout` is as long."""

    def to_wire(self) -> dict[str, int]:
        """`pong.limits`: these, and the fixed ones that a client library checks before it sends."""
        client_facing = asdict(self)
        del client_facing["hang_seconds"]
        return {
            **client_facing,
            "max_id": MAX_ID,
            "max_header": MAX_HEADER,
            "max_schema": MAX_SCHEMA,
            "default_timeout_ms": DEFAULT_TIMEOUT_MS,
            "resume_window_ms": int(RESUME_WINDOW * 1000),
        }
