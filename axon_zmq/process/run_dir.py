"""The run directory, which only its owner can access: it contains the backend socket and the handover files."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from axon_zmq.errors import ConfigurationError
from axon_zmq.net.endpoints import check_ipc
from axon_zmq.process.locks import BROKER_LOCK_FILE

HANDOVER = "handover"
"""Name of the subdirectory for handover files."""
_OUR_FILES = frozenset((".gitignore", "supervisord.log", BROKER_LOCK_FILE))
"""A directory that contains one of these files is taken to be a run directory."""


def backend_endpoint(run_dir: Path) -> str:
    """The endpoint of the socket between broker and workers, in the run directory.

    Raises:
        ConfigurationError: The path is too long for a Unix socket.
    """
    return check_ipc(f"ipc://{run_dir / 'broker.sock'}")


def handover_files(run_dir: Path) -> tuple[str, ...]:
    """Names of the handover files: messages of ended runs, left by workers that have stopped; the oldest file first."""
    files = sorted((run_dir / HANDOVER).glob("*.msgpack"), key=lambda file: file.stat().st_mtime)
    return tuple(file.name for file in files)


def private_directory(run_dir: Path) -> Path:
    """Create the run directory with mode 0700, or set that mode if the directory exists.

    The mode of an existing directory is changed only if it is empty or already a run directory, so that
    `AXON_RUN_DIR=/tmp` does not make `/tmp` inaccessible for other users.

    Raises:
        ConfigurationError: The path belongs to another user, contains other files, or is not a directory.
    """
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(run_dir)
        if stat.S_IMODE(run_dir.stat().st_mode) != 0o700:
            run_dir.chmod(0o700)
    except OSError as fault:
        raise _unusable(run_dir, fault) from None
    return run_dir


def check_private(run_dir: Path) -> None:
    """Check that `private_directory` would accept or could create a directory, without changing anything.

    Raises:
        ConfigurationError: The directory cannot be used or created.
    """
    shown = f"run directory {str(run_dir)!r}"
    try:
        # A symbolic link to a missing directory exists for mkdir.
        place = next(place for place in (run_dir, *run_dir.parents) if place.exists() or place.is_symlink())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{str(place)!r} is not a directory")
        if place != run_dir:
            if not _can_create_in(place):
                raise ConfigurationError(
                    f"cannot create {shown}: {str(place)!r} is not writable; set AXON_RUN_DIR to another path"
                )
            return
        status = run_dir.stat()
        if status.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{shown} belongs to another user (uid {status.st_uid}); set AXON_RUN_DIR to a directory that you own"
            )
        if stat.S_IMODE(status.st_mode) != 0o700:
            names = {path.name for path in run_dir.iterdir()}
            if names and not names & _OUR_FILES:
                raise ConfigurationError(
                    f"{shown} has mode {stat.S_IMODE(status.st_mode):04o} and contains files of other programs: "
                    "set AXON_RUN_DIR to a new or empty directory"
                )
    except OSError as fault:
        raise _unusable(run_dir, fault) from None


def _can_create_in(directory: Path) -> bool:
    """Return whether a directory can be created in another one, without creating it.

    `os.access` is not sufficient for root: it returns True for /proc and /sys, in which mkdir fails. So a file without
    a name is opened too.

    Raises:
        OSError: The directory is writable, but for example its file system is full.
    """
    if not os.access(directory, os.W_OK | os.X_OK):
        return False
    flag: int | None = getattr(os, "O_TMPFILE", None)  # Linux only
    if flag is None:
        return True
    try:
        os.close(os.open(directory, flag | os.O_WRONLY, 0o600))
    except OSError as fault:
        if fault.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        # The kernel's own file systems do not support the flag, and report no blocks; NFS does not support it either.
        return os.statvfs(directory).f_blocks > 0
    return True


def _unusable(run_dir: Path, fault: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot use run directory {str(run_dir)!r}: {fault.strerror}; set AXON_RUN_DIR to another path"
    )


def open_private(path: str, flags: int) -> int:
    """Open a file with mode 0600; for the `opener` argument of `open`."""
    return os.open(path, flags, 0o600)
