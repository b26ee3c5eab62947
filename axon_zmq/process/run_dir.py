"""The run directory, which only its owner can access: it contains the backend socket and the handover files."""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from axon_zmq.errors import ConfigurationError
from axon_zmq.net.endpoints import check_ipc
from axon_zmq.process import files
from axon_zmq.process.locks import BROKER_LOCK_FILE

HANDOVER = "handover"
"""Name of the subdirectory for handover files."""
_RESERVED = frozenset(("broker", "broker.sock", "supervisor.sock"))
"""Names in the run directory that an `ipc://` frontend cannot have: the sockets of the daemon, and `broker`, whose lock
file would be that of the run directory."""
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


def clear_handover_files(run_dir: Path, max_age: float) -> None:
    """Delete handover files that no worker has read, because their runs can no longer be resumed.

    Incomplete files of killed workers are deleted, too. The files contain prompts and answers.

    Args:
        run_dir: The run directory.
        max_age: Seconds since a file was written after which it is deleted.
    """
    now = time.time()
    for path in (run_dir / HANDOVER).glob("*"):
        with suppress(OSError):
            # If the wall clock was set back, the file's age is negative; it is then unknown.
            if abs(now - path.stat(follow_symlinks=False).st_mtime) > max_age:
                path.unlink()


def check_frontend_path(frontend: str, run_dir: Path) -> None:
    """Check that the broker can create the socket of an `ipc://` frontend, and that no other user can replace it.

    Args:
        frontend: The frontend; nothing is checked if it is a `tcp://` endpoint.
        run_dir: Absolute path of the run directory. The daemon creates it and its parents, so they may be missing.

    Raises:
        ConfigurationError: The socket's directory is missing or not writable, another user could write to it, or a file
            at the path is in the way.
    """
    if not frontend.startswith("ipc://"):
        return
    path = Path(frontend.removeprefix("ipc://")).absolute()
    shown = f"endpoint {frontend!r}"
    try:
        _check_frontend_path(path, shown, run_dir)
    except OSError as fault:
        raise ConfigurationError(f"cannot use {shown}: {fault.strerror}; set AXON_FRONTEND to another path") from None


def _check_frontend_path(path: Path, shown: str, run_dir: Path) -> None:
    is_in_run_dir = os.path.realpath(path.parent) == os.path.realpath(run_dir)
    if is_in_run_dir and path.name in _RESERVED:
        raise ConfigurationError(
            f"{shown} is a path that the daemon itself uses: set AXON_FRONTEND to another path, "
            f"such as ipc://{run_dir / 'frontend'}"
        )
    if not path.parent.exists() and path.parent in (run_dir, *run_dir.parents):
        return
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)):
        raise ConfigurationError(
            f"cannot create the socket of {shown}: {str(path.parent)!r} is missing, or not a directory, "
            "or not writable: create it, or set AXON_FRONTEND to another path"
        )
    files.check_path(path.parent, shown, "AXON_FRONTEND", sets_mode=is_in_run_dir)
    _check_socket(path, shown)


def _check_socket(path: Path, shown: str) -> None:
    folder = path.parent.stat()
    # In /tmp, another user could create the socket while the daemon does not run, and receive the clients' requests.
    if folder.st_mode & stat.S_ISVTX and folder.st_mode & 0o022:
        raise ConfigurationError(
            f"{shown} is not safe: all users can create files in {str(path.parent)!r}; "
            "set AXON_FRONTEND to a path in a directory of your own, such as the run directory"
        )
    with suppress(FileNotFoundError):
        # ZeroMQ deletes whatever is at the path before it creates the socket.
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigurationError(
                f"{shown} is the path of an existing file, which is not a socket: "
                "set AXON_FRONTEND to another path, or delete the file"
            )


def private_directory(run_dir: Path) -> Path:
    """Create the run directory with mode 0700, or set that mode if the directory exists.

    The mode of an existing directory is changed only if it is empty or already a run directory, so that
    `AXON_RUN_DIR=/tmp` does not make `/tmp` inaccessible for other users.

    Raises:
        ConfigurationError: The path belongs to another user, contains other files, or is not a directory; or another
            user could replace an element of the path.
    """
    try:
        check_private(run_dir)
        for directory in reversed([each for each in (run_dir, *run_dir.parents) if not each.exists()]):
            with suppress(FileExistsError):  # another process of the daemon has just created it
                directory.mkdir(mode=0o700 if directory == run_dir else 0o755)
        # Checked again: in `/tmp`, another user may have created a missing directory meanwhile.
        check_private(run_dir)
        if stat.S_IMODE(run_dir.stat().st_mode) != 0o700:
            run_dir.chmod(0o700)
            # Checked again: until now, other users may have been able to create files.
            files.check_owned(run_dir, _shown(run_dir), "AXON_RUN_DIR")
    except OSError as fault:
        raise _unusable(run_dir, fault) from None
    return run_dir


def check_private(run_dir: Path) -> None:
    """Check that `private_directory` would accept or could create a directory, without changing anything.

    Raises:
        ConfigurationError: The directory cannot be used or created, or another user could replace it.
    """
    shown = _shown(run_dir)
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
            files.check_path(run_dir, shown, "AXON_RUN_DIR")
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
            files.check_owned(run_dir, shown, "AXON_RUN_DIR")
        files.check_path(run_dir, shown, "AXON_RUN_DIR", sets_mode=True)
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


def _shown(run_dir: Path) -> str:
    return f"run directory {str(run_dir)!r}"


def _unusable(run_dir: Path, fault: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot use run directory {str(run_dir)!r}: {fault.strerror}; set AXON_RUN_DIR to another path"
    )
