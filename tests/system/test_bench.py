"""The benchmark runs and prints its table; its figures are not tested."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench import isolation, memory
from bench.peers.start import FASTAPI, PEERS, POST, PROXY
from bench.relay import NAIVE
from bench.runs import BARE
from bench.transport import PROXY_SAME_WORKER
from tests.support import ROOT


@pytest.mark.timeout(420)
def test_a_quick_benchmark_measures_everything_and_prints_a_table_and_json():
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
