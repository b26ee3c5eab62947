"""supervisord's own XML-RPC, over its unix socket."""

from __future__ import annotations

import shlex
import socket
import xmlrpc.client
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final, TypedDict
from xml.parsers.expat import ExpatError

from axon_zmq.protocol.kinds import mode_of

RPC_TIMEOUT_S: Final = 10.0
"""Seconds to wait for an answer of supervisord. One that does not answer in time hangs or is stopped."""
FAULTS = (OSError, xmlrpc.client.Error, HTTPException, ExpatError)
"""What a call may raise: nobody listens, nobody answers, or supervisord refuses."""

RUNNING: Final = frozenset(("STARTING", "RUNNING", "BACKOFF"))
"""States of a program that supervisord keeps running, or tries to."""


class ProcessInfo(TypedDict):
    """What supervisord reports about a program; it has more keys."""

    name: str
    statename: str
    pid: int
    """0 if no process runs."""
    start: int
    """Time of the last start, in seconds since 1970."""
    now: int


class _Connection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=RPC_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(RPC_TIMEOUT_S)
        self.sock.connect(str(self._path))


def call(run_dir: Path, method: str, *arguments: str | bool) -> Any:
    """Call one of supervisord's methods, such as `startProcess`.

    Raises:
        OSError: Nobody listens, or nobody answers in time.
        xmlrpc.client.Error: supervisord refuses.
        http.client.HTTPException: What answers is no supervisord, or one that ends.
        xml.parsers.expat.ExpatError: The same.
    """
    connection = _Connection(run_dir / "supervisor.sock")
    try:
        asked = xmlrpc.client.dumps(arguments, f"supervisor.{method}")
        connection.request("POST", "/RPC2", asked, {"Content-Type": "text/xml"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise xmlrpc.client.ProtocolError(method, answer.status, answer.reason, {})
        return xmlrpc.client.loads(answer.read())[0][0]
    finally:
        connection.close()


def holder(run_dir: Path) -> int | None:
    """The pid of the supervisord that holds a run directory; 0 if it hangs or is ending; None if there is none."""
    try:
        return call(run_dir, "getPID")
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except FAULTS:
        return 0


def start_broker(run_dir: Path, pid: int) -> str:
    """What starts the broker of a supervisord, for a message."""
    file = configuration(pid) or run_dir / "supervisord.conf"
    return f"`supervisorctl -c {shlex.quote(str(file))} start broker`"


def configuration(pid: int) -> Path | None:
    """The configuration file of a supervisord; None if its command line cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        folder = Path(f"/proc/{pid}/cwd").resolve()
    except (OSError, ValueError):
        return None
    for number, word in enumerate(words[:-1]):
        if word in ("-c", "--configuration"):
            return folder / words[number + 1]
        if word.startswith("--configuration="):
            return folder / word.partition("=")[2]
    here = folder / "supervisord.conf"  # where supervisord looks by itself
    return here if here.exists() else None


def wake(run_dir: Path) -> None:
    """Let supervisord look at its processes now: of itself it does so once a second."""
    with suppress(*FAULTS):  # its socket may not be there yet, or no longer
        call(run_dir, "getState")


def processes(run_dir: Path) -> list[ProcessInfo]:
    """What supervisord says of each program; raises as `call`."""
    return call(run_dir, "getAllProcessInfo")


def stop_workers(run_dir: Path) -> None:
    """Tell all workers to stop at once, each to finish what it has; `supervisorctl` would take turns.

    Raises as `call`.
    """
    for name, info in workers(run_dir).items():
        if info["statename"] in RUNNING:
            with suppress(xmlrpc.client.Fault):  # it ended by itself just now
                call(run_dir, "stopProcess", name, False)


def workers_are_gone(run_dir: Path) -> bool:
    """Whether no worker runs any more; raises as `call`."""
    return not any(info["pid"] for info in workers(run_dir).values())


def workers(run_dir: Path) -> dict[str, ProcessInfo]:
    """What supervisord says of each worker program, by name; raises as `call`."""
    return {process["name"]: process for process in processes(run_dir) if mode_of(process["name"])}
