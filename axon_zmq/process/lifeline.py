"""No process outlives the one that supervises it, not even when that one is killed.

Run as a script, `lifeline.py PARENT COMMAND ARGUMENT…` becomes a command that is tied to the process PARENT.
It imports nothing of the package, so that it starts within 20 ms.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing these takes as long as all the rest
    from collections.abc import Sequence
    from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_CANNOT_START = 127
"""Exit code of a command that cannot be started, as a shell's."""
PARENT_POLL_INTERVAL_S = 1.0
"""Seconds between two checks of the parent, on systems whose kernel does not report its death."""


def die_with_parent(always: bool = False, parent: int | None = None) -> None:
    """Die with the parent process, if that is supervisord.

    Linux's kernel sends the signal, even to a process that is stopped or hung; elsewhere a thread
    looks at the parent once a second.

    Args:
        always: Whoever the parent is. Otherwise only under supervisord, which tells its children so:
            a worker that somebody started by hand with `nohup` shall stay.
        parent: Its pid, if the parent passed it on; the parent may have ended by now.
    """
    if not always and "SUPERVISOR_ENABLED" not in os.environ:
        return
    parent = parent or os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()


def stdin_from_devnull() -> None:
    """Replace stdin by /dev/null under supervisord: a read of its pipe, which stays open, would block for ever."""
    if "SUPERVISOR_ENABLED" in os.environ:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_INTERVAL_S)
    os._exit(1)


def tied_command(command: Sequence[str]) -> list[str]:
    """The command line that starts a command tied to this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def become(parent: int, command: Sequence[str]) -> NoReturn:
    """Become a command that dies with its parent, and with it all that it started in its process group.

    The kernel kills the command itself. What it started (npx and uvx start the real server) is killed by a
    process beside it, which is no child of the command's and keeps none of its pipes open.
    """
    leader = os.getpid()
    if os.getpgrp() != leader:
        os.setpgid(0, 0)
    if os.fork() == 0:
        if os.fork() == 0:
            _kill_group_after(leader, parent)
        os._exit(0)
    os.wait()
    die_with_parent(always=True, parent=parent)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], [*command])  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")  # importing logging would take as long as all the rest
        sys.stderr.flush()
        os._exit(_CANNOT_START)


def _kill_group_after(leader: int, parent: int) -> NoReturn:
    """Wait until the leader of this process group has ended, and end the rest of the group."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for pipe in range(3):
        os.dup2(nowhere, pipe)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        end = select.poll()
        end.register(os.pidfd_open(leader), select.POLLIN)
        end.poll()
    except (AttributeError, OSError):
        while _is_alive(leader) and _is_alive(parent):
            time.sleep(PARENT_POLL_INTERVAL_S)
    os.killpg(leader, signal.SIGKILL)
    os._exit(0)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
