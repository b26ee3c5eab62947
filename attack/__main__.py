"""`python -m attack`: attack a daemon on this machine under honest load, and print what the attacks achieved."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from attack import connections, requests
from attack.scene import HEAD, Row, Scene, Stage
from attack.target import ROOT
from bench.processes import bound
from bench.report import machine

SCENES: Final = (*connections.SCENES, *requests.SCENES)
MAX_DURATION_S: Final = 3600
"""Limit on the duration of all scenes; then the process ends its daemon and itself."""


def play(scene: Scene, checkout: Path, quick: bool) -> Row:
    """Carry out one attack. An exception counts as an attack that has achieved something."""
    row = Row(scene.name)
    try:
        scene.play(Stage(row, checkout, quick))
    except Exception as fault:
        row.broken.append(f"{type(fault).__name__}: {str(fault)[:300]}")
    return row


def heading(where: dict[str, str]) -> str:
    """Return the first lines of the Markdown table."""
    versions = ", ".join(f"{name} {where[name]}" for name in ("python", "pyzmq", "libzmq"))
    return f"{where['date']}, {where['machine']}; {versions}.\n\n{line(HEAD)}\n{line(('---',) * len(HEAD))}"


def line(cells: tuple[str, ...]) -> str:
    """Return one line of the Markdown table."""
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def main() -> int:
    """Carry out the chosen attacks; return 1 if one of them has achieved what it must not."""
    parser = argparse.ArgumentParser(
        prog="scripts/attack",
        description="Attacks a daemon that it starts on 127.0.0.1, while honest clients use it. Every attack is "
        "bounded in number, bytes and time. A process of the daemon that exceeds 1.5 GiB is killed, which counts as a "
        "crash.",
    )
    parser.add_argument("--quick", action="store_true", help="only a few scenes with small numbers, for CI")
    parser.add_argument("--small", action="store_true", help="all scenes, with the small numbers of --quick")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these scenes; --list shows their names")
    parser.add_argument("--list", action="store_true", help="list the scenes and exit")
    parser.add_argument(
        "--checkout", type=Path, default=ROOT, metavar="DIR", help="attack the daemon of another checkout"
    )
    options = parser.parse_args()
    if unknown := set(options.only or ()) - {each.name for each in SCENES}:
        parser.error(f"unknown scene {min(unknown)!r}; --list shows the names")
    if not (options.checkout / "axon_zmq/broker/__main__.py").is_file():
        parser.error(f"no checkout of axon_zmq in {str(options.checkout)!r}")
    chosen = [
        each for each in SCENES if (each.name in options.only if options.only else each.is_quick or not options.quick)
    ]
    if options.list:
        print(*(f"{each.name:<16}{each.about}" for each in chosen), sep="\n")
        return 0
    bound(MAX_DURATION_S)
    print(heading(machine() | {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}))
    broken = 0
    for scene in chosen:
        began = time.monotonic()
        row = play(scene, options.checkout.resolve(), options.quick or options.small)
        broken += bool(row.broken)
        # Each row is printed at once, so that an interrupted run has the rows so far.
        print(line(row.cells()), flush=True)
        print(f"{scene.name}: {row.cells()[-1]} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
