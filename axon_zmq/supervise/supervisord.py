"""Client of supervisord's XML-RPC interface, over its unix socket."""

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
"""Seconds to wait for an answer. A supervisord that takes longer hangs or has been stopped by a signal."""
FAULTS = (OSError, xmlrpc.client.Error, HTTPException, ExpatError)
"""Exceptions of a call: no supervisord listens, it does not answer in time, or it refuses the call."""

RUNNING: Final = frozenset(("STARTING", "RUNNING", "BACKOFF"))
"""States of a program that supervisord keeps running or tries to start."""


class ProcessInfo(TypedDict):
    """Report of supervisord about one program. supervisord sends more keys; only these are used."""

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
        OSError: No supervisord listens, or it does not answer in time.
        xmlrpc.client.Error: supervisord refuses the call.
        http.client.HTTPException: The answer is incomplete or not HTTP: supervisord is ending, or another
            program answers.
        xml.parsers.expat.ExpatError: The answer is not XML, for the same reasons.
    """
    connection = _Connection(run_dir / "supervisor.sock")
    try:
        request = xmlrpc.client.dumps(arguments, f"supervisor.{method}")
        connection.request("POST", "/RPC2", request, {"Content-Type": "text/xml"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise xmlrpc.client.ProtocolError(method, answer.status, answer.reason, {})
        return xmlrpc.client.loads(answer.read())[0][0]
    finally:
        connection.close()


def holder(run_dir: Path) -> int | None:
    """Return the pid of the supervisord that uses a run directory; 0 if it does not answer, None if there is none."""
    try:
        return call(run_dir, "getPID")
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except FAULTS:
        return 0


def start_broker(run_dir: Path, pid: int) -> str:
    """Return the command that starts the broker of a supervisord, for an error message."""
    file = configuration(pid) or run_dir / "supervisord.conf"
    return f"`supervisorctl -c {shlex.quote(str(file))} start broker`"


def configuration(pid: int) -> Path | None:
    """Return the configuration file of a running supervisord; None if its command line cannot be read."""
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
    here = folder / "supervisord.conf"  # the first place where supervisord looks without -c
    return here if here.exists() else None


def wake(run_dir: Path) -> None:
    """Make supervisord check its processes now.

    Its event loop does so after each request, and otherwise once per second.
    """
    with suppress(*FAULTS):  # the socket may not exist yet, or not any more
        call(run_dir, "getState")


def processes(run_dir: Path) -> list[ProcessInfo]:
    """Return the report about each program. Raises the same exceptions as `call`."""
    return call(run_dir, "getAllProcessInfo")


def stop_workers(run_dir: Path) -> None:
    """Stop all workers at once; each one finishes its runs first. `supervisorctl stop` would stop them one by one.

    Raises the same exceptions as `call`.
    """
    for name, info in workers(run_dir).items():
        if info["statename"] in RUNNING:
            with suppress(xmlrpc.client.Fault):  # the worker has ended by itself meanwhile
                call(run_dir, "stopProcess", name, False)


def workers_are_gone(run_dir: Path) -> bool:
    """Return whether all workers have ended. Raises the same exceptions as `call`."""
    return not any(info["pid"] for info in workers(run_dir).values())


def workers(run_dir: Path) -> dict[str, ProcessInfo]:
    """Return the report about each worker program, by name. Raises the same exceptions as `call`."""
    return {process["name"]: process for process in processes(run_dir) if mode_of(process["name"])}
