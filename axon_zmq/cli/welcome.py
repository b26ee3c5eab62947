"""Output of `axon-zmq serve` once it is ready: one request to each mode, and commands to try next."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from axon_zmq.cli import status
from axon_zmq.client import AsyncClient
from axon_zmq.errors import ConfigurationError, UnavailableError
from axon_zmq.events import Chunk
from axon_zmq.settings import Settings
from axon_zmq.supervise import broker_status
from axon_zmq.supervise.daemon import Daemon

EXAMPLE_AGENT: Final = {"model": "echo"}
"""Agent of the example requests, as data. They are sent only if clients may name offline models: the operator's own
agents may cost money."""
START_TIMEOUT_S: Final = 60.0
"""Seconds in which all workers must register. It takes about 3 s on two cores."""
POLL_INTERVAL_S: Final = 0.2
"""Seconds between two checks whether the daemon still runs."""
STREAMING_AGENT: Final = {"model": "synthetic:tokens=8,delay_ms=60,size=4"}


def wait_for_workers(daemon: Daemon, out: Console) -> bool:
    """Wait until all workers have registered, and print the agents that failed to load.

    Returns:
        Whether all workers have registered; False if a signal stopped the daemon meanwhile.

    Raises:
        ConfigurationError: The daemon ended, or not all workers registered within `START_TIMEOUT_S`.
    """
    started = time.monotonic()
    ready = asyncio.run(_all_registered(daemon, started + START_TIMEOUT_S))
    if ready:
        out.print(f"ready after {time.monotonic() - started:.1f} s\n")
        _show_broken(daemon.settings, out)
    return ready


def _show_broken(settings: Settings, out: Console) -> None:
    with suppress(UnavailableError):  # the broker answered a moment ago, but may have crashed since
        broken = {
            name for worker in broker_status.status(settings.run_dir)["workers"] for name in worker.get("broken") or ()
        }
        for name in sorted(broken):
            message = f"agent {name} ({settings.agents.get(name)}) could not be loaded: see the workers' logs"
            out.print(message, style="bold red", markup=False)


async def _all_registered(daemon: Daemon, ends_at: float) -> bool:
    wanted = daemon.settings.workers()
    async with AsyncClient(daemon.settings.frontend) as client:
        while not daemon.stopping:
            daemon.check_alive()
            if time.monotonic() > ends_at:
                raise ConfigurationError(_not_ready(daemon.settings.run_dir))
            try:
                pong = await client.ping(0.5)
            except UnavailableError:
                continue
            if not pong["settling"] and all(pong["modes"][mode]["workers"] >= n for mode, n in wanted.items()):
                return True
            await asyncio.sleep(0.05)
    return False


def _not_ready(run_dir: Path) -> str:
    missing: list[str] = []
    with suppress(UnavailableError):  # neither the broker nor supervisord answers
        missing = status.missing(status.report(run_dir))
    reasons = "; ".join(missing) or "no process answers"
    return f"not ready after {START_TIMEOUT_S:g} s: {reasons}; see the logs in {str(run_dir)!r}"


async def greet(daemon: Daemon, out: Console) -> None:
    """Send one request to each mode that has workers, and print the answers as they arrive, until a signal.

    Nothing is sent if clients may not name offline models.

    Raises:
        AxonError: A request failed.
        ConfigurationError: The daemon ended.
    """
    if not daemon.settings.allows_offline_models():
        return
    greeting = asyncio.create_task(_greet(daemon.settings, out))
    try:
        while not daemon.stopping and not greeting.done():
            daemon.check_alive()
            await asyncio.wait((greeting,), timeout=POLL_INTERVAL_S)
        if greeting.done():
            greeting.result()
    finally:
        greeting.cancel()


async def _greet(settings: Settings, out: Console) -> None:
    async with AsyncClient(settings.frontend) as client:
        if settings.run_sync_workers:
            done = await client.run_sync(EXAMPLE_AGENT, "Hello from Agent.run_sync")
            out.print(f"run_sync    {done.result}", markup=False)
        if settings.run_workers:
            done = await client.run(EXAMPLE_AGENT, "Hello from Agent.run")
            out.print(f"run         {done.result}", markup=False)
        if settings.run_stream_workers:
            out.print("run_stream  ", end="")
            await _show_stream(client, out)


async def _show_stream(client: AsyncClient, out: Console) -> None:
    started = time.monotonic()
    chunks = 0
    async with client.stream(STREAMING_AGENT, "Count for me") as stream:
        async for event in stream:
            if isinstance(event, Chunk):
                chunks += 1
                out.print(f"{event.data.strip()}·", end="", markup=False)
                out.file.flush()
    out.print(f" {chunks} chunks in {time.monotonic() - started:.2f} s")


def show_next_steps(settings: Settings, conf: Path, out: Console) -> None:
    """Print the endpoint and three commands to try."""
    option = "" if settings.frontend == "tcp://127.0.0.1:5570" else f" --endpoint {settings.frontend}"
    agent = "weather" if "weather" in settings.agents else next(iter(settings.agents), '\'{"model": "echo"}\'')
    prompt = "'Oslo and Rome?'" if agent == "weather" else "Hello"
    steps: list[tuple[str, Any]] = [
        ("stream", f"axon-zmq stream{option} {agent} {prompt}"),
        ("agents", f"axon-zmq agents{option}"),
        ("processes", f"supervisorctl -c {conf} status"),
    ]
    # The Elixir package waits for this line and reads the endpoint up to the next space.
    out.print(f"\nserving on {settings.frontend} (press Ctrl-C to stop)", markup=False)
    out.print("try next, from another terminal:")
    for title, command in steps:
        out.print(f"  {title:<14} {_bin()}{command}", markup=False)


def _bin() -> str:
    """Return the directory to put in front of the commands, if this environment's commands are not on PATH."""
    directory = Path(sys.executable).parent
    if directory == Path.cwd() / ".venv/bin":
        return ".venv/bin/"
    return "" if shutil.which("axon-zmq") == str(directory / "axon-zmq") else f"{directory}/"
