"""supervisord's own XML-RPC, over its unix socket."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import Error, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

FAULTS = (OSError, Error)
"""What a call may raise: nobody listens, or supervisord refuses."""


def connect(run_dir: Path) -> Any:
    """A proxy whose attributes are supervisord's methods; nothing is sent yet."""
    transport: Any = SupervisorTransport(None, None, serverurl=f"unix://{run_dir / 'supervisor.sock'}")
    return ServerProxy("http://127.0.0.1", transport=transport).supervisor


def wake(run_dir: Path) -> None:
    """Let supervisord look at its processes now: of itself it does so once a second."""
    with suppress(*FAULTS):  # its socket may not be there yet, or no longer
        connect(run_dir).getState()


def stop_workers(run_dir: Path) -> None:
    """Tell all workers to stop at once, each to finish what it has; `supervisorctl` would take turns.

    Raises:
        OSError: Nobody listens.
        xmlrpc.client.Error: supervisord refuses.
    """
    supervisor = connect(run_dir)
    for info in supervisor.getAllProcessInfo():
        if info["name"] != "broker" and info["statename"] in ("STARTING", "RUNNING", "BACKOFF"):
            supervisor.stopProcess(info["name"], False)


def workers_are_gone(run_dir: Path) -> bool:
    """Whether no worker runs any more.

    Raises:
        OSError: Nobody listens.
        xmlrpc.client.Error: supervisord refuses.
    """
    processes = connect(run_dir).getAllProcessInfo()
    return not any(info["pid"] for info in processes if info["name"] != "broker")
