"""Message kinds and execution modes. No I/O.

The kind is the frame that names the type of a message. It is handled as ASCII bytes and never decoded to text, because
the relay path handles it once for each chunk. The groups below follow the direction of a message. `docs/protocol.md`
defines the kinds between client and broker, `docs/backend.md` those between broker and worker. A kind that the broker
passes on between client and worker is listed only once, in the group of the client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, get_args

Mode = Literal["run_sync", "run", "run_stream"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
"""Execution modes of pydantic-ai, each of which has a pool of workers."""

# --- from a client -----------------------------------------------------------------------------------

RUN_SYNC: Final = b"run_sync"
RUN: Final = b"run"
RUN_STREAM: Final = b"run_stream"
CALL_TOOL: Final = b"call_tool"
DESCRIBE: Final = b"describe"
PING: Final = b"ping"
CANCEL: Final = b"cancel"
RESUME: Final = b"resume"
TOOL_RESULT: Final = b"tool_result"
STEER: Final = b"steer"
CREDIT: Final = b"credit"

# --- to a client -------------------------------------------------------------------------------------

ACCEPTED: Final = b"accepted"
CHUNK: Final = b"chunk"
LOG: Final = b"log"
TOOL_CALL: Final = b"tool_call"
TOOL_CANCELLED: Final = b"tool_cancelled"
COMPLETE: Final = b"complete"
ERROR: Final = b"error"
CATALOG: Final = b"catalog"
RESUMED: Final = b"resumed"
REFUSED: Final = b"refused"
PONG: Final = b"pong"
ALIVE: Final = b"alive"

# --- from a worker, the event listener or `axon-zmq status` to the broker itself -----------------------

READY: Final = b"ready"
SLOTS: Final = b"slots"
WAITING: Final = b"waiting"
CONTINUING: Final = b"continuing"
PROGRESS: Final = b"progress"
REPLAYED: Final = b"replayed"
LEAVING: Final = b"leaving"
HANDOVER: Final = b"handover"
HOLDS: Final = b"holds"
PROCESSES: Final = b"processes"
EXITED: Final = b"exited"
STATUS: Final = b"status"

# --- from the broker to a worker -----------------------------------------------------------------------

END: Final = b"end"
GONE: Final = b"gone"
BACK: Final = b"back"
LEFT: Final = b"left"
HANDED: Final = b"handed"
TAKE: Final = b"take"
MORE: Final = b"more"
THERE: Final = b"there"

# --- groups --------------------------------------------------------------------------------------------

POOLS: Final[Mapping[bytes, str]] = {RUN_SYNC: "run_sync", RUN: "run", RUN_STREAM: "run_stream", CALL_TOOL: "run"}
"""Kinds that start a run, each with the mode whose workers execute it."""
RUN_KINDS: Final = frozenset(POOLS)
"""Kinds that start a run."""
REQUEST_KINDS: Final = RUN_KINDS | {DESCRIBE}
"""Kinds of requests that a worker answers."""
TERMINAL_KINDS: Final = frozenset((COMPLETE, ERROR, CATALOG))
"""Kinds of the messages that end a request."""
CONTROL: Final = b""
"""Frame in place of a client's routing id, for a message between broker and worker. No routing id is empty."""

_PROGRAM: Final = re.compile(rf"({'|'.join(MODES)})-\d+")


def mode_of(program: str) -> str | None:
    """Return the mode of a worker program such as `run_stream-2`, or None for any other supervisord program."""
    found = _PROGRAM.fullmatch(program)
    return None if found is None else found[1]
