"""`axon-zmq doctor`: finds problems that keep a daemon from starting or serving."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from axon_zmq import __version__, settings
from axon_zmq.cli.options import PING_TIMEOUT_S, ExitCode
from axon_zmq.cli.output import counted
from axon_zmq.errors import AxonError, ConfigurationError
from axon_zmq.process.run_dir import check_frontend_path
from axon_zmq.protocol.kinds import mode_of
from axon_zmq.supervise import supervisord
from axon_zmq.supervise.daemon import check_run_dir

BROKER_STARTS_S: Final = 2
"""Seconds after the start of a broker in which `doctor` does not expect an answer. A start takes 0.3 s."""
MIN_OPEN_FILES: Final = 4096
"""Lowest hard limit of open files that `doctor` accepts: the broker needs a file descriptor for each client."""


class State(StrEnum):
    """Result of one check, as it is printed."""

    OK = "ok"
    STARTING = "STARTING"
    """Nothing is wrong so far: the broker or workers of the daemon have just been started."""
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of one check."""

    state: State
    subject: str
    detail: str
    fix: str = ""
    """How to fix the problem, if the state is not `ok`."""
    exit_code: ExitCode = ExitCode.FAILED
    """Exit code if the state is FAIL."""


def exit_code(findings: Sequence[Finding]) -> int:
    """Return the exit code of `doctor`: 2 for invalid settings, 1 for another FAIL, 3 for STARTING, otherwise 0."""
    failures = [finding.exit_code for finding in findings if finding.state is State.FAIL]
    if failures:
        return max(failures)
    return ExitCode.UNAVAILABLE if any(finding.state is State.STARTING for finding in findings) else 0


def _check(ok: bool, subject: str, detail: str, fix: str = "") -> Finding:
    return Finding(state=State.OK if ok else State.FAIL, subject=subject, detail=detail, fix=fix)


def examine(endpoint: str | None) -> Iterator[Finding]:
    """Run all checks in order. Invalid settings end it, because the other checks depend on them.

    Args:
        endpoint: The daemon to look for; None for the endpoint in the settings.
    """
    packages = ("pydantic-ai-slim", "pyzmq", "msgpack", "supervisor")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    python = platform.python_version()
    yield _check(
        sys.version_info >= (3, 11),
        "versions",
        f"axon_zmq {__version__}, Python {python}, {versions}",
        "use Python 3.11 or newer",
    )
    try:
        configured = settings.load()
    except ConfigurationError as error:
        yield Finding(
            state=State.FAIL,
            subject="settings",
            detail=str(error),
            fix="correct the environment variable, or axon.toml",
            exit_code=ExitCode.INVALID,
        )
        return
    workers = ", ".join(f"{mode} {processes}" for mode, processes in configured.workers().items())
    yield _check(True, "settings", f"frontend {configured.frontend}, workers: {workers}")
    yield _run_dir(configured.run_dir.absolute())
    try:
        check_frontend_path(configured.frontend, configured.run_dir.absolute())
    except ConfigurationError as error:
        yield _check(False, "frontend", str(error), "create the directory, or set AXON_FRONTEND to another path")
    # `serve` starts the supervisord next to its interpreter, which may not be on PATH.
    directory = str(Path(sys.executable).parent)
    path = shutil.which("supervisord", path=os.pathsep.join((directory, os.environ.get("PATH", ""))))
    yield _check(
        bool(path), "supervisord", path or "not on PATH", "activate the virtual environment: . .venv/bin/activate"
    )
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_unlimited = hard == resource.RLIM_INFINITY
    yield _check(
        is_unlimited or hard >= MIN_OPEN_FILES,
        "open files",
        f"{'unlimited' if is_unlimited else f'at most {hard}'}; each connected client needs one",
        f"raise the hard limit (`ulimit -Hn`) to {MIN_OPEN_FILES} or more",
    )
    yield _event_loop(configured.loop)
    yield from _agents(configured)
    yield from _daemon(endpoint or configured.frontend, configured)


def _run_dir(run_dir: Path) -> Finding:
    try:
        check_run_dir(run_dir)
    except ConfigurationError as error:
        return _check(False, "run directory", str(error), "set AXON_RUN_DIR to a short path that only you can write to")
    return _check(True, "run directory", f"{run_dir}{'' if run_dir.exists() else ' (serve creates it)'}")


def _event_loop(kind: str) -> Finding:
    from axon_zmq.process.event_loop import kind_of, new_loop

    try:
        loop = new_loop(kind)
    except ConfigurationError as error:
        return _check(False, "event loop", str(error), "install it, or unset AXON_LOOP")
    loop.close()
    return _check(True, "event loop", kind_of(loop))


def _agents(configured: settings.Settings) -> Iterator[Finding]:
    # A worker runs as `python -m`, which puts the working directory on the path; a console script does not.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    from axon_zmq.worker.registry.agents import Registry
    from axon_zmq.worker.registry.models import Models

    async def load() -> dict[str, Any]:
        registry = Registry(targets=configured.agents, models=models, named_toolsets=configured.toolsets)
        try:
            return await registry.describe(None)
        finally:
            await registry.aclose()

    models = Models(configured.model)
    catalog = asyncio.run(load())
    for name, entry in catalog["agents"].items():
        error: Any = entry.get("error") or entry.get("tools_error")
        target = configured.agents[name]
        yield _check(
            error is None, f"configured agent {name}", error or target, f"fix {target}, or its entry in AXON_AGENTS"
        )
    for name, entry in catalog["toolsets"].items():
        error = entry.get("error")
        detail = error or ", ".join(tool["name"] for tool in entry["tools"]) or "no tools"
        fix = "fix the toolset, or its entry in AXON_TOOLSETS or axon.toml"
        yield _check(error is None, f"configured toolset {name}", detail, fix)
    if configured.model is not None:
        try:
            models.named(configured.model)
            yield _check(True, "model", configured.model)
        except AxonError as error:
            yield _check(False, "model", error.message, "correct AXON_MODEL, or set the API key of the provider")


