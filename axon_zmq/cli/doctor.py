"""`axon-zmq doctor`: what keeps a daemon from starting or serving, found before it does."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axon_zmq import __version__, settings
from axon_zmq.errors import AxonError, ConfigurationError
from axon_zmq.net import endpoints
from axon_zmq.process.run_dir import backend_endpoint, check_private
from axon_zmq.supervise import supervisord


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at."""

    good: bool
    what: str
    found: str
    mend: str = ""


def examine(endpoint: str | None) -> Iterator[Finding]:
    """Look at everything in turn; what a wrong finding makes pointless is left out.

    Args:
        endpoint: The daemon to look for; None for that of the settings.
    """
    packages = ("pydantic-ai-slim", "pyzmq", "msgpack", "supervisor")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    python = platform.python_version()
    yield Finding(
        good=sys.version_info >= (3, 11),
        what="versions",
        found=f"axon_zmq {__version__}, Python {python}, {versions}",
        mend="use Python 3.11 or newer",
    )
    try:
        configured = settings.load()
    except ConfigurationError as error:
        yield Finding(good=False, what="settings", found=str(error), mend="correct the variable, or the file")
        return
    yield Finding(good=True, what="settings", found=f"frontend {configured.frontend}, workers {configured.workers()}")
    try:
        run_dir = configured.run_dir.absolute()
        check_private(run_dir)
        backend_endpoint(run_dir)
        yield Finding(
            good=True, what="run directory", found=f"{run_dir}{'' if run_dir.exists() else ', which serve will make'}"
        )
    except ConfigurationError as error:
        yield Finding(
            good=False, what="run directory", found=str(error), mend="set AXON_RUN_DIR to a short path of your own"
        )
    try:
        endpoints.check_folder(configured.frontend)
    except ConfigurationError as error:
        yield Finding(
            good=False, what="frontend", found=str(error), mend="make the folder, or set another AXON_FRONTEND"
        )
    beside = str(Path(sys.executable).parent)
    found = shutil.which("supervisord", path=os.pathsep.join((beside, os.environ.get("PATH", ""))))
    yield Finding(
        good=bool(found),
        what="supervisord",
        found=found or "not on PATH",
        mend="activate the environment: . .venv/bin/activate",
    )
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Finding(
        good=hard >= 4096, what="open files", found=f"at most {hard}, one a client", mend="raise `ulimit -Hn`"
    )
    yield _event_loop(configured.loop)
    yield from _agents(configured)
    yield from _daemon(endpoint or configured.frontend, configured)


def _event_loop(kind: str) -> Finding:
    from axon_zmq.process.event_loop import kind_of, new_loop

    try:
        loop = new_loop(kind)
    except ConfigurationError as error:
        return Finding(good=False, what="event loop", found=str(error), mend="install it, or unset AXON_LOOP")
    loop.close()
    return Finding(good=True, what="event loop", found=kind_of(loop))


def _agents(configured: settings.Settings) -> Iterator[Finding]:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 -- as a worker, which runs as `python -m`
    from axon_zmq.worker.registry.agents import Registry
    from axon_zmq.worker.registry.models import Models

    async def described() -> dict[str, Any]:
        registry = Registry(targets=configured.agents, models=models, named_toolsets=configured.toolsets)
        try:
            return await registry.describe(None)
        finally:
            await registry.aclose()

    models = Models(configured.model)
    catalog = asyncio.run(described())
    for name, entry in catalog["agents"].items():
        fault: Any = entry.get("error") or entry.get("tools_error")
        target = configured.agents[name]
        what, mend = f"agent {name}, as configured here", f"mend {target} or its entry in AXON_AGENTS"
        yield Finding(good=fault is None, what=what, found=fault or target, mend=mend)
    for name, entry in catalog["toolsets"].items():
        fault = entry.get("error")
        found = fault or ", ".join(tool["name"] for tool in entry["tools"]) or "no tools"
        what, mend = f"toolset {name}, as configured here", "mend its entry in AXON_TOOLSETS or axon.toml"
        yield Finding(good=fault is None, what=what, found=found, mend=mend)
    if configured.model is not None:
        try:
            models.named(configured.model)
            yield Finding(good=True, what="model", found=configured.model)
        except AxonError as error:
            yield Finding(
                good=False, what="model", found=error.message, mend="correct AXON_MODEL, or set the provider's key"
            )


def _daemon(endpoint: str, configured: settings.Settings) -> Iterator[Finding]:
    from axon_zmq.client import AsyncClient

    async def ask() -> tuple[dict[str, Any], dict[str, Any] | None]:
        async with AsyncClient(endpoint) as client:
            pong = await client.ping(2.0)
            with suppress(AxonError):
                return pong, await client.describe()
            return pong, None

    try:
        pong, agents = asyncio.run(ask())
    except AxonError:
        yield _no_daemon(endpoint, configured)
        return
    empty = [mode for mode, wanted in configured.workers().items() if wanted and not pong["modes"][mode]["workers"]]
    yield Finding(
        good=not empty,
        what="daemon",
        found=f"{endpoint}, version {pong['version']}, modes {pong['modes']}",
        mend=f"no worker for {', '.join(empty)}: look at supervisorctl status and the logs",
    )
    if agents is not None:
        yield _compared(agents, configured)


def _no_daemon(endpoint: str, configured: settings.Settings) -> Finding:
    run_dir = configured.run_dir.absolute()
    pid = supervisord.holder(run_dir) if endpoint == configured.frontend else None
    if pid is None:
        return Finding(
            good=True, what="daemon", found=f"none answers at {endpoint} yet: start it with `axon-zmq serve`"
        )
    return Finding(
        good=False,
        what="daemon",
        found=f"none answers at {endpoint}, though a supervisord (pid {pid or '?'}) holds {str(run_dir)!r}",
        mend=f"{supervisord.start_broker(run_dir, pid)}, or set AXON_FRONTEND as it was at its start",
    )


def _compared(agents: Mapping[str, Any], configured: settings.Settings) -> Finding:
    """The daemon's agents beside those that are configured here."""
    faults = [f"does not have {name}, which is configured here" for name in configured.agents if name not in agents]
    faults += [f"could not load {name}: {entry['error']}" for name, entry in agents.items() if "error" in entry]
    return Finding(
        good=not faults,
        what="daemon's agents",
        found="; ".join(faults) or ", ".join(agents),
        mend="mend the agent and `axon-zmq roll`; "
        "for other AXON_AGENTS, start the daemon anew, or call doctor with its own",
    )
