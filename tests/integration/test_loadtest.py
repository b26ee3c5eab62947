"""Load tests of a real daemon, and of brokers that break a promise."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import zmq
from typer.testing import CliRunner

from axon_zmq import Client
from axon_zmq.cli import loadtest as console
from axon_zmq.cli.app import app
from axon_zmq.errors import ConfigurationError
from axon_zmq.loadtest import report
from axon_zmq.loadtest.driver import Driver
from axon_zmq.loadtest.plan import Plan, Scenario
from axon_zmq.loadtest.report import Report
from axon_zmq.protocol.msgpack import pack
from tests.support import snippets
from tests.support.command import on_a_terminal
from tests.support.daemon import WAIT_TIMEOUT_S, Daemon, wait_until
from tests.support.load_plans import plan

AXON = Path(sys.executable).parent / "axon-zmq"
Send = Callable[..., None]
"""Sends a message of the run: kind and body."""


def drive(asked: Plan, say: Callable[[Driver], None] = lambda _: None) -> Report:
    driver = Driver(asked, say)
    driver.run()
    seen = report.report_of(driver, {"version": "0"})
    assert Report.model_validate_json(seen.model_dump_json()) == seen
    return seen


# --- a real daemon ---------------------------------------------------------------------------------


def test_the_commands_of_the_loadtest_page_work_as_printed(daemon: Daemon, tmp_path, monkeypatch):
    [page] = [b for b in snippets.blocks(snippets.DOCS / "loadtest.md") if (b.role, b.name) == ("runnable", "loadtest")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AXON_FRONTEND", daemon.endpoint)
    commands = [line.removeprefix("$ ") for line in page.code.splitlines()]
    assert {scenario for scenario in Scenario if any(f" {scenario} " in command for command in commands)} == {*Scenario}
    for command in commands:
        brief = command if "--compare" in command else f"{command} --duration 0.3 --warmup 0 --read-ms 10"
        done = CliRunner().invoke(app, shlex.split(brief)[1:])
        assert done.exit_code == 0, (command, done.output)
        seen = json.loads(done.stdout)
        if "--compare" in command:
            assert seen["compared"][0].keys() >= {"requests", "complete/s"}
        else:
            assert all(0 < kind["complete"] == kind["requests"] for kind in seen["kinds"].values()), seen
            assert seen["broken"] == {}
    for page in ("report.html", "compared.html"):
        check_that_it_stands_alone(tmp_path / page)


class Tags(HTMLParser):
    """The URLs that a page would fetch, and the number of its plots."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.plots = 0
        self.policy = ""

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.fetched += [str(named[key]) for key in ("src", "href", "srcset", "data", "action") if key in named]
        self.plots += named.get("class") == "plotly-graph-div"
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"]


def check_that_it_stands_alone(page: Path) -> None:
    tags = Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert tags.fetched == []
    assert tags.policy.startswith("default-src 'none'")  # so its scripts cannot fetch anything either
    assert "http" not in tags.policy
    assert tags.plots == (5 if page.name == "report.html" else 3)


def test_a_terminal_shows_a_table(daemon: Daemon):
    seen = on_a_terminal(daemon, "loadtest", "streams", "--streams", "2", "--duration", "0.5", "--warmup", "0")
    for shown in (
        "complete/s",
        "stream: latency",
        "stream: first chunk",
        "stream: chunk gap",
        "p99.9",
        "driver: late by",
    ):
        assert shown in seen
    assert "FAILED" not in seen


def test_an_open_loop_sends_on_schedule(daemon: Daemon):
    seen = drive(plan(daemon.endpoint, Scenario.UNARY, rate=50.0, warmup=0.19))
    assert seen.is_good
    assert seen.kinds["unary"].requests == 30
    assert sum(moment.requests for moment in seen.each_second) == 40
    assert seen.driver.lag.count == 30


def test_clients_that_drop_their_connections_lose_nothing(daemon: Daemon):
    seen = drive(plan(daemon.endpoint, Scenario.RECONNECTS, streams=8, duration=1.5, drop_every=2.0))
    assert seen.is_good, seen
    assert seen.drops >= 2
    assert seen.resumes >= 2


def test_slow_readers_do_not_delay_other_clients(daemon: Daemon):
    seen = drive(plan(daemon.endpoint, Scenario.SLOW_READERS, streams=3, read_ms=50.0, warmup=0.0)).kinds
    assert {name: part.failed for name, part in seen.items()} == {"stream": 0, "slow": 0, "slow, credit": 0}
    assert seen["stream"].chunk_gap.ms["p50"] < 45
    assert min(seen[name].chunk_gap.ms["p50"] for name in ("slow", "slow, credit")) >= 50


