"""The chaos suite: faults in real processes, checked against the promises of `docs/promises.md`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from chaos.__main__ import BEGIN, END, PAGE, SHORT_SOAK, scenarios
from chaos.promises import Report
from tests.support import ROOT

NAMES = [scenario.name for scenario in scenarios(SHORT_SOAK)]


@pytest.mark.parametrize("name", NAMES)
def test_each_chaos_scene_holds_its_promise(name):
    command = [sys.executable, "-m", "chaos", "--short", "--only", name]
    played = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    print(played.stdout)
    assert played.returncode == 0, played.stdout + played.stderr


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_each_long_chaos_scene_holds_its_promise(name):
    played = subprocess.run([sys.executable, "-m", "chaos", "--only", name], cwd=ROOT, capture_output=True, text=True)
    print(played.stdout)
    assert played.returncode == 0, played.stdout + played.stderr


def test_a_broken_promise_is_detected_and_a_busy_machine_excuses_only_durations():
    short, long = Report(short=True), Report(short=False)
    for report in (short, long):
        report.within("this", [0.1, 0.3], 0.2)
    assert short.broken == []
    assert "slow machine" in short.figures[-1]
    assert long.broken == ["this: 1 of 2 took longer than 200 ms"]
    short.within("that", [2.1], 0.2)
    short.expect(False, "a chunk was lost")
    assert len(short.broken) == 2


def test_the_chaos_page_has_the_table_of_a_long_run():
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(NAMES)
    assert all(line.endswith("| held |") for line in rows[2:]), rows
