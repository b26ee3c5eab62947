"""Lock files: one broker for each run directory and each ipc frontend."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from axon_zmq.errors import ConfigurationError

BROKER_LOCK_FILE = "broker.lock"


def hold_lock(path: Path) -> IO[str]:
    """Hold a run directory or an ipc frontend: binding a live ipc path again takes it away from its broker.

    Args:
        path: Of the lock file.

    Raises:
        ConfigurationError: Another broker holds it.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"another broker holds {str(path)!r}: stop it, or set AXON_RUN_DIR and AXON_FRONTEND"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def lock_holder(run_dir: Path) -> str | None:
    """The pid of the broker that holds the run directory, or None."""
    try:
        with (run_dir / BROKER_LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return (run_dir / BROKER_LOCK_FILE).read_text() or "?"
    return None