def test_a_load_test_ends_after_the_given_number_of_requests(daemon: Daemon):
    seen = drive(plan(daemon.endpoint, Scenario.TOOLS, most=7, warmup=0.0))
    assert (seen.kinds["tools"].complete, seen.is_good) == (7, True)


def test_a_closed_loop_alternates_between_the_kinds_of_requests(daemon: Daemon):
    seen = drive(plan(daemon.endpoint, Scenario.MIXED, streams=1, most=3, warmup=0.0))
    assert {name: part.requests for name, part in seen.kinds.items()} == {"unary": 1, "stream": 1, "tools": 1}


def test_the_load_of_the_driver_is_measured_over_the_measured_seconds(daemon: Daemon):
    works = lambda driver: 0.4 < driver.elapsed < 0.9 and threading.Event().wait(0.5)  # noqa: E731
    seen = drive(plan(daemon.endpoint, Scenario.UNARY, rate=5.0, warmup=0.4, duration=0.6), works)
    assert 0.65 < seen.driver.busy <= 1


def test_nothing_is_measured_if_all_requests_were_sent_during_the_warm_up(daemon: Daemon):
    limits = ["--most", "3", "--warmup", "1", "--endpoint", daemon.endpoint]
    done = CliRunner().invoke(app, ["loadtest", "unary", *limits])
    assert done.exit_code == 1
    assert report.faults(Report.model_validate_json(done.stdout))[0].startswith("EMPTY")


