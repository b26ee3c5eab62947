"""`python -m chaos`: cause each fault in a real daemon, and print the promise next to the measurement."""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from functools import partial

from bench import processes
from bench.report import machine, write
from chaos import brokers, clients, operators, workers
from chaos.promises import Report, Scenario

PAGE = processes.ROOT / "docs" / "chaos.md"
BEGIN, END = "<!-- chaos: written by scripts/chaos --write -->", "<!-- chaos: end -->"
SHORT_SOAK, SOAK = 10.0, 600.0
"""Seconds of the steady load in the short and in the full form."""
MAX_DURATION_S = 7200
"""Limit on the duration of all scenarios without the steady load; then the process is killed."""
HEAD = ("fault", "promise", "done", "measured", "")


def scenarios(soak: float) -> list[Scenario]:
    """Return all scenarios in the order of the table."""
    steady = Scenario(
        "soak", "steady load", "memory and file descriptors do not grow", partial(operators.soak, seconds=soak)
    )
    every = (*workers.SCENARIOS, *brokers.SCENARIOS, *clients.SCENARIOS, *operators.SCENARIOS)
    return [*every, steady]


def play(scenario: Scenario, short: bool) -> Report:
    """Run one scenario. An exception counts as a broken promise."""
    report = Report(short)
    try:
        scenario.play(report)
    except Exception as fault:
        report.broken.append(f"{type(fault).__name__}: {fault}")
    return report


def _cells(scenario: Scenario, report: Report) -> tuple[str, ...]:
    verdict = "held" if not report.broken else f"BROKEN: {'; '.join(report.broken[:3])}"
    return scenario.fault, scenario.promise, report.done, "; ".join(report.figures), verdict


def _markdown(rows: list[tuple[str, ...]], where: dict[str, str]) -> str:
    versions = ", ".join(f"{name} {where[name]}" for name in ("python", "pydantic-ai-slim", "pyzmq", "libzmq"))
    table = [HEAD, ("---",) * len(HEAD), *rows]
    lines = [f"{where['date']}, {where['machine']}, {where['system']}; {versions}.", ""]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in table)])


def main() -> int:
    """Run the chosen scenarios, on 127.0.0.1 only and within a time limit; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description="Causes faults in a real daemon and checks its promises."
    )
    parser.add_argument("--short", action="store_true", help="use fewer repetitions, for CI: three minutes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run only these scenarios; --list shows their names")
    parser.add_argument("--list", action="store_true", help="list the scenarios and exit")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="duration of the steady load; 86400 is a day")
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each scenario instead of the table"
    )
    parser.add_argument("--write", action="store_true", help="write the table into docs/chaos.md")
    options = parser.parse_args()
    soak = options.soak or (SHORT_SOAK if options.short else SOAK)
    chosen = [each for each in scenarios(soak) if not options.only or each.name in options.only]
    if options.list:
        print(*(f"{each.name:<14}{each.fault}: {each.promise}" for each in chosen), sep="\n")
        return 0
    if unknown := set(options.only or ()) - {each.name for each in chosen}:
        parser.error(f"unknown scenario {min(unknown)!r}; --list shows the names")
    processes.bound(int(MAX_DURATION_S + soak))
    where = machine() | {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    rows: list[tuple[str, ...]] = []
    broken = 0
    for scenario in chosen:
        began = time.monotonic()
        report = play(scenario, options.short)
        broken += bool(report.broken)
        rows.append(_cells(scenario, report))
        if options.json:
            print(json.dumps({"row": scenario.name, "seconds": round(time.monotonic() - began, 1), **vars(report)}))
        print(f"{scenario.name}: {rows[-1][-1]} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    if not options.json:
        print(_markdown(rows, where))
    if options.write:
        write(_markdown(rows, where), PAGE, (BEGIN, END))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
