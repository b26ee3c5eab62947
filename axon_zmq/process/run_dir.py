"""The run directory: private to its owner; it holds the backend socket and the handover files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from axon_zmq.errors import ConfigurationError
from axon_zmq.net.endpoints import check_ipc
from axon_zmq.process.locks import BROKER_LOCK_FILE

HANDOVER = "handover"
"""The folder of those files, in the run directory."""
_OUR_FILES = frozenset((".gitignore", "supervisord.log", BROKER_LOCK_FILE))


def backend_endpoint(run_dir: Path) -> str:
    """The socket between broker and workers, inside the run directory."""
    return check_ipc(f"ipc://{run_dir / 'broker.sock'}")


def handover_files(run_dir: Path) -> tuple[str, ...]:
    """The files in which workers that have gone left the messages of their ended runs, the oldest first."""
    files = sorted((run_dir / HANDOVER).glob("*.msgpack"), key=lambda file: file.stat().st_mtime)
    return tuple(file.name for file in files)


def private_directory(run_dir: Path) -> Path:
    """Make the run directory 0700 and ours, creating it where it is missing.

    A directory that others may read is closed only when it is empty or already a run directory: nobody
    who writes `AXON_RUN_DIR=/tmp` finds `/tmp` closed.

    Raises:
        ConfigurationError: It belongs to someone else, holds something else, or is no directory.
    """
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(run_dir)
        if stat.S_IMODE(run_dir.stat().st_mode) != 0o700:
            run_dir.chmod(0o700)
    except OSError as fault:
        raise ConfigurationError(f"run directory {str(run_dir)!r}: {fault.strerror}; set AXON_RUN_DIR") from None
    return run_dir


def check_private(run_dir: Path) -> None:
    """Check that `private_directory` would take a directory, or could make it; nothing is made or changed.

    Raises:
        ConfigurationError: It would not, or could not.
    """
    shown = f"run directory {str(run_dir)!r}"
    try:
        place = next(place for place in (run_dir, *run_dir.parents) if place.exists())
        if place != run_dir:
            if not os.access(place, os.W_OK | os.X_OK):
                raise ConfigurationError(f"{shown} cannot be made in {str(place)!r}: set AXON_RUN_DIR")
            return
        status = run_dir.stat()
        if status.st_uid != os.geteuid():
            raise ConfigurationError(f"{shown} belongs to another user: set AXON_RUN_DIR")
        if stat.S_IMODE(status.st_mode) != 0o700:
            names = {path.name for path in run_dir.iterdir()}
            if names and not names & _OUR_FILES:
                raise ConfigurationError(
                    f"{shown} is open to others and holds other files: set AXON_RUN_DIR to a new directory"
                )
    except OSError as fault:
        raise ConfigurationError(f"{shown}: {fault.strerror}; set AXON_RUN_DIR") from None


def open_private(path: str, flags: int) -> int:
    """An `opener` of `open` for files that are their owner's alone."""
    return os.open(path, flags, 0o600)
