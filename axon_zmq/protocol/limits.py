"""Every bound of the daemon, with its unit and its reason.

What a client meets is also in `pong.limits`. Those that an operator may set are fields of
`BrokerLimits`; the rest follow from the contract or from how the parts behave.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

KIB = 1024
MIB = 1024 * KIB

# --- the contract's numbers ------------------------------------------------------------------------

PROTOCOL = 1
"""Version of the client protocol, the header's `v`."""
BACKEND_PROTOCOL = 1
"""Version of the protocol between broker and workers."""
MAX_ID = 64
"""Bytes of a request id. A UUID with a prefix fits; the broker keeps each id for the resume window."""
MAX_ECHOED_ID = 256
"""Bytes up to which an id that is too long is still echoed in the error that says so."""
MAX_CALL_ID = 512
"""Characters of a tool call's id. Providers' have 30 or so."""
MAX_FRAMES = 64
"""Frames of one message; more are dropped unread. Four are all that is ever needed."""
MAX_HEADER = 16 * KIB
"""Bytes of a header. It holds a dozen small keys, of which `tracestate` is the longest."""
MAX_TRACE = 1024
"""Characters of `traceparent` and `tracestate`; W3C asks to carry at least 512."""
OVERSIZE_FACTOR = 4
"""A frame over this many times `max_body` cuts the connection (ZMQ_MAXMSGSIZE): it is never read."""
MAX_STEERS = 100
"""`steer`s that a run has not heard yet."""
STEER_BYTES = 4 * MIB
"""Bytes of all `steer`s of a run: they stay in its history."""
MAX_SAID = 16
"""`steer`s and `credit`s that are held for a run which still waits in the queue."""
MAX_ATTEMPTS = 10
"""Most times that a run may be started, whatever its header asks for."""
DEFAULT_TIMEOUT_MS = 600_000
"""A run's time when its header names none: ten minutes."""
DESCRIBE_TIMEOUT = 10.0
"""Seconds after which a `describe` that no worker took is given up."""

# --- times, in seconds -----------------------------------------------------------------------------

RESUME_WINDOW = 60.0
"""How long an ended run is remembered, to answer a repeated id or a `resume`."""
SETTLE_TIME = 2.0
"""How long a new broker waits for workers to register before it judges ids unknown."""
ALIVE_INTERVAL = 2.0
"""Between two `alive` messages to a client with unfinished requests."""
ALIVE_AT_A_TIME = 500
"""Clients that are told so at once, and the pause until the next are: 100,000 take two seconds."""
ALIVE_PAUSE = 0.01
DEAD_HOST = 10.0
"""How long the other host may leave what was sent to it unanswered until the connection is cut: a host that dies and a
cable that is cut say nothing, and of itself TCP goes on for up to 15 minutes. Over most short cuts, nothing is noticed.
Who is there but reads nothing still answers, and is not cut; an idle connection is found by keepalive within 30 s."""
CLIENT_SILENCE = 5.0
"""A client that hears nothing for this long while requests are open sends a `ping`."""
CLIENT_GRACE = 15.0
"""How long a client may be gone before `on_disconnect` decides over its runs."""
SHARED_WINDOW = 10.0
"""Two `ping` instances within this time under one identity are two processes sharing it."""
NO_WORKER_GRACE = 10.0
"""How long a mode may be without any worker before its queue is answered `no_worker`.
supervisord needs 1 to 3 s to bring one back."""
PROGRESS_INTERVAL = 1.0
"""Between two `progress` messages of a worker, sent by the loop that does its work."""
PROGRESS_TIMEOUT = 4.0
"""A worker that made no progress for this long is given no new run until it does; see `hang_seconds` too."""
HOUSEKEEPING = 0.5
"""Between two looks of the broker at what only time changes. Time in which it did not look, because it was
stopped or the machine slept, does not count against workers."""
CRASH_WINDOW = 60.0
"""How long a crash of a worker is remembered against its name."""
MISSING_GRACE = 10.0
"""How long a worker that crashed may stay away before its pool counts as degraded. A restart takes 1 to 3 s."""
MISSING_TIME = 600.0
"""How long one that does not come back is missed at all: it may have been started by hand."""
QUARANTINE_TIME = 300.0
"""How long a request of which workers died is refused, and how long one that is suspected stays so."""
END_GRACE = 0.05
"""How long a cancelled or timed-out run may take to hand over its partial answer before the worker
answers without it. pydantic-ai ends a run within about 1 ms where nothing blocks."""
END_TURNS = 64
"""How many turns of the worker's loop it is given beyond that: an end takes about 13, and where hundreds of runs
are cancelled at once, each turn takes long. (Runs of `run_sync` end in threads, of which the turns say less.)"""
LONGEST_END_GRACE = 8.0
"""How long the two together may take: on a machine that is thrice too busy, 200 runs at once took more than 2 s."""
STUCK_GRACE = 10.0
"""How long an ended run's code may go on holding its slot before the worker process is replaced."""

