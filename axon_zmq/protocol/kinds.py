"""Kinds of messages and the modes that execute them. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

MODES: Final = ("run_sync", "run", "run_stream")
"""pydantic-ai's execution modes; each is a pool of workers."""
POOLS: Final[Mapping[str, str]] = {**{mode: mode for mode in MODES}, "call_tool": "run"}
"""The kinds that are runs, and the mode whose workers take each."""
RUN_KINDS: Final = frozenset(POOLS)
_PROGRAM: Final = re.compile(rf"({'|'.join(MODES)})-\d+")
CONTROL: Final = b""
"""In place of a client's identity: the message is between broker and worker."""
TERMINAL_KINDS: Final = frozenset((b"complete", b"error", b"catalog"))
"""Kinds that end an id."""


def mode_of(program: str) -> str | None:
    """The mode of a worker program, such as `run_stream-2`; None for any other program of supervisord's."""
    found = _PROGRAM.fullmatch(program)
    return None if found is None else found[1]
