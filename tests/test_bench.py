"""The benchmark works, and its figures have a place in the docs; how fast anything is, is not tested."""

from __future__ import annotations

import json
import subprocess
import sys

from bench import growth, report
from bench.measure import Row
from bench.numbers import Figure, percentiles
from tests.conftest import ROOT


def test_a_quick_run_measures_everything_and_prints_a_table_and_json():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    rows = {row["title"]: row for row in result["rows"]}
    assert len(table) == 1 + len(rows)
    for title in (
        "relayed chunk, 1 stream at full speed: broker",
        "agent's chunk, 1 stream: server",
        "`run` on `echo`, 2 at a time: server",
        "`run` on `echo`, one at a time, back to back: p50",
        "`run` on `echo`, one at a time, back to back: p99",
        "tool call in a `run`: p50",
    ):
        row = rows[title]
        for side in ("ours", "other", "ratio"):
            assert 0 < row[side]["low"] <= row[side]["median"] <= row[side]["high"], row
    assert result["rounds"] == 1


def test_the_page_has_a_place_for_the_table(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(report.PAGE.read_text())
    figure = Figure.of([1.0, 2.0, 12.345])
    rows = [Row("what", "ms", "bare", figure, figure, figure), Row("alone", "ms", "", figure, None, None)]
    for _ in range(2):  # again in place of what it wrote
        report.write(report.as_markdown(rows, report.machine(), 3), page)
    text = page.read_text()
    assert text.count("| what | 2.00 ms (1.00 to 12.3) | bare 2.00 ms (1.00 to 12.3) | 2.00 (1.00 to 12.3) |") == 1
    assert text.count("| alone | 2.00 ms (1.00 to 12.3) | - | - |") == 1
    before, after = (report.PAGE.read_text().split(marker) for marker in (report.BEGIN, report.END))
    assert text.startswith(before[0] + report.BEGIN)
    assert text.endswith(report.END + after[1])


def test_percentiles_are_values_that_were_measured():
    assert percentiles([float(value) for value in range(100, 0, -1)]) == {"p50": 50.0, "p99": 99.0}
    assert percentiles([7.0]) == {"p50": 7.0, "p99": 7.0}


def test_the_growth_of_the_core_is_measured_for_each_row_and_the_page_has_the_table():
    made = growth.table(growth.QUICK, lambda _: None)
    lines = made.splitlines()
    assert len(lines) == 2 + len(growth.ROWS)
    assert all(len(line.split("|")) == 2 + 1 + len(growth.QUICK) for line in lines[2:])
    page = growth.PAGE.read_text(encoding="utf-8").split(growth.BEGIN)[1].split(growth.END)[0]
    assert all(title in page for _, title in growth.ROWS)
