"""No process outlives the one that supervises it, not even when that one is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
POLL = 1.0
"""Seconds between two looks at the parent, where the kernel does not tell."""


def hold(always: bool = False) -> None:
    """Die with the parent process, if that is supervisord.

    Linux's kernel sends the signal, even to a process that is stopped or hung; elsewhere a thread
    looks at the parent once a second.

    Args:
        always: Whoever the parent is. Otherwise only under supervisord, which tells its children so:
            a worker that somebody started by hand with `nohup` shall stay.
    """
    if not always and "SUPERVISOR_ENABLED" not in os.environ:
        return
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)
