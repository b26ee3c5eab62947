"""The results as a table for a terminal and for `docs/performance.md`, and as JSON."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import zmq

from bench import chart
from bench.chart import Curves
from bench.measure import OURS, Row
from bench.peers.start import PACKAGES, absent, installed
from bench.processes import ROOT

PAGE = ROOT / "docs" / "performance.md"
CHART = PAGE.with_name("growth.svg")
HEAD = ("", OURS, "compared with", "ratio")
NO_FIGURE = "-"
"""Text of a cell without a figure."""
BEGIN, END = "<!-- bench: written by scripts/bench --write -->", "<!-- bench: end -->"


def machine() -> dict[str, str]:
    """The machine and the versions with which the benchmark ran."""
    packages = [
        "axon-zmq",
        "pydantic-ai-slim",
        "pyzmq",
        "msgpack",
        *filter(installed, chain.from_iterable(PACKAGES.values())),
    ]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "machine": f"{os.cpu_count()} cores of {_processor()}",
        "system": f"Linux {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "libzmq": zmq.zmq_version(),
        **{f"without {name}": f"({why})" for name, why in absent().items()},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def as_json(rows: Sequence[Row], where: dict[str, str], rounds: int) -> dict[str, Any]:
    """The results for programs."""
    return {"where": where, "rounds": rounds, "rows": [asdict(row) for row in rows]}


def as_markdown(rows: Sequence[Row], where: dict[str, str], rounds: int) -> str:
    """The Markdown table, preceded by the machine, the versions and the number of rounds."""
    versions = ", ".join(
        f"{name} {value}" for name, value in where.items() if name not in ("date", "machine", "system")
    )
    lines = [
        f"{where['date']}, {where['machine']}, {where['system']}; {versions}.",
        f"Medians of {rounds} rounds (lowest to highest).",
        "",
        *(
            f"| {' | '.join(cells)} |"
            for cells in (HEAD, ("---",) * len(HEAD), *chain.from_iterable(map(_cells, rows)))
        ),
    ]
    return "\n".join(lines)


def as_text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    table = [HEAD, *chain.from_iterable(map(_cells, rows))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(_line(cells, widths) for cells in table)


def _cells(row: Row) -> Iterator[tuple[str, ...]]:
    """One line for each other side; our figure is in the first line only."""
    ours = row.title, row.ours.show(row.unit)
    for other in row.others:
        yield *ours, f"{other.name} {other.figure.show(row.unit)}", other.ratio.show()
        ours = "", ""
    if not row.others:
        yield *ours, NO_FIGURE, NO_FIGURE


def _line(cells: Iterable[str], widths: Iterable[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def write(markdown: str, page: Path = PAGE, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Replace the table between two markers in a page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(markers[0])
    _old, end, after = rest.partition(markers[1])
    if not (begin and end):
        sys.exit(f"{page} lacks the markers {markers[0]!r} and {markers[1]!r}")
    page.write_text(f"{before}{begin}\n\n{markdown}\n\n{end}{after}", encoding="utf-8")


def draw(curves: Curves, picture: Path = CHART) -> None:
    """Draw the chart of the relay's cost next to the page."""
    picture.write_text(chart.svg("open streams, or workers", "µs of the broker's CPU time for a chunk", curves))
