"""Fuzzing: the harnesses detect each removed bound, and the long run covers the parsers and cores."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from fuzz.__main__ import main
from fuzz.bounds import BOUNDS
from fuzz.coverage_of import GOAL, measure, table
from tests.support import ROOT

NAMES = [bound.name for bound in BOUNDS]


def fuzz(*arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fuzz", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    print(done.stdout, done.stderr)
    return done


@pytest.mark.parametrize("names", [NAMES[part::2] for part in range(2)], ids=range(2))
def test_a_harness_fails_without_each_named_bound(names: Sequence[str]):
    done = fuzz("bounds", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == len(names)


def test_at_least_five_bounds_are_named():
    assert len({bound.name for bound in BOUNDS}) == len(BOUNDS) >= 5


def test_a_run_in_several_processes_reports_its_totals():
    done = fuzz("run", "--inputs", "600", "--processes", "2", "--no-coverage")
    assert done.returncode == 0
    assert done.stdout.startswith("600 inputs, ")
    assert "0 failures" in done.stdout


def test_the_harnesses_state_their_legal_exceptions_and_invariants(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["fuzz", "list"])
    assert main() == 0
    assert capsys.readouterr().out.count("legal exceptions:") == 5


@pytest.mark.long
def test_all_harnesses_pass_in_a_copy_with_all_bounds():
    # tests/unit/fuzz runs the same inputs against the package itself.
    assert fuzz("bounds", "none").returncode == 0


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_long_run_breaks_no_invariant_and_covers_the_parsers_and_cores():
    done = fuzz("run", "--inputs", "500000", timeout=7000)
    assert done.returncode == 0, done.stdout


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_branch_coverage_reaches_its_goal():
    text, share = table(measure(40_000, seed=2))
    assert share >= GOAL, text
