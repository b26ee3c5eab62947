"""The page about life cycles shows the transition tables of the code."""

from __future__ import annotations

import re
from textwrap import dedent

import pytest

from axon_zmq.worker.core import worker as core
from tests.support import pictures, snippets


@pytest.mark.parametrize("name", pictures.TABLES)
def test_the_diagrams_are_drawn_from_the_tables(name):
    assert pictures.drawn_from(name) == pictures.source(name), "run python -m tests.support.pictures"
    assert f"states/{name}.svg" in (pictures.FOLDER.parent / "states.md").read_text()


def test_the_page_shows_the_phases_of_a_leaving_worker_from_the_docstring():
    page = (pictures.FOLDER.parent / "states.md").read_text()
    *_, shown = (block.code for block in snippets.blocks(pictures.FOLDER.parent / "states.md"))
    assert core.__doc__ is not None
    assert dedent(shown) in dedent(core.__doc__.replace("\n    ", "\n"))
    assert {phase.name for phase in core.Phase} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert f"{core.LONGEST_END_GRACE_S + 2 * core.END_GRACE_S:.1f} s" in page
