"""The pictures of the life cycles, drawn from the tables in `broker/core/states.py`.

`python -m tests.support.pictures` draws them into `docs/states/`, with Graphviz' `dot`. Each picture contains the
source from which it was drawn, so that a test can tell without `dot` whether the tables have changed since.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from enum import Enum
from typing import Any

from axon_zmq.broker.core import states
from tests.support import ROOT

FOLDER = ROOT / "docs/states"
TABLES: Mapping[str, Mapping[tuple[Any, Any], Enum]] = {
    "run": states.RUN,
    "worker": states.WORKER,
    "client": states.CLIENT,
}
_SOURCE = re.compile(r"<!-- source\n(.*?)-->", re.DOTALL)


def source(name: str) -> str:
    """The source for `dot`: an edge for each pair of states, labelled with its events."""
    table = TABLES[name]
    edges: dict[tuple[str, str], list[str]] = {}
    for (state, event), then in table.items():
        edges.setdefault((state.value, then.value), []).append(event.value)
    first = next(iter(table))[0].value
    ends = {then.value for then in table.values()} - {state.value for state, _ in table}
    lines = [
        f"digraph {name} {{",
        "  rankdir=LR bgcolor=transparent",
        '  node [fontname="sans-serif"] edge [fontname="sans-serif"]',
        '  node [shape=box style="rounded,filled" fillcolor="#eef2ff" color="#526cfe" fontsize=12]',
        '  edge [color="#888888" fontcolor="#666666" fontsize=10]',
        f'  "{first}" [penwidth=2]',
        *(f'  "{end}" [peripheries=2]' for end in sorted(ends)),
        *(f'  "{a}" -> "{b}" [label="{", ".join(events)}"]' for (a, b), events in edges.items()),
        "}",
    ]
    return "\n".join(lines) + "\n"


def drawn_from(name: str) -> str:
    """The source that the picture in the docs was drawn from."""
    found = _SOURCE.search((FOLDER / f"{name}.svg").read_text(encoding="utf-8"))
    return "" if found is None else found[1].replace("- >", "->")


def main() -> None:
    """Draw all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name in TABLES:
        text = source(name)
        drawn = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True, check=True).stdout
        svg = re.sub(r"<!--.*?-->\n?", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
        comment = text.replace("->", "- >")  # a comment must not contain its own end
        (FOLDER / f"{name}.svg").write_text(f"<!-- source\n{comment}-->\n{svg}", encoding="utf-8")


if __name__ == "__main__":
    main()