WAITING_BYTES = 64 * KIB
"""What waits in a worker for a client's credit before the model is no longer read; the contract's number."""

# --- sizes -----------------------------------------------------------------------------------------

REPLAY_BYTES_PER_RUN = 8 * MIB
"""Messages of one run that its worker keeps for replay; the oldest go first."""
REPLAY_BYTES_PER_WORKER = 128 * MIB
"""The same over all runs of a worker; the runs that ended first are forgotten first."""
CLIENT_PIPE = 250
"""Messages in ZeroMQ's own pipe to one client (ZMQ_SNDHWM): enough for 250,000 a second between two looks."""
LARGE_MESSAGE = 64 * KIB
"""Bytes from which a message to a client is sent without a copy, and counted until ZeroMQ has let go of it."""
LARGE_IN_FLIGHT = 16 * MIB
"""Bytes of large messages in ZeroMQ's pipe to one client; one more goes all the same where there is none. The pipe
is bounded in messages alone: 250 answers of many MB would be gigabytes for a client that does not read. So many bytes
it holds of the largest that are not counted; with 4 MiB it ran empty, and those who read got slower."""
ALL_LARGE_IN_FLIGHT = 256 * MIB
"""What clients that have large messages in their pipes share, where there are more than 16 of them."""
CLIENT_OUTBOX_MESSAGES = 200_000
"""Messages that may wait for a client that was blocked; more than its outbox of the smallest chunks and all
its runs' terminals, so only what answers a flood of bad messages is ever over it, and dropped."""
CLIENT_OUTBOX_BYTES = 16 * MIB
"""What waits of its streams in the broker for one client, beyond ZeroMQ's own pipe, before it is a slow consumer."""
CLIENT_ANSWER_BYTES = 128 * MIB
"""The same of what ends its runs: work that is done. Workers end many large runs at once, and much faster than one
who reads all the time can take them in."""
COMPLAINTS_PER_SECOND = 20
"""Log lines about malformed or refused messages; more are counted, so that a flood does not push the rest out."""
ALL_OUTBOX_BYTES = 256 * MIB
"""Both over all clients; past it the slow one is who holds more than an equal share. Over twice as much, and who holds
less than a share has its answers kept all the same: three times as much is the most that ever waits."""
REMEMBERED_RUNS = 100_000
"""Ended runs that the broker remembers at most, about 0.8 KiB each, by `scripts/bench --only memory --requests 500000`;
the oldest go first."""
REMEMBERED_CLIENTS = 100_000
"""Idle client identities whose framing the broker remembers at most."""
CRASH_LOOP = 3
"""Crashes of one worker within `CRASH_WINDOW` that make its pool count as degraded."""
STRIKES = 2
"""Workers that may die of one request, known by the digest of its body, until it is quarantined."""
SUSPECTS_PER_WORKER = 4
"""Suspected runs that one worker has at a time. When a worker dies, all its runs are suspects; the culprit takes
only so many of them with it when it strikes again."""
REMEMBERED_FILES = 1_000
"""Files of ended runs of which the broker knows whom it gave them to. They are of no use after the resume window."""
REMEMBERED_SUSPECTS = 10_000
"""Digests that are suspected or quarantined at a time; the oldest go first."""
MAX_SCHEMA = 256 * KIB
"""Bytes of one JSON Schema, packed."""
MAX_TOOLS = 256
"""Tools of the client's in one request, and toolsets of one agent as data. Providers take 128 or so."""
MAX_NESTING = 64
"""Depth of one JSON Schema; header and body have msgpack's own bound of 1024."""


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
