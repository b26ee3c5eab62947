"""The table of features: each cited test exists, and each feature of `pong` has a row."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from axon_zmq.broker.core.broker import FEATURES
from tests.support import ROOT
from tests.support.cited import is_there

PAGE = ROOT / "docs/features.md"
HEAD = ["capability", "axon_zmq", "test", "AG-UI", "Vercel AI", "A2A", "FastAPI + WebSocket"]
OURS = re.compile(r"yes|(partly|not yet): \S.*|not yet")
OTHERS = re.compile(r"(yes|no|partly|by hand)(: \S.*)?|[\N{EN DASH}?]")
NOTE = re.compile(r"\[([a-z]\d+)\]\(#(\w+)\)")
CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Row:
    """A capability: the support in axon_zmq, the cited tests (`file::name`), and the support in other projects."""

    capability: str
    ours: str
    tests: str
    others: tuple[str, ...]

    @property
    def cited(self) -> list[str]:
        return CODE.findall(self.tests)


def rows(page: str) -> list[Row]:
    """The rows of every table on the page."""
    lines = [line for line in page.splitlines() if line.startswith("|") and not line.startswith("|---")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == len(HEAD) for row in cells), [row for row in cells if len(row) != len(HEAD)]
    return [Row(row[0], row[1], row[2], tuple(row[3:])) for row in cells if row != HEAD]


def faults(page: str) -> list[str]:
    """Incorrect statements of the page."""
    found = [fault for row in rows(page) for fault in [*_wrong_words(row), *_wrong_tests(row)]]
    named = {name for row in rows(page) for name in CODE.findall(row.capability) if not row.ours.startswith("not yet")}
    found += [f"no row names the feature {name}" for name in FEATURES if name not in named]
    return found + _wrong_notes(page)


def _wrong_words(row: Row) -> list[str]:
    said = [(OURS, row.ours), *((OTHERS, NOTE.sub("", cell).strip()) for cell in row.others)]
    return [f"{row.capability}: invalid answer {text!r}" for answers, text in said if not answers.fullmatch(text)]


def _wrong_tests(row: Row) -> list[str]:
    if row.ours.startswith("not yet"):
        return [f"{row.capability}: a test is cited for a missing capability"] if row.cited else []
    if not row.cited:
        return [f"{row.capability}: no test"]
    return [f"{row.capability}: {test} does not exist" for test in row.cited if not is_there(test)]


def _wrong_notes(page: str) -> list[str]:
    made = re.findall(r'<a id="(\w+)"></a>\*\*(\w+)\*\*', page)
    used = NOTE.findall(page)
    wrong = [f"note {shown} leads to {anchor}" for shown, anchor in used if shown != anchor]
    wrong += [f"note {shown} is at {anchor}" for anchor, shown in made if shown != anchor]
    wrong += [f"note {name} is missing" for name in sorted({a for _, a in used} - {a for a, _ in made})]
    return wrong + [f"note {name} is not used" for name in sorted({a for a, _ in made} - {a for _, a in used})]


def test_the_table_of_features_is_correct():
    page = PAGE.read_text(encoding="utf-8")
    assert len(rows(page)) > 50
    assert faults(page) == []


HERE = "`test_features.py::test_the_table_of_features_is_correct`"
ALL = " ".join(f"`{name}`" for name in FEATURES)


def page_with(*cells: str, rest: str = "") -> str:
    """A correct page, except for one row and the text after the table."""
    right = ["x", "yes", HERE, "no", "no", "no", "no"]
    given = [*cells, *right[len(cells) :]]
    lines = [HEAD, ["---"] * len(HEAD), [ALL, *right[1:]], given]
    return "\n".join("|" + "|".join(line) + "|" for line in lines) + "\n" + rest


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        (page_with("gone", "yes", "`test_features.py::test_gone`"), "gone: test_features.py::test_gone does not exist"),
        (page_with("file", "yes", "`test_gone.py::test_x`"), "file: test_gone.py::test_x does not exist"),
        (page_with("helper", "yes", "`test_features.py::rows`"), "helper: test_features.py::rows does not exist"),
        (page_with("bare", "yes", "-"), "bare: no test"),
        (page_with("half", "partly: some", "-"), "half: no test"),
        (page_with("late", "not yet", HERE), "late: a test is cited for a missing capability"),
        (page_with("odd", "mostly"), "odd: invalid answer 'mostly'"),
        (page_with("vague", "partly"), "vague: invalid answer 'partly'"),
        (page_with("silent", "yes", HERE, ""), "silent: invalid answer ''"),
        (page_with("x", "yes", HERE, "no [g1](#g1)"), "note g1 is missing"),
        (page_with(rest='<a id="g1"></a>**g1** x'), "note g1 is not used"),
        (page_with("x", "yes", HERE, "no [g2](#g1)", rest='<a id="g1"></a>**g1** x'), "note g2 leads to g1"),
        (page_with().replace("`steer`", ""), "no row names the feature steer"),
        (page_with().replace("|yes|", "|not yet|", 1).replace(HERE, "-", 1), "no row names the feature steer"),
    ],
)
def test_an_incorrect_table_of_features_is_reported(page: str, fault: str):
    assert faults(page_with("x", "not yet: later", "-")) == []
    assert fault in faults(page)
