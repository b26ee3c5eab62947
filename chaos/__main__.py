"""`python -m chaos`: put each fault upon a daemon, and print what is promised beside what was measured."""

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
"""Seconds of the steady load."""
MAX_DURATION_S = 7200
"""Seconds after which everything but a longer soak is given up."""
HEAD = ("fault", "promise", "done", "measured", "")


def scenarios(soak: float) -> list[Scenario]:
    """All of them, in the order of the table."""
    steady = Scenario("soak", "steady load", "memory and descriptors are flat", partial(operators.soak, seconds=soak))
    every = (*workers.SCENARIOS, *brokers.SCENARIOS, *clients.SCENARIOS, *operators.SCENARIOS)
    return [*every, steady]


def play(scenario: Scenario, short: bool) -> Report:
    """Put one fault upon a daemon; what it raises is a broken promise too."""
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
    told = ", ".join(f"{name} {where[name]}" for name in ("python", "pydantic-ai-slim", "pyzmq", "libzmq"))
    table = [HEAD, ("---",) * len(HEAD), *rows]
    lines = [f"{where['date']}, {where['machine']}, {where['system']}; {told}.", ""]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in table)])


def main() -> int:
    """Play the scenarios, in bounded time and on 127.0.0.1 alone; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Faults, promises, and what was measured.")
    parser.add_argument("--short", action="store_true", help="fewer of each, for CI: three minutes")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="just these; --list names them")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="of the steady load; 86400 is a day")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each row, in place of the table")
    parser.add_argument("--write", action="store_true", help="put the table into docs/chaos.md")
    options = parser.parse_args()
    soak = options.soak or (SHORT_SOAK if options.short else SOAK)
    chosen = [each for each in scenarios(soak) if not options.only or each.name in options.only]
    if options.list:
        print(*(f"{each.name:<14}{each.fault}: {each.promise}" for each in chosen), sep="\n")
        return 0
    if unknown := set(options.only or ()) - {each.name for each in chosen}:
        parser.error(f"no row is called {min(unknown)!r}")
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
