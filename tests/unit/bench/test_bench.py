"""The benchmark's figures and pages."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from xml.etree import ElementTree

import pytest

from axon_zmq.process import gc
from bench import agents, bare, growth, measure, report, widening
from bench.clients import Reply
from bench.measure import Comparison, Other, Row
from bench.numbers import Figure, percentiles
from bench.peers import service, start
from bench.peers.start import GRPC, NATS, PROXY


def test_the_order_of_the_sides_alternates_and_ratios_compare_one_round():
    called = []

    def side(name, *figures):
        left = iter(figures)

        def measure():
            called.append(name)
            return {"server": next(left)}

        return measure

    comparison = Comparison("what", "ms", side("ours", 2.0, 8.0), {"a": side("a", 1.0, 2.0), "b": side("b", 4.0, 4.0)})
    rows = measure.run([lambda _plan: nullcontext([comparison])], measure.QUICK, 2, lambda _: None)
    assert called == ["ours", "a", "b", "b", "a", "ours"]
    [row] = rows
    assert [(other.name, other.ratio.low, other.ratio.high) for other in row.others] == [("a", 2, 4), ("b", 0.5, 2)]


def test_an_unavailable_peer_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(start.shutil, "which", lambda _: None)
    monkeypatch.setattr(start, "installed", lambda package: package != "grpcio")
    start.absent.cache_clear()
    try:
        where = report.machine()
        with start.started(names=(GRPC, NATS, PROXY)) as services:
            assert services == []
    finally:
        start.absent.cache_clear()
    assert {key for key in where if key.startswith("without")} == {f"without {name}" for name in (GRPC, NATS, PROXY)}
    assert "apt-get install nats-server" in where[f"without {NATS}"]


def test_the_delay_of_each_delta_is_measured():
    came = Reply(sent=10.0, pieces=[(10.0, "0000 "), (10.5, "0001 0002 ")])  # merged: each counts
    assert came.delays(0.1) == pytest.approx([0.0, 0.4, 0.3])


def test_the_table_is_written_into_its_place_on_the_page(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(report.PAGE.read_text())
    figure = Figure.of([1.0, 2.0, 12.345])
    others = [Other("bare", figure, figure), Other("peer", figure, figure)]
    rows = [Row("what", "ms", figure, others), Row("alone", "ms", figure, [])]
    for _ in range(2):  # again in place of what it wrote
        report.write(report.as_markdown(rows, report.machine(), 3), page)
    text = page.read_text()
    assert text.count("| what | 2.00 ms (1.00 to 12.3) | bare 2.00 ms (1.00 to 12.3) | 2.00 (1.00 to 12.3) |") == 1
    assert text.count("|  |  | peer 2.00 ms (1.00 to 12.3) | 2.00 (1.00 to 12.3) |") == 1
    assert text.count("| alone | 2.00 ms (1.00 to 12.3) | - | - |") == 1
    before, after = (report.PAGE.read_text().split(marker) for marker in (report.BEGIN, report.END))
    assert text.startswith(before[0] + report.BEGIN)
    assert text.endswith(report.END + after[1])


def test_the_chart_has_a_line_for_growth_and_a_point_for_each_value(tmp_path):
    plan, of = measure.QUICK, Figure(10.0, 9.0, 17.0)
    rows = [
        Row(f"{widening.title(what, most)}: broker", "µs CPU", of, [Other("1", of, of)])
        for what, most in ((widening.STREAMS_ONE, 40), (widening.STREAMS_MANY, 40), (widening.WORKERS, 2))
    ]
    report.draw(widening.curves(rows, plan), tmp_path / "growth.svg")
    drawn = ElementTree.parse(tmp_path / "growth.svg").getroot()  # noqa: S314 -- we have drawn it
    named = {element.tag.rpartition("}")[2]: [*drawn.iter(element.tag)] for element in drawn.iter()}
    assert [len(line.get("points").split()) for line in named["polyline"]] == [2, 2, 2]
    assert len(named["circle"]) == 6
    assert [text.text for text in named["text"]][:5] == ["0", "5", "10", "15", "20"]
    assert f"({report.CHART.name})" in report.PAGE.read_text() and report.CHART.exists()


def test_percentiles_are_measured_values():
    assert percentiles([float(value) for value in range(100, 0, -1)]) == {"p50": 50.0, "p99": 99.0}
    assert percentiles([7.0]) == {"p50": 7.0, "p99": 7.0}


def test_the_growth_of_the_core_is_measured_and_shown_for_each_row():
    made = growth.table(growth.QUICK, lambda _: None)
    lines = made.splitlines()
    assert len(lines) == 2 + len(growth.ROWS)
    assert all(len(line.split("|")) == 2 + 1 + len(growth.QUICK) for line in lines[2:])
    page = growth.PAGE.read_text(encoding="utf-8").split(growth.BEGIN)[1].split(growth.END)[0]
    assert all(title in page for _, title in growth.ROWS)


def test_peers_stream_every_delta_separately():
    async def pieces() -> list[str]:
        return [piece async for piece in service.stream({"agent": "stream", "prompt": "hello there"})]

    came = asyncio.run(pieces())
    assert "".join(came) == agents.text(agents.DELTAS)
    assert len(came) == agents.DELTAS


def test_peers_and_the_bare_loop_tune_the_garbage_collector_as_workers_do(monkeypatch):
    tuned = []
    monkeypatch.setattr(gc, "tune_gc", lambda: tuned.append(True))
    monkeypatch.setattr(sys, "stdin", [])
    asyncio.run(service.warm_up())
    asyncio.run(bare.main())
    assert tuned == [True, True]
