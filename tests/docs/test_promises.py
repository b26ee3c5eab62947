"""The page of promises: each cited test and each cited chaos scene exists."""

from __future__ import annotations

import re

from chaos.__main__ import SHORT_SOAK, scenarios
from tests.support import ROOT
from tests.support.cited import is_there

PAGE = ROOT / "docs/promises.md"
CODE = re.compile(r"`([^`]+)`")


def promises(page: str) -> list[tuple[str, list[str], list[str]]]:
    """Each promise, its tests, and its rows of `scripts/chaos`."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| promise ")]
    cells = [line.strip("|").split("|") for line in lines]
    return [(promise, CODE.findall(tests), CODE.findall(rows)) for promise, tests, rows in cells]


def faults(page: str) -> list[str]:
    """Incorrect statements of the page."""
    played = {scenario.name for scenario in scenarios(SHORT_SOAK)}
    said = promises(page)
    found = [f"no test: {promise}" for promise, tests, _ in said if not tests]
    found += [f"{test} does not exist" for _, tests, _ in said for test in tests if not is_there(test)]
    found += [f"row {row} does not exist" for _, _, rows in said for row in rows if row not in played]
    cited = {row for _, _, rows in said for row in rows}
    return found + [f"no promise cites the row {row}" for row in sorted(played - cited)]


def test_each_promise_has_a_test_and_each_chaos_scene_a_promise():
    page = PAGE.read_text(encoding="utf-8")
    assert len(promises(page)) > 25
    assert faults(page) == []


def test_a_promise_without_a_test_is_reported():
    page = PAGE.read_text(encoding="utf-8")
    assert "test_simulation.py::test_gone does not exist" in faults(page.replace("TestWorld", "test_gone"))
    assert "row naught does not exist" in faults(page.replace("`soak`", "`naught`"))
    assert "no promise cites the row soak" in faults(page.replace("`soak`", ""))
    assert "no test:  It is so. " in faults(f"{page}\n| It is so. | - | - |\n")
