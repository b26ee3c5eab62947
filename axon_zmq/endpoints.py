"""Where the daemon listens: endpoints checked before any socket sees them, and the run directory's files."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import stat
from pathlib import Path
from typing import IO

from axon_zmq.errors import ConfigurationError

MAX_IPC_PATH = 107
"""Bytes of a unix socket's path: `sun_path` less its closing NUL."""


def check(endpoint: str) -> str:
    """Check an endpoint that a client connects to: `tcp://host:port` or `ipc://path`.

    Raises:
        ConfigurationError: It is no such endpoint.
    """
    if endpoint.startswith("ipc://") and endpoint != "ipc://":
        return check_ipc(endpoint)
    if not endpoint.startswith("tcp://"):
        raise ConfigurationError(f"{endpoint!r} is no endpoint: write tcp://127.0.0.1:5570 or ipc://path")
    tcp_address(endpoint)
    return endpoint


def check_frontend(endpoint: str) -> str:
    """Check the endpoint that the daemon listens on: `tcp://127.0.0.1:5570`, `tcp://localhost:5570` or `ipc://path`.

    Raises:
        ConfigurationError: It is no such endpoint, or one that other machines could reach.
    """
    if endpoint.startswith("ipc://@"):
        raise ConfigurationError(f"{endpoint!r} would be open to all users here: write ipc://path")
    if check(endpoint).startswith("tcp://") and not is_loopback(tcp_address(endpoint)[0]):
        raise ConfigurationError(
            f"{endpoint!r} would be open to other machines, without encryption or keys: "
            "bind 127.0.0.1 and reach it through a tunnel"
        )
    return endpoint


def tcp_address(endpoint: str) -> tuple[str, int]:
    """Host and port of a `tcp://` endpoint; an IPv6 address in its brackets.

    Raises:
        ConfigurationError: It is none.
    """
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    is_port = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if not endpoint.startswith("tcp://") or not host or not is_port:
        raise ConfigurationError(f"{endpoint!r} is no endpoint with a port: write tcp://127.0.0.1:5570")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's alone."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def check_ipc(endpoint: str) -> str:
    """Check the length of an `ipc://` path, which the kernel would cut or refuse.

    Raises:
        ConfigurationError: The path is too long.
    """
    if len(os.fsencode(endpoint.removeprefix("ipc://"))) > MAX_IPC_PATH:
        raise ConfigurationError(f"{endpoint!r} is over {MAX_IPC_PATH} bytes: set AXON_RUN_DIR to a shorter path")
    return endpoint


def backend_endpoint(run_dir: Path) -> str:
    """The socket between broker and workers, inside the run directory."""
    return check_ipc(f"ipc://{run_dir / 'broker.sock'}")


def handed_over(run_dir: Path) -> tuple[str, ...]:
    """The files in which workers that have gone left the messages of their ended runs, the oldest first."""
    files = sorted((run_dir / HANDOVER).glob("*.msgpack"), key=lambda file: file.stat().st_mtime)
    return tuple(file.name for file in files)


HANDOVER = "handover"
"""The folder of those files, in the run directory."""
LOCK = "broker.lock"
_OUR_FILES = frozenset((".gitignore", "supervisord.log", LOCK))


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


def check_folder(frontend: str) -> None:
    """Check that the folder of an `ipc://` frontend is there, for the broker to make its socket in.

    Raises:
        ConfigurationError: It is not, or may not be written to.
    """
    folder = Path(frontend.removeprefix("ipc://")).parent
    if frontend.startswith("ipc://") and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigurationError(
            f"{frontend!r}: {str(folder)!r} is no folder that is yours to write to: "
            "make it, or set another AXON_FRONTEND"
        )


def open_private(path: str, flags: int) -> int:
    """An `opener` of `open` for files that are their owner's alone."""
    return os.open(path, flags, 0o600)


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
        with (run_dir / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return (run_dir / LOCK).read_text() or "?"
    return None
