"""Lock files: at most one broker per run directory and per ipc frontend."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from axon_zmq.errors import ConfigurationError
from axon_zmq.process.files import open_private

BROKER_LOCK_FILE = "broker.lock"


def hold_lock(path: Path) -> IO[str]:
    """Lock a run directory or an ipc frontend for this process.

    The lock is necessary because binding an ipc path that another process has bound succeeds in ZeroMQ and takes the
    path away from that process.

    Args:
        path: Path of the lock file.

    Returns:
        The open lock file; the kernel releases the lock when it is closed, or when the process ends in any way.

    Raises:
        ConfigurationError: Another broker holds the lock, or the file cannot be opened: for example, it is a symbolic
            link or belongs to another user.
    """
    try:
        file = open(path, "a+", opener=open_private)  # noqa: SIM115
    except OSError as fault:
        raise ConfigurationError(f"cannot lock {str(path)!r}: {fault.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"another broker has locked {str(path)!r}: stop that broker, or set other AXON_RUN_DIR and AXON_FRONTEND"
        ) from None
    # The file is truncated only now that the lock is held: before that, it may contain the pid of another broker.
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def lock_holder(run_dir: Path) -> str | None:
    """The pid of the broker that has locked the run directory; None if it is not locked."""
    try:
        with open(run_dir / BROKER_LOCK_FILE, opener=open_private) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        # "?": the broker has locked the file and not yet written its pid.
        return (run_dir / BROKER_LOCK_FILE).read_text() or "?"
    return None
