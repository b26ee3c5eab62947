"""`python -m bench` measures and prints the table and then one line of JSON; see `docs/performance.md`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace

from bench import isolation, measure, memory, pressure, processes, relay, report, runs, starting, transport, widening

GROUPS: dict[str, measure.Group] = {
    "relay": relay.group,
    "transport": transport.group,
    "agents": runs.group,
    "pressure": pressure.group,
    "isolation": isolation.group,
    "memory": memory.group,
    "starting": starting.group,
    "widening": widening.group,
}
MAX_DURATION_S = 7200
"""Seconds after which the benchmark is aborted; it usually takes about 40 minutes."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure the cost of the daemon, compared with the same work done without it."
    )
    parser.add_argument("--quick", action="store_true", help="take a few seconds: only check that the benchmark works")
    parser.add_argument("--rounds", type=int, help="number of rounds, at least 3")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="measure only these groups")
    parser.add_argument(
        "--requests", type=int, help="number of requests over which the growth of the broker's memory is measured"
    )
    parser.add_argument("--write", action="store_true", help="write the table and the chart into docs/performance.md")
    options = parser.parse_args()
    if options.write and (options.quick or len(options.only) < len(GROUPS)):
        parser.error("--write needs the figures of a complete run: remove --quick and --only")
    if options.requests and "memory" not in options.only:
        parser.error("--requests applies to the group memory: add it to --only")
    return options


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure all selected groups within a time limit; only 127.0.0.1 is used."""
    options = _arguments()
    processes.bound(MAX_DURATION_S)
    plan = measure.QUICK if options.quick else measure.FULL
    if options.requests:
        plan = replace(plan, memory_requests=options.requests)
    rounds = plan.rounds if options.quick else max(3, options.rounds or plan.rounds)
    where = report.machine()
    rows = measure.run([GROUPS[name] for name in options.only], plan, rounds, _log)
    print(report.as_text(rows))
    print(json.dumps(report.as_json(rows, where, rounds), ensure_ascii=False))
    if options.write:
        report.write(report.as_markdown(rows, where, rounds))
        report.draw(widening.curves(rows, plan))


if __name__ == "__main__":
    main()
