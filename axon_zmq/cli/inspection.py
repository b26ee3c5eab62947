"""The commands `doctor`, `status`, `ping` and `agents`: look at a daemon without changing it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from axon_zmq.cli.options import PING_TIMEOUT_S, AsJson, Endpoint, ExitCode, frontend, in_lines, run_dir, talk
from axon_zmq.cli.output import out, print_line
from axon_zmq.errors import UnavailableError


def doctor(endpoint: Endpoint = None) -> None:
    """Check settings, agents, run directory and daemon, and say how to mend what is wrong."""
    from axon_zmq.cli.doctor import examine

    wrong = 0
    for finding in examine(endpoint):
        wrong += not finding.good
        out.print("ok   " if finding.good else "WRONG", end=" ", style="green" if finding.good else "bold red")
        out.print(f"{finding.what}: {finding.found}", markup=False)
        if not finding.good:
            out.print(f"      mend: {finding.mend}", markup=False)
    raise typer.Exit(ExitCode.FAILED if wrong else 0)


def status(as_json: AsJson = False) -> None:
    """Show each process and each mode; exit code 3 where something is not as it should be, or nobody answers."""
    from axon_zmq.cli.status import is_well, report, show

    found = report(run_dir())
    if in_lines(as_json):
        print_line(found)
    else:
        show(found, out)
    raise typer.Exit(0 if is_well(found) else ExitCode.NOT_NOW)


def ping(
    wait: Annotated[float, typer.Option(help="Seconds to wait until each configured mode has a worker.", min=0)] = 0,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Show the daemon's version, workers and queues; with --wait, wait until it can serve."""
    pong = talk(fetch_pong(endpoint, wait))
    if in_lines(as_json):
        print_line(pong)
        return
    out.print(f"axon_zmq {pong['version']}, boot {pong['boot']}, protocol {pong['protocol']}")
    for mode, pool in pong["modes"].items():
        out.print(f"  {mode:<12}{pool['workers']} workers, {pool['free']} free slots, {pool['queued']} queued")


async def fetch_pong(endpoint: str | None, wait: float = 0.0) -> dict[str, Any]:
    """The `pong` of the daemon.

    Args:
        endpoint: The daemon's frontend; None for that of the settings.
        wait: Seconds to wait until each configured mode has a worker.

    Raises:
        UnavailableError: No daemon answers, or a mode has no worker in time.
    """
    from axon_zmq import settings
    from axon_zmq.client import AsyncClient

    configured = settings.load()
    wanted = [mode for mode, processes in configured.workers().items() if processes]
    give_up = time.monotonic() + wait
    async with AsyncClient(endpoint or configured.frontend) as client:
        while True:
            left = give_up - time.monotonic()
            try:
                pong = await client.ping(max(PING_TIMEOUT_S, min(left, 5.0)))
                if not wait or all(pong["modes"][mode]["workers"] for mode in wanted):
                    return pong
                if left <= 0:
                    raise UnavailableError("no_worker", f"after {wait:g} s a mode has no worker: {pong['modes']}")
            except UnavailableError:
                if left <= 0:
                    raise
            await asyncio.sleep(0.1)


def agents(
    name: Annotated[str | None, typer.Argument(help="One agent, in full.")] = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """List the agents that the daemon serves."""
    found, toolsets = talk(_describe(endpoint, name))
    if name or in_lines(as_json):
        print_line(found)
        return
    for each, entry in found.items():
        _show_entry(each, entry)
    for each, entry in toolsets.items():
        _show_entry(f"toolset {each}", entry)


def _show_entry(name: str, entry: Mapping[str, Any]) -> None:
    """Print an agent or a toolset on a terminal."""
    out.print(name, style="bold" if "error" not in entry else "bold red", markup=False)
    if about := entry.get("error") or entry.get("description"):
        out.print(f"  {about}", markup=False)
    for tool in entry.get("tools", ()):
        described = next(iter((tool["description"] or "").splitlines()), "")
        out.print(f"  tool {tool['name']}{described and ': '}{described}", markup=False)


async def _describe(endpoint: str | None, name: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    from axon_zmq.client import AsyncClient

    async with AsyncClient(frontend(endpoint)) as client:
        await client.ping(PING_TIMEOUT_S)
        return await client.describe(name), {} if name else await client.toolsets()
