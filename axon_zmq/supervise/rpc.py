"""supervisord's own XML-RPC, over its unix socket."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import Error, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from axon_zmq import wire

FAULTS = (OSError, Error)
"""What a call may raise: nobody listens, or supervisord refuses."""


def call(run_dir: Path, method: str, *arguments: Any) -> Any:
    """Call one of supervisord's methods, such as `startProcess`.

    Raises:
        OSError: Nobody listens.
        xmlrpc.client.Error: supervisord refuses.
    """
    transport: Any = SupervisorTransport(None, None, serverurl=f"unix://{run_dir / 'supervisor.sock'}")
    try:
        return getattr(ServerProxy("http://127.0.0.1", transport=transport).supervisor, method)(*arguments)
    finally:
        transport.close()


def wake(run_dir: Path) -> None:
    """Let supervisord look at its processes now: of itself it does so once a second."""
    with suppress(*FAULTS):  # its socket may not be there yet, or no longer
        call(run_dir, "getState")


def processes(run_dir: Path) -> list[dict[str, Any]]:
    """What supervisord says of each program.

    Raises:
        OSError: Nobody listens.
        xmlrpc.client.Error: supervisord refuses.
    """
    return call(run_dir, "getAllProcessInfo")


def stop_workers(run_dir: Path) -> None:
    """Tell all workers to stop at once, each to finish what it has; `supervisorctl` would take turns.

    Raises:
        OSError: Nobody listens.
        xmlrpc.client.Error: supervisord refuses.
    """
    for name, info in workers(run_dir).items():
        if info["statename"] in ("STARTING", "RUNNING", "BACKOFF"):
            call(run_dir, "stopProcess", name, False)


def workers_are_gone(run_dir: Path) -> bool:
    """Whether no worker runs any more.

    Raises:
        OSError: Nobody listens.
        xmlrpc.client.Error: supervisord refuses.
    """
    return not any(info["pid"] for info in workers(run_dir).values())


def workers(run_dir: Path) -> dict[str, dict[str, Any]]:
    """What supervisord says of each worker program, by name.

    Raises:
        OSError: Nobody listens.
        xmlrpc.client.Error: supervisord refuses.
    """
    return {process["name"]: process for process in processes(run_dir) if wire.mode_of(process["name"])}
