"""`python -m bench`: measure, print the table and then one line of JSON; see `docs/performance.md`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace

from bench import isolation, measure, memory, pressure, processes, relay, report, runs, starting, transport, widening

ROOMS: dict[str, measure.Room] = {
    "relay": relay.room,
    "transport": transport.room,
    "agents": runs.room,
    "pressure": pressure.room,
    "isolation": isolation.room,
    "memory": memory.room,
    "starting": starting.room,
    "widening": widening.room,
}
MAX_DURATION_S = 7200
"""Seconds after which a run is given up; about 40 minutes are usual."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="What the daemon costs, beside the same without."
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds: that it works, not how fast")
    parser.add_argument("--rounds", type=int, help="how many rounds, at least 3")
    parser.add_argument("--only", nargs="+", choices=ROOMS, default=list(ROOMS), help="measure only these")
    parser.add_argument("--requests", type=int, help="so many, over which the broker's memory shall not grow")
    parser.add_argument("--write", action="store_true", help="put the table and the chart into docs/performance.md")
    options = parser.parse_args()
    if options.write and (options.quick or len(options.only) < len(ROOMS)):
        parser.error("the page has the figures of a whole run: --write goes with neither --quick nor --only")
    if options.requests and "memory" not in options.only:
        parser.error("--requests is of the room memory")
    return options


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure everything, in bounded time; only 127.0.0.1 is used."""
    options = _arguments()
    processes.bound(MAX_DURATION_S)
    plan = measure.QUICK if options.quick else measure.FULL
    if options.requests:
        plan = replace(plan, lasting=options.requests)
    rounds = plan.rounds if options.quick else max(3, options.rounds or plan.rounds)
    where = report.machine()
    rows = measure.run([ROOMS[name] for name in options.only], plan, rounds, _say)
    print(report.as_text(rows))
    print(json.dumps(report.as_json(rows, where, rounds), ensure_ascii=False))
    if options.write:
        report.write(report.as_markdown(rows, where, rounds))
        report.draw(widening.curves(rows, plan))


if __name__ == "__main__":
    main()
