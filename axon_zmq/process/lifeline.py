"""Makes processes end together with their parent, even if the parent is killed with SIGKILL.

supervisord cannot do this: after `kill -9` of supervisord, its child processes continue to run.

As a script, `lifeline.py PARENT COMMAND ARGUMENT…` replaces itself with a command that ends when the process with pid
PARENT ends. The module imports nothing from the package, so that the script starts within 20 ms.
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
if TYPE_CHECKING:  # at run time, these two imports would double the script's start time
    from collections.abc import Sequence
    from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_CANNOT_START = 127
"""Exit code if the command cannot be started; shells use the same one."""
PARENT_POLL_INTERVAL_S = 1.0
"""Seconds between two checks whether the parent still exists, on systems without a parent-death signal."""


def die_with_parent(always: bool = False, parent: int | None = None) -> None:
    """End this process when its parent process ends.

    On Linux, the kernel sends SIGKILL when the parent ends, even if this process is stopped or hangs. On other systems,
    a thread checks once a second.

    Args:
        always: Whether this applies to any parent. By default it applies to supervisord only, so that a worker started
            with `nohup` keeps running after its shell has ended.
        parent: Pid of the parent, if the parent has passed it on. With it, this process also ends if the parent ended
            before this call.
    """
    # supervisord sets this variable in its child processes.
    if not always and "SUPERVISOR_ENABLED" not in os.environ:
        return
    parent = parent or os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The kernel sends no signal for a parent that ended before prctl was called.
        if os.getppid() != parent:
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()


def stdin_from_devnull() -> None:
    """Under supervisord, replace stdin with /dev/null.

    Otherwise a left-over `breakpoint()` or `input()` in an agent's module would block forever: stdin is a pipe that
    supervisord keeps open and never writes to.
    """
    if "SUPERVISOR_ENABLED" in os.environ:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_INTERVAL_S)
    os._exit(1)


def tied_command(command: Sequence[str]) -> list[str]:
    """The command line that starts a command which ends together with this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def become(parent: int, command: Sequence[str]) -> NoReturn:
    """Replace this process with a command that ends together with its parent, as does the command's process group.

    The kernel kills the command itself. The command may have started further processes: npx and uvx start the real
    server as a child. These are killed by a helper process, which watches the command.

    Args:
        parent: Pid of the parent.
        command: Program and arguments.
    """
    leader = os.getpid()
    if os.getpgrp() != leader:
        os.setpgid(0, 0)
    # Forking twice makes the helper a child of init, so that the command never has a child that it did not start.
    if os.fork() == 0:
        if os.fork() == 0:
            _kill_group_after(leader, parent)
        os._exit(0)
    os.wait()
    die_with_parent(always=True, parent=parent)
    # Python ignores these two signals, and a program inherits ignored signals.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], [*command])  # noqa: S606
    except OSError as error:
        # Not logging: importing it would double the script's start time.
        sys.stderr.write(f"cannot start {command[0]!r}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(_CANNOT_START)


def _kill_group_after(leader: int, parent: int) -> NoReturn:
    """Wait until the leader of this process group has ended, and kill the rest of the group."""
    # An open pipe in this process would keep its readers from seeing the end of the command's output.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for pipe in range(3):
        os.dup2(nowhere, pipe)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a signal to the group must not end this process first
    try:
        end = select.poll()
        end.register(os.pidfd_open(leader), select.POLLIN)
        end.poll()
    except (AttributeError, OSError):  # no pidfd: not Linux, or before 5.3, or the leader has already ended
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
