"""The benchmark works, and its figures have a place in the docs; how fast anything is, is not tested."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from contextlib import nullcontext
from xml.etree import ElementTree

import pytest

from axon_zmq.process import gc
from bench import agents, bare, growth, isolation, measure, memory, report, widening
from bench.clients import Reply
from bench.measure import Comparison, Other, Row
from bench.numbers import Figure, percentiles
from bench.peers import service, start
from bench.peers.sockets import Line, Nats, Posts, WebSockets
from bench.peers.start import FASTAPI, GRPC, NATS, PEERS, POST, PROXY
from bench.relay import NAIVE
from bench.runs import BARE
from bench.transport import PROXY_SAME_WORKER
from tests.conftest import ROOT


@pytest.mark.timeout(420)
def test_a_quick_run_measures_everything_and_prints_a_table_and_json():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    rows = {row["title"]: row for row in result["rows"]}
    assert len(table) == 1 + sum(max(1, len(row["others"])) for row in rows.values())
    peers = [name for name in PEERS if f"without {name}" not in result["where"]]
    pressed = [name for name in (FASTAPI, PROXY) if name in peers]
    proxied = [PROXY] if PROXY in peers else []
    floor = [PROXY_SAME_WORKER] if proxied else []
    asked = [way for name in peers for way in ([name, POST] if name == FASTAPI else [name])]
    for title, others in {
        "relayed chunk, 1 stream at full speed: broker": [NAIVE, *proxied],
        "paced chunk, 5 streams, one connection: server": [*peers, *floor],
        "echo, 2 at a time: server": [*asked, *floor],
        "echo, one at a time, back to back: p50": [*asked, *floor],
        "agent's delta, 4 streams: server": [*peers, BARE],
        "`run` on `echo`, 2 at a time: server": [*asked, BARE],
        "`run` on `echo`, one at a time, back to back: p50": [BARE],
        "`run` on `echo`, one at a time, back to back: p99": [BARE],
        "tool call in a `run`: p50": ["the same tool in Python"],
        "4 streams without pause, slowest divided by median: time": pressed,
        "added delay of a delta, 5 paced streams: p99": pressed,
        "added delay of a delta, 10 paced streams: p99": [],
        "delay of a paced chunk, 5 streams, during 10 MB transfers: p99": [isolation.ALONE, isolation.ELSEWHERE],
        "memory when idle, broker: all": ["import zmq, msgpack"],
        "memory when idle, worker with OpenAI's provider: all": [f"import {memory.WORKER_IMPORTS}"],
        "memory of a stream, 20 open, one connection each: broker": [],
        "memory of an agent's stream, 5 open: worker": [BARE],
        "start, broker: until ready": ["import zmq, msgpack"],
        "start, worker: until ready": ["import pydantic_ai"],
        "start, `axon-zmq serve`, 1 of each worker: until ready": ["import pydantic_ai"],
        "relayed chunk among 40 streams, one connection: broker": ["1"],
        "relayed chunk among 2 workers: broker": ["1"],
    }.items():
        row = rows[title]
        assert [other["name"] for other in row["others"]] == others, title
        for side in (row["ours"], *(other[of] for other in row["others"] for of in ("figure", "ratio"))):
            assert 0 < side["low"] <= side["median"] <= side["high"], row
    assert any(title.startswith("memory gained over the last four fifths of 100 requests") for title in rows)
    assert result["rounds"] == 1


def test_the_order_of_the_sides_is_reversed_with_every_round_and_ratios_are_of_one_round():
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


def test_a_peer_that_cannot_be_had_is_left_out_and_said(monkeypatch):
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


def test_how_late_each_delta_came():
    came = Reply(sent=10.0, pieces=[(10.0, "0000 "), (10.5, "0001 0002 ")])  # merged: each counts
    assert came.delays(0.1) == pytest.approx([0.0, 0.4, 0.3])


@pytest.mark.parametrize(
    ("crowd", "stream", "texts"),
    [
        (WebSockets, b"\x81\x7e\x00\xc8" + b"x" * 200 + b"\x81\x01y\x81\x00", ["x" * 200, "y", ""]),
        (Nats, b"MSG _INBOX.a.0 1 3\r\nx\r\n\r\nMSG _INBOX.a.0 1 0\r\n\r\n+OK\r\n", ["x\r\n", ""]),
        (Posts, b'HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 12\r\n\r\n{"text":"x"}', ["x"]),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_drivers_read_messages_however_they_are_cut(crowd, stream, texts, size):
    here, there = socket.socketpair()
    with here, there:
        line = Line(here, number=0)
        came = []
        for at in range(0, len(stream), size):
            there.sendall(stream[at : at + size])
            line.read()
            came += crowd._taken(crowd, line)
    assert came == [(0, text) for text in texts]


def test_the_page_has_a_place_for_the_table(tmp_path):
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


def test_the_chart_has_a_line_for_what_grows_and_a_point_for_each_number(tmp_path):
    plan, of = measure.QUICK, Figure(10.0, 9.0, 17.0)
    rows = [
        Row(f"{widening.title(what, most)}: broker", "µs CPU", of, [Other("1", of, of)])
        for what, most in ((widening.STREAMS_ONE, 40), (widening.STREAMS_MANY, 40), (widening.WORKERS, 2))
    ]
    report.draw(widening.curves(rows, plan), tmp_path / "growth.svg")
    drawn = ElementTree.parse(tmp_path / "growth.svg").getroot()
    named = {element.tag.rpartition("}")[2]: [*drawn.iter(element.tag)] for element in drawn.iter()}
    assert [len(line.get("points").split()) for line in named["polyline"]] == [2, 2, 2]
    assert len(named["circle"]) == 6
    assert [text.text for text in named["text"]][:5] == ["0", "5", "10", "15", "20"]
    assert f"({report.CHART.name})" in report.PAGE.read_text() and report.CHART.exists()


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


def test_peers_stream_every_delta_by_itself():
    async def pieces() -> list[str]:
        return [piece async for piece in service.stream({"agent": "stream", "prompt": "hello there"})]

    came = asyncio.run(pieces())
    assert "".join(came) == agents.text(agents.DELTAS)
    assert len(came) == agents.DELTAS


def test_peers_and_bare_tune_the_collector_as_our_workers_do(monkeypatch):
    tuned = []
    monkeypatch.setattr(gc, "tune_gc", lambda: tuned.append(True))
    monkeypatch.setattr(sys, "stdin", [])
    asyncio.run(service.warm_up())
    asyncio.run(bare.main())
    assert tuned == [True, True]
