"""`python -m fuzz`: run the harnesses, measure their coverage, or repeat one input."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Final

from fuzz.coverage_of import GOAL, measure, table

LONG: Final = 10_000_000
"""Inputs of a long run."""
SAMPLE: Final = 40_000
"""Inputs of the run that measures the coverage."""
MIN_PASSED: Final = 0.25
"""Lowest accepted share of the messages that pass the parser."""


def main() -> int:
    """Run the chosen command; return 1 if an input has broken an invariant."""
    parser = _parser()
    options = parser.parse_args()
    match options.command:
        case "atheris":
            from fuzz import guided  # instruments the package while it is imported, so nothing may import it before

            guided.run(options.harness, options.inputs, options.seed)
            return 0
        case "list":
            return _list()
        case "repeat":
            return _repeat(options.file)
        case "bounds":
            from fuzz import bounds

            return bounds.main(options.names)
        case "coverage":
            return _coverage(options.inputs, options.seed)
        case _:
            return _run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Fuzzes the parsers, the three cores and the bounds on JSON Schemas."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run generated inputs in several processes")
    run.add_argument("--inputs", type=int, default=LONG, help=f"how many inputs to run; default {LONG:,}")
    run.add_argument("--processes", type=int, help="default: one for each processor; 0: in this process")
    run.add_argument("--seed", type=int, default=1, help="seed of all choices; default 1")
    run.add_argument("--only", nargs="+", metavar="NAME", help="run only these harnesses; `list` shows their names")
    run.add_argument("--no-coverage", action="store_true", help="do not measure the branch coverage afterwards")
    guided = commands.add_parser("atheris", help="run one harness with atheris, guided by coverage")
    guided.add_argument("harness", help="name of the harness; `list` shows the names")
    guided.add_argument("--inputs", type=int, default=100_000, help="how many inputs to run; default 100,000")
    guided.add_argument("--seed", type=int, default=1, help="seed of libFuzzer; default 1")
    coverage = commands.add_parser("coverage", help="measure the branch coverage on a sample of inputs")
    coverage.add_argument("--inputs", type=int, default=SAMPLE, help=f"how many inputs to run; default {SAMPLE:,}")
    coverage.add_argument("--seed", type=int, default=1, help="seed of all choices; default 1")
    commands.add_parser("list", help="list the harnesses, their legal exceptions and their invariants")
    repeat = commands.add_parser("repeat", help="run one saved input again")
    repeat.add_argument("file", type=Path, help="a file in fuzz/findings, whose name begins with the harness")
    removed = commands.add_parser("bounds", help="remove each named bound, and check that a harness fails")
    removed.add_argument("names", nargs="*", help="names of bounds; default: all, and a run without a change")
    return parser


def _run(options: argparse.Namespace) -> int:
    from fuzz import engine
    from fuzz.harnesses import HARNESSES

    chosen = [HARNESSES[name] for name in options.only or HARNESSES]
    processes = engine.default_processes() if options.processes is None else options.processes
    began = time.monotonic()
    if processes:
        total = engine.long(chosen, seed=options.seed, inputs=options.inputs, processes=processes)
    else:
        total = engine.work(chosen, options.seed, options.inputs)
    print(engine.line(total, time.monotonic() - began))
    for finding in total.findings:
        print(f"FAIL {finding}")
    code = 1 if total.findings or total.share < MIN_PASSED else 0
    return code if options.no_coverage else _coverage(min(SAMPLE, options.inputs), options.seed) or code


def _coverage(inputs: int, seed: int) -> int:
    text, share = table(measure(inputs, seed))
    print(f"{text}, on a sample of {inputs:,} inputs")
    return 0 if share >= GOAL else 1


def _list() -> int:
    from fuzz.harnesses import HARNESSES

    for each in HARNESSES.values():
        print(f"{each.name}: {each.about}\n  legal exceptions: {each.legal}")
        print(*(f"  - {invariant}" for invariant in each.invariants), sep="\n")
    return 0


def _repeat(file: Path) -> int:
    from fuzz.harnesses import HARNESSES

    HARNESSES[file.name.partition("-")[0]](file.read_bytes())
    print(f"{file}: no invariant is broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