def test_the_report_is_printed_if_it_cannot_be_written(daemon: Daemon, tmp_path, monkeypatch):
    def full(*_args: object, **_named: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    limits = ["--most", "3", "--warmup", "0", "--endpoint", daemon.endpoint, "--json", str(tmp_path / "report.json")]
    done = CliRunner().invoke(app, ["loadtest", "unary", *limits])
    assert isinstance(done.exception, OSError)
    assert json.loads(done.stdout)["kinds"]["unary"]["complete"] == 3


def test_failures_are_counted_by_error_type(daemon: Daemon):
    limits = ["--most", "3", "--warmup", "0", "--endpoint", daemon.endpoint]
    done = CliRunner().invoke(app, ["loadtest", "unary", "--agent", "raising", *limits])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["kinds"]["unary"]["failures"] == {"tool_failed": 3}


def test_ctrl_c_ends_a_load_test_with_a_report_and_cancels_open_runs(daemon: Daemon):
    endless = json.dumps({"model": "synthetic:tokens=10000"})
    command = [AXON, "loadtest", "streams", "--agent", endless, "--warmup", "0", "--endpoint", daemon.endpoint]
    with Client(daemon.endpoint) as client:
        free = lambda: client.ping(WAIT_TIMEOUT_S)["modes"]["run_stream"]["free"]  # noqa: E731
        all_free = free()
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        wait_until(lambda: free() == all_free - 10, "the streams")
        running.send_signal(signal.SIGINT)
        seen = json.loads(running.communicate(timeout=240)[0])
        wait_until(lambda: free() == all_free, "the end of the streams")
    assert running.returncode == 130
    assert (seen["interrupted"], seen["unfinished"], seen["broken"]) == (True, 10, {})


# --- brokers that break a promise ------------------------------------------------------------------


@contextmanager
def broker(answer: Callable[[bytes, Send], None]) -> Iterator[str]:
    """A broker that answers each message except `ping` with a function of the test."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    ended = threading.Event()

    def play() -> None:
        while not ended.is_set():
            if not router.poll(20):
                continue
            client, kind, id, *_ = router.recv_multipart()
            if kind != b"ping":

                def send(of: bytes, **body) -> None:
                    router.send_multipart([client, of, id, pack(body)])  # noqa: B023 -- called at once

                answer(kind, send)

    playing = threading.Thread(target=play)
    playing.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        ended.set()
        playing.join()
        context.destroy(linger=0)


def chunk(send: Send, seq: int, text: str) -> None:
    send(b"chunk", seq=seq, type="text", data=text, step=1, part=0)


def complete(send: Send, seq: int, result: str) -> None:
    send(b"complete", seq=seq, result=result, usage={}, messages=[], finish_reason="stop", model="", run_id="")


COUNTED = "".join(f"{number:04d} " for number in range(20))
"""The text that the offline example streams."""


def cut(kind: bytes, send: Send) -> None:
    chunk(send, 1, COUNTED[:50])
    complete(send, 2, COUNTED)


def bent(kind: bytes, send: Send) -> None:
    chunk(send, 1, COUNTED)
    complete(send, 2, COUNTED[:50])


def gap(kind: bytes, send: Send) -> None:
    chunk(send, 1, "one ")
    if kind == b"resume":
        chunk(send, 2, "two")
    complete(send, 3, "one two")


def twice(kind: bytes, send: Send) -> None:
    for _ in range(2):
        complete(send, 1, "")


def mute(kind: bytes, send: Send) -> None:
    pass


def garbled(kind: bytes, send: Send) -> None:
    send(b"chunk", seq="one")


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        (cut, "text not whole"),
        (bent, "text not whole"),
        (gap, "a gap in seq"),
        (twice, "a second end"),
        (mute, "no end"),
        (garbled, "an unreadable answer"),
    ],
)
def test_a_broken_promise_is_reported(answer, broken, monkeypatch):
    monkeypatch.setattr("axon_zmq.client.core.ANSWER_GRACE_S", 0.1)
    with broker(answer) as endpoint:
        agent = None if broken == "text not whole" else "any"
        timeout = 0.3 if answer is mute else 60.0
        seen = drive(plan(endpoint, Scenario.STREAMS, agent=agent, streams=2, most=2, warmup=0.0, timeout=timeout))
    assert set(seen.broken) == {broken}
    assert not seen.is_good
    assert any(line.startswith(f"BROKEN: {broken}") for line in report.faults(seen))


def test_the_result_of_a_custom_agent_may_differ_from_its_streamed_text():
    """The result may come from a tool, a validator or an output function."""

    def answer(kind: bytes, send: Send) -> None:
        chunk(send, 1, "thinking aloud")
        complete(send, 2, "done")

    with broker(answer) as endpoint:
        assert drive(plan(endpoint, Scenario.STREAMS, agent="any", streams=1, most=1, warmup=0.0)).is_good


def test_messages_left_unread_by_a_slow_reader_are_not_a_broken_promise(monkeypatch):
    def answer(kind: bytes, send: Send) -> None:
        if kind == b"run_stream":
            for seq in range(1, 5):
                chunk(send, seq, "x")
            complete(send, 5, "xxxx")

    monkeypatch.setattr("axon_zmq.client.core.ANSWER_GRACE_S", 0.1)
    with broker(answer) as endpoint:
        slowly = plan(endpoint, Scenario.SLOW_READERS, agent="any", streams=3, most=3, timeout=1.5, read_ms=1000.0)
        seen = drive(replace(slowly, warmup=0.0))
    assert seen.broken == {}
    assert {name: dict(part.failures) for name, part in seen.kinds.items()} == {
        "stream": {},
        "slow": {"not read in time": 1},
        "slow, credit": {},
    }


def test_a_missing_end_is_reported_for_slow_readers_too(monkeypatch):
    monkeypatch.setattr("axon_zmq.client.core.ANSWER_GRACE_S", 0.1)
    with broker(mute) as endpoint:
        seen = drive(plan(endpoint, Scenario.SLOW_READERS, streams=3, most=3, warmup=0.0, timeout=0.3))
    assert seen.broken == {"no end": 3}


def test_latency_counts_from_the_scheduled_time_of_a_request():
    """The broker hangs once: in an open loop all requests scheduled meanwhile are late, in a closed loop only one."""

    def hangs_once() -> Callable[[bytes, Send], None]:
        asked: list[bytes] = []

        def answer(kind: bytes, send: Send) -> None:
            asked.append(kind)
            if len(asked) == 10:
                threading.Event().wait(0.4)
            complete(send, 1, "done")

        return answer

    late: dict[float | None, float] = {}
    for rate in (100.0, None):
        with broker(hangs_once()) as endpoint:
            late[rate] = (
                drive(plan(endpoint, Scenario.UNARY, agent="any", rate=rate, streams=1, duration=0.6, warmup=0.0))
                .kinds["unary"]
                .latency.ms["p90"]
            )
    assert late[100.0] > 200
    assert late[None] is not None
    assert late[None] < late[100.0] / 2


def test_reports_are_compared_if_they_have_kinds_in_common(daemon: Daemon, tmp_path, capsys):
    def made(name: str, scenario: Scenario, **more) -> Path:
        driver = Driver(plan(daemon.endpoint, scenario, **more))
        driver.stop()
        driver.run()
        (tmp_path / name).write_text(report.report_of(driver, {}).model_dump_json())
        return tmp_path / name

    unary, paced, streams = (
        made("unary", Scenario.UNARY),
        made("paced", Scenario.UNARY, rate=5.0),
        made("streams", Scenario.STREAMS),
    )
    with pytest.raises(ConfigurationError, match="nothing to compare: A has unary, B has stream"):
        console.compare(unary, streams, None, None)
    console.compare(unary, paced, tmp_path / "compared.json", None)
    shown = capsys.readouterr().out
    assert json.loads(shown)["notes"] == ["load differs: A had 4 at a time, B had 5 requests/s"]
    assert json.loads((tmp_path / "compared.json").read_text()) == json.loads(shown)
