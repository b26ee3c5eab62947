"""The commands `status`, `doctor`, `ping` and `agents`: inspect a daemon without changing it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from axon_zmq.cli.options import (
    MAX_SECONDS,
    PING_TIMEOUT_S,
    AsJson,
    Endpoint,
    ExitCode,
    frontend,
    number_option,
    prints_json,
    run_dir,
    run_or_exit,
)
from axon_zmq.cli.output import counted, out, print_line
from axon_zmq.errors import UnavailableError
from axon_zmq.process.redaction import redacted_standard_streams


def doctor(endpoint: Endpoint = None) -> None:
    """Check settings, agents and daemon, and suggest fixes.

    Each line begins with ok, FAIL or STARTING. STARTING means that the daemon is running and still waits for its
    workers: run doctor again. Doctor changes nothing.

    Exit codes: 0 if everything is ok, 1 if a check fails, 2 if the settings are invalid, 3 if no check fails but the
    daemon is STARTING.
    """
    from axon_zmq.cli import doctor as checks

    styles = {checks.State.OK: "green", checks.State.STARTING: "yellow", checks.State.FAIL: "bold red"}
    findings: list[checks.Finding] = []
    # The modules of agents are loaded here, and may print anything.
    with redacted_standard_streams():
        for finding in checks.examine(endpoint):
            findings.append(finding)
            out.print(f"{finding.state:<8}", end=" ", style=styles[finding.state])
            out.print(f"{finding.subject}: {finding.detail}", markup=False)
            if finding.state is not checks.State.OK:
                out.print(f"{'':<8} fix: {finding.fix}", markup=False)
    raise typer.Exit(checks.exit_code(findings))


def status(as_json: AsJson = False) -> None:
    """Show the state of each process and mode.

    The exit code is 3 if no daemon answers, the broker is not ready for requests, a mode is degraded, or an agent could
    not be loaded.
    """
    from axon_zmq.cli.status import is_healthy, report, show

    current = report(run_dir())
    if prints_json(as_json):
        print_line(current)
    else:
        show(current, out)
    raise typer.Exit(0 if is_healthy(current) else ExitCode.UNAVAILABLE)


def ping(
    wait: Annotated[
        float, number_option("Wait for a worker in each configured mode, for this many seconds.", 0, MAX_SECONDS)
    ] = 0,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Show the version, workers and queues of the daemon.

    With --wait, a start script can wait until the daemon serves requests. The exit code is 3 if the daemon is not ready
    in time.
    """
    pong = run_or_exit(fetch_pong(endpoint, wait))
    if prints_json(as_json):
        print_line(pong)
        return
    out.print(f"axon_zmq {pong['version']}, boot {pong['boot']}, protocol {pong['protocol']}")
    for mode, pool in pong["modes"].items():
        workers, slots = counted(pool["workers"], "worker"), counted(pool["free"], "free slot")
        out.print(f"  {mode:<12}{workers}, {slots}, {pool['queued']} queued")


async def fetch_pong(endpoint: str | None, wait: float = 0.0) -> dict[str, Any]:
    """Ping the daemon and return its `pong`.

    Args:
        endpoint: The daemon's frontend; None for the endpoint in the settings.
        wait: Seconds to wait until each configured mode has a worker; 0 to return the first `pong`.

    Raises:
        UnavailableError: No daemon answers, or a mode still has no worker after `wait` seconds.
    """
    from axon_zmq import settings
    from axon_zmq.client import AsyncClient

    configured = settings.load()
    wanted = [mode for mode, processes in configured.workers().items() if processes]
    ends_at = time.monotonic() + wait
    async with AsyncClient(endpoint or configured.frontend) as client:
        while True:
            left = ends_at - time.monotonic()
            try:
                pong = await client.ping(max(PING_TIMEOUT_S, min(left, 5.0)))
                missing = [mode for mode in wanted if not pong["modes"][mode]["workers"]]
                if not wait or not missing:
                    return pong
                if left <= 0:
                    modes = ", ".join(missing)
                    raise UnavailableError(
                        "no_worker", f"no worker for {modes} after {wait:g} s (--wait); see `axon-zmq status`"
                    )
            except UnavailableError:
                if left <= 0:
                    raise
            await asyncio.sleep(0.1)


def agents(
    name: Annotated[
        str | None, typer.Argument(help="Show only this agent, with all details, as JSON.", metavar="NAME")
    ] = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """List the agents that the daemon serves."""
    catalog, toolsets = run_or_exit(_describe(endpoint, name))
    if name or prints_json(as_json):
        print_line(catalog)
        return
    for each, entry in catalog.items():
        _show_entry(each, entry)
    for each, entry in toolsets.items():
        _show_entry(f"toolset {each}", entry)


def _show_entry(name: str, entry: Mapping[str, Any]) -> None:
    """Print an agent or a toolset to a terminal."""
    out.print(name, style="bold" if "error" not in entry else "bold red", markup=False)
    if about := entry.get("error") or entry.get("description"):
        out.print(f"  {about}", markup=False)
    for tool in entry.get("tools", ()):
        described = next(iter((tool["description"] or "").splitlines()), "")
        out.print(f"  tool {tool['name']}{described and ': '}{described}", markup=False)


async def _describe(endpoint: str | None, name: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    from axon_zmq.client import AsyncClient

    async with AsyncClient(frontend(endpoint)) as client:
        await client.ping(PING_TIMEOUT_S)  # reports a missing daemon sooner than `describe` does
        return await client.describe(name), {} if name else await client.toolsets()
