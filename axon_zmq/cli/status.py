"""`axon-zmq status`: the state of each process, as supervisord and the broker report it."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, Required, TypedDict, cast

from rich.console import Console
from rich.table import Table

from axon_zmq.cli.output import counted
from axon_zmq.errors import UnavailableError
from axon_zmq.protocol.kinds import mode_of
from axon_zmq.supervise import broker_status, supervisord


class ProcessReport(TypedDict, total=False):
    """State of one process, as supervisord and the broker report it."""

    state: Required[str | None]
    """State in supervisord; None if supervisord does not know the process."""
    pid: Required[int]
    uptime: int
    """Seconds."""
    mode: str
    slots: int
    busy: int
    waiting: int
    """Runs that only wait for tools of their clients, and occupy no slot."""
    silent_ms: int
    crashes: int
    broker_says: str
    """State of a worker in the broker."""
    broken: list[str] | None
    """Agents that the worker could not load; None if the worker is too old to report them."""


class Report(TypedDict):
    """State of all processes and modes. The keys that come from the broker are missing if it does not answer."""

    boot: NotRequired[str]
    settling: NotRequired[bool]
    draining: NotRequired[bool]
    modes: dict[str, broker_status.PoolStatus]
    quarantined: NotRequired[int]
    takeovers: NotRequired[int]
    processes: dict[str, ProcessReport]
    silent: dict[str, str]
    """`supervisord` or `broker`, if it does not answer, and the reason."""


def report(run_dir: Path) -> Report:
    """Return the state of all processes and modes.

    Each process has `state`, `pid` and `uptime` in seconds, from supervisord. If the broker knows the process, it also
    has `slots`, `busy`, `waiting`, `silent_ms`, `crashes` within the last minute, and `broken`. If only one of
    supervisord and the broker answers, the report contains its part, and `silent` has the reason why the other part is
    missing.

    Raises:
        UnavailableError: Neither supervisord nor the broker answers.
    """
    processes: dict[str, ProcessReport] = {}
    silent: dict[str, str] = {}
    try:
        for info in supervisord.processes(run_dir):
            uptime = max(0, info["now"] - info["start"]) if info["pid"] else 0
            processes[info["name"]] = {"state": info["statename"], "pid": info["pid"], "uptime": uptime}
    except supervisord.FAULTS as fault:
        silent["supervisord"] = str(fault)  # not an error by itself: the processes may run without supervisord
    try:
        known = broker_status.status(run_dir)
    except UnavailableError as fault:
        if silent:
            hint = "start the daemon, or set AXON_RUN_DIR"
            raise UnavailableError(fault.error_type, f"{fault.message}: {hint}", retryable=True) from None
        silent["broker"] = fault.message
        return {"modes": {}, "processes": processes, "silent": silent}
    for worker in known["workers"]:
        process = processes.setdefault(worker["name"], {"state": None, "pid": worker["pid"]})
        # The broker may still list the previous process of a program that was just restarted.
        if process["pid"] == worker["pid"]:
            process.update(
                {
                    "mode": worker["mode"],
                    "slots": worker["slots"],
                    "busy": worker["busy"],
                    "waiting": worker.get("waiting", 0),  # an older broker does not report it
                    "silent_ms": worker["silent_ms"],
                    "crashes": worker["crashes"],
                    "broker_says": worker["state"],
                    "broken": worker.get("broken"),  # an older broker does not report it
                }
            )
    broker = {key: value for key, value in known.items() if key != "workers"}
    return cast("Report", {**broker, "processes": processes, "silent": silent})


def is_healthy(current: Report) -> bool:
    """Return whether the broker is ready for requests, no mode is degraded and all agents could be loaded."""
    is_ready = "broker" not in current["silent"] and not current.get("settling") and not current.get("draining")
    is_degraded = any(mode["degraded"] for mode in current["modes"].values())
    return is_ready and not is_degraded and not any(process.get("broken") for process in current["processes"].values())


def missing(current: Report) -> list[str]:
    """Return a phrase for each broker or worker that does not serve, with its state in supervisord."""
    broker = current["processes"].get("broker", {"state": "unknown"})
    silent = [f"the broker does not answer ({broker['state']})"] if "broker" in current["silent"] else []
    return silent + [
        f"{name} has not registered ({process['state']})"
        for name, process in sorted(current["processes"].items())
        if mode_of(name) and process.get("broker_says") != "ready"
    ]


def _runs(process: ProcessReport) -> str:
    if "busy" not in process or "slots" not in process:
        return "-"
    waiting = process.get("waiting", 0)
    return f"{process['busy']} of {process['slots']}" + (f", {waiting} waiting" if waiting else "")


def show(current: Report, out: Console) -> None:
    """Print the report as a table and sentences."""
    table = Table(box=None, pad_edge=False)
    for column in ("process", "supervisord", "broker", "pid", "uptime", "runs", "silent", "crashes"):
        table.add_column(column)
    for name, process in sorted(current["processes"].items()):
        table.add_row(
            name,
            process["state"] or "-",
            process.get("broker_says", "-"),
            str(process["pid"] or "-"),
            f"{process['uptime']} s" if "uptime" in process else "-",
            _runs(process),
            f"{process['silent_ms'] / 1000:.1f} s" if "silent_ms" in process else "-",
            str(process["crashes"]) if "crashes" in process else "-",
        )
    out.print(table)
    for mode, pool in current["modes"].items():
        state = f"degraded: {', '.join(pool['reasons'])}"
        if not pool["degraded"]:
            state = "ok" if pool["workers"] else "no workers"
        workers, slots = counted(pool["workers"], "worker"), counted(pool["free"], "free slot")
        out.print(
            f"{mode:<12}{workers}, {slots}, {pool['queued']} queued: {state}",
            style="bold red" if pool["degraded"] else None,
            markup=False,
        )
    for name, process in sorted(current["processes"].items()):
        if broken := process.get("broken"):
            out.print(f"{name} could not load {', '.join(broken)}; see its log", style="bold red", markup=False)
    for source, reason in current["silent"].items():
        out.print(f"{source} does not answer: {reason}", style="bold red", markup=False)
    if current.get("settling"):
        out.print("the broker is recovering: workers register, and some requests wait", style="yellow")
    if current.get("draining"):
        out.print("the daemon is draining: all workers are leaving", style="yellow")
    if quarantined := current.get("quarantined"):
        out.print(f"{counted(quarantined, 'request')} in quarantine", style="bold red")
    if takeovers := current.get("takeovers"):
        out.print(f"{counted(takeovers, 'takeover')} of routing ids; see the broker's log", style="yellow")
