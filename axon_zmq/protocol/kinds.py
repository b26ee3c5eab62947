"""Message kinds: the frame that says what a message is, and the modes that execute runs. No I/O.

A kind is ASCII bytes, compared and sent as it is, because the relay path handles it once for each chunk. The groups
below follow the direction in which a kind travels; `docs/protocol.md` defines those between client and broker,
`docs/backend.md` those between broker and worker. A kind that is passed through the broker appears once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, get_args

Mode = Literal["run_sync", "run", "run_stream"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
"""pydantic-ai's execution modes; each has a pool of workers."""

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

# --- from a worker, or from supervisord's side, to the broker itself -----------------------------------

READY: Final = b"ready"
SLOTS: Final = b"slots"
PROGRESS: Final = b"progress"
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
THERE: Final = b"there"

# --- groups --------------------------------------------------------------------------------------------

POOLS: Final[Mapping[bytes, str]] = {RUN_SYNC: "run_sync", RUN: "run", RUN_STREAM: "run_stream", CALL_TOOL: "run"}
"""The kinds that start a run, and the mode whose workers execute each."""
RUN_KINDS: Final = frozenset(POOLS)
"""The kinds that start a run."""
REQUEST_KINDS: Final = RUN_KINDS | {DESCRIBE}
"""The kinds that a worker answers."""
TERMINAL_KINDS: Final = frozenset((COMPLETE, ERROR, CATALOG))
"""The kinds that end a request id."""
CONTROL: Final = b""
"""In place of a client's routing id: the message is between broker and worker."""

_PROGRAM: Final = re.compile(rf"({'|'.join(MODES)})-\d+")


def mode_of(program: str) -> str | None:
    """The mode of a worker program, such as `run_stream-2`; None for any other supervisord program."""
    found = _PROGRAM.fullmatch(program)
    return None if found is None else found[1]
