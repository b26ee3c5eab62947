"""Core dumps, which would write prompts, answers and keys to disk, are turned off.

Internal: may change in any release.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from typing import Final

_NO_DUMP: Final = 1 if sys.platform == "linux" else 0
"""Limit of a core dump's size, in bytes. Linux ignores the limit 0 if `kernel.core_pattern` is a program, as with
systemd-coredump and apport; it takes the limit 1 as "no dump" for programs (`fs/coredump.c`), and a file of one byte is
too small to be written. `PR_SET_DUMPABLE` would prevent dumps, too, but it also hides `/proc/PID` from the operator's
own tools, and `execve` resets it."""


def disable_core_dumps() -> None:
    """Turn off core dumps of this process and of all processes that it starts from now on."""
    # If the operator has set the hard limit to 0, only root can raise it; 0 is then the best possible value.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (_NO_DUMP, _NO_DUMP))
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