def _daemon(endpoint: str, configured: settings.Settings) -> Iterator[Finding]:
    from axon_zmq.client import AsyncClient

    async def ask() -> tuple[dict[str, Any], dict[str, Any] | None]:
        async with AsyncClient(endpoint) as client:
            pong = await client.ping(PING_TIMEOUT_S)
            # Without a worker, or during recovery, the broker would keep `describe` waiting.
            if not pong["settling"] and any(pool["workers"] for pool in pong["modes"].values()):
                with suppress(AxonError):
                    return pong, await client.describe()
            return pong, None

    try:
        pong, agents = asyncio.run(ask())
    except AxonError:
        yield _no_daemon(endpoint, configured)
        return
    starting = _starting_modes(configured.run_dir.absolute()) if endpoint == configured.frontend else frozenset[str]()
    yield daemon_finding(endpoint, pong, configured.workers(), starting)
    if agents is not None:
        yield _compare_agents(agents, configured)


def daemon_finding(
    endpoint: str, pong: Mapping[str, Any], configured: Mapping[str, int], starting: frozenset[str]
) -> Finding:
    """Return the finding about a daemon that answers.

    Args:
        endpoint: Its frontend.
        pong: Its answer to `ping`.
        configured: The number of workers of each mode, from the settings.
        starting: Modes of which supervisord runs a process. Such a mode without a worker is STARTING. If the process
            has not registered after 10 s, the broker reports the mode as degraded, and the result is FAIL.
    """
    modes: Mapping[str, Any] = pong["modes"]
    missing = [mode for mode, processes in configured.items() if processes and not modes[mode]["workers"]]
    waiting = {mode for mode in missing if not modes[mode]["degraded"] and (pong["settling"] or mode in starting)}
    counts = ", ".join(f"{mode} {counted(pool['workers'], 'worker')}" for mode, pool in modes.items())
    detail = f"version {pong['version']} at {endpoint}: {counts}"
    if failed := [mode for mode in missing if mode not in waiting]:
        fix = f"no worker for {', '.join(failed)}: see `axon-zmq status` and the workers' logs"
        return _check(False, "daemon", detail, fix)
    if waiting or pong["settling"]:
        reason = f"workers of {', '.join(sorted(waiting))} are starting" if waiting else "the broker is recovering"
        return Finding(
            state=State.STARTING,
            subject="daemon",
            detail=f"{detail}; {reason}",
            fix="run doctor again in a few seconds",
        )
    return _check(True, "daemon", detail)


def _starting_modes(run_dir: Path) -> frozenset[str]:
    """Return the modes of which supervisord runs a process; empty if no supervisord answers."""
    try:
        workers = supervisord.workers(run_dir)
    except supervisord.FAULTS:
        return frozenset()
    return frozenset(mode_of(name) or "" for name, info in workers.items() if info["pid"])


def _no_daemon(endpoint: str, configured: settings.Settings) -> Finding:
    run_dir = configured.run_dir.absolute()
    pid = supervisord.holder(run_dir) if endpoint == configured.frontend else None
    if pid is None:
        return _check(True, "daemon", f"not running at {endpoint}; start it with `axon-zmq serve`")
    detail = f"no answer at {endpoint}, but a supervisord (pid {pid or 'unknown'}) uses the run directory {run_dir}"
    with suppress(*supervisord.FAULTS):
        if is_broker_starting(supervisord.processes(run_dir)):
            fix = "run doctor again in a few seconds"
            return Finding(state=State.STARTING, subject="daemon", detail=f"{detail}; the broker is starting", fix=fix)
    return _check(
        False,
        "daemon",
        detail,
        f"{supervisord.start_broker(run_dir, pid)}, or set AXON_FRONTEND to the value that the daemon was started with",
    )


def is_broker_starting(processes: Iterable[supervisord.ProcessInfo]) -> bool:
    """Return whether the broker was started just now, judging by supervisord's report.

    supervisord reports a broker as RUNNING at once (`BROKER_START_SECONDS`), so its age decides.
    """
    return any(
        info["name"] == "broker"
        and info["statename"] in ("STARTING", "RUNNING")
        and info["now"] - info["start"] <= BROKER_STARTS_S
        for info in processes
    )


def _compare_agents(agents: Mapping[str, Any], configured: settings.Settings) -> Finding:
    """Compare the agents of the running daemon with the settings of this shell."""
    problems = [f"{name} is configured but not served" for name in configured.agents if name not in agents]
    problems += [f"{name} could not be loaded: {entry['error']}" for name, entry in agents.items() if "error" in entry]
    return _check(
        not problems,
        "served agents",
        "; ".join(problems) or ", ".join(agents),
        "fix the agent and run `axon-zmq roll`; if AXON_AGENTS differs, restart the daemon, "
        "or run doctor with the settings of the daemon",
    )
