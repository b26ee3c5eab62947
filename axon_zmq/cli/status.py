"""`axon-zmq status`: what supervisord and the broker know of each process, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, Required, TypedDict, cast

from rich.console import Console
from rich.table import Table

from axon_zmq.errors import UnavailableError
from axon_zmq.protocol.kinds import mode_of
from axon_zmq.supervise import broker_status, supervisord


class ProcessReport(TypedDict, total=False):
    """One process, as supervisord and the broker know it."""

    state: Required[str | None]
    """supervisord's; None if supervisord does not know the process."""
    pid: Required[int]
    uptime: int
    """Seconds."""
    mode: str
    slots: int
    busy: int
    silent_ms: int
    crashes: int
    broker_says: str
    """The broker's state of a worker."""
    broken: list[str] | None


class Report(TypedDict):
    """All processes and modes; what the broker reports is missing if it does not answer."""

    boot: NotRequired[str]
    settling: NotRequired[bool]
    draining: NotRequired[bool]
    modes: dict[str, broker_status.PoolStatus]
    quarantined: NotRequired[int]
    processes: dict[str, ProcessReport]
    silent: dict[str, str]


def report(run_dir: Path) -> Report:
    """Processes by name, and the modes.

    Each process has supervisord's `state`, `pid` and `uptime` in seconds. If the broker knows it, it also has `slots`,
    `busy`, `silent_ms`, `crashes` within the last minute and `broken`, the agents that it could not load (None: it is
    too old to say). If supervisord or the broker does not answer, the report has the part of the other one alone, and
    `silent` has the reason.

    Raises:
        UnavailableError: Neither answers.
    """
    processes: dict[str, ProcessReport] = {}
    silent: dict[str, str] = {}
    try:
        for info in supervisord.processes(run_dir):
            uptime = max(0, info["now"] - info["start"]) if info["pid"] else 0
            processes[info["name"]] = {"state": info["statename"], "pid": info["pid"], "uptime": uptime}
    except supervisord.FAULTS as fault:
        silent["supervisord"] = str(fault)  # or the processes were started without it
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
        if process["pid"] == worker["pid"]:
            process.update(
                {
                    "mode": worker["mode"],
                    "slots": worker["slots"],
                    "busy": worker["busy"],
                    "silent_ms": worker["silent_ms"],
                    "crashes": worker["crashes"],
                    "broker_says": worker["state"],
                    "broken": worker.get("broken"),  # an older broker does not report it
                }
            )
    broker = {key: value for key, value in known.items() if key != "workers"}
    return cast("Report", {**broker, "processes": processes, "silent": silent})


def is_well(found: Report) -> bool:
    """Whether a report's broker answers and takes requests, no mode is degraded and all agents could be loaded."""
    takes = "broker" not in found["silent"] and not found.get("settling") and not found.get("draining")
    is_degraded = any(mode["degraded"] for mode in found["modes"].values())
    return takes and not is_degraded and not any(process.get("broken") for process in found["processes"].values())


def missing(found: Report) -> list[str]:
    """Who of a report's broker and workers does not serve, with supervisord's word for each."""
    broker = found["processes"].get("broker", {"state": "unknown"})
    silent = [f"the broker does not answer ({broker['state']})"] if "broker" in found["silent"] else []
    return silent + [
        f"{name} has not registered ({process['state']})"
        for name, process in sorted(found["processes"].items())
        if mode_of(name) and process.get("broker_says") != "ready"
    ]


def show(found: Report, out: Console) -> None:
    """The report for a person."""
    table = Table(box=None, pad_edge=False)
    for column in ("process", "supervisord", "broker", "pid", "uptime", "runs", "silent", "crashes"):
        table.add_column(column)
    for name, process in sorted(found["processes"].items()):
        table.add_row(
            name,
            process["state"] or "-",
            process.get("broker_says", "-"),
            str(process["pid"] or "-"),
            f"{process['uptime']} s" if "uptime" in process else "-",
            f"{process['busy']} of {process['slots']}" if "busy" in process and "slots" in process else "-",
            f"{process['silent_ms'] / 1000:.1f} s" if "silent_ms" in process else "-",
            str(process["crashes"]) if "crashes" in process else "-",
        )
    out.print(table)
    for mode, pool in found["modes"].items():
        state = f"degraded: {', '.join(pool['reasons'])}"
        if not pool["degraded"]:
            state = "well" if pool["workers"] else "no workers"
        told = f"{pool['workers']} workers, {pool['free']} free slots, {pool['queued']} queued: {state}"
        out.print(f"{mode:<12}{told}", style="bold red" if pool["degraded"] else None, markup=False)
    for name, process in sorted(found["processes"].items()):
        if broken := process.get("broken"):
            out.print(f"{name} could not load {', '.join(broken)}: see its log", style="bold red", markup=False)
    for who, why in found["silent"].items():
        out.print(f"{who} does not answer: {why}", style="bold red", markup=False)
    if quarantined := found.get("quarantined"):
        out.print(f"{quarantined} requests are quarantined", style="bold red")
