"""Requests from start to end over real sockets: cancel, deadlines, duplicates, framings, crashes, slow readers."""

from __future__ import annotations

import asyncio
import signal
import time

import msgpack
import psutil
import pytest
import zmq

from axon_zmq import AsyncClient, AxonError, Client
from axon_zmq.broker.core.broker import ALIVE_INTERVAL_S, CLIENT_GRACE_S
from axon_zmq.broker.server import LARGE_MESSAGE
from axon_zmq.protocol import limits
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.worker.core.worker import STUCK_GRACE_S
from tests.support.daemon import WAIT_TIMEOUT_S, Daemon, Dealer, running, wait_until

LONG = {"agent": {"model": "synthetic:tokens=6000,delay_ms=10"}, "prompt": "x"}


@pytest.mark.parametrize("mode", MODES)
def test_cancel_ends_a_running_run_at_once_with_its_partial_answer(dealer: Dealer, mode):
    dealer.send(mode.encode(), b"1", {"ack": True}, LONG)
    assert dealer.recv()[0] == b"accepted"
    if mode == "run_stream":
        assert dealer.recv()[0] == b"chunk"
    asked = time.monotonic()
    dealer.send(b"cancel", b"1")
    *chunks, (kind, body) = dealer.until_end(b"1")
    assert time.monotonic() - asked < 20
    assert (kind, body["error_type"], body["retryable"]) == (b"error", "cancelled", False)
    assert body["seq"] == 1 + sum(kind == b"chunk" for kind, _ in chunks) + (mode == "run_stream")
    assert body["details"].keys() >= ({"partial"} if mode == "run_stream" else set())
    if mode == "run_stream":
        assert body["details"]["partial"]["text"].startswith("0000 0001"[:4])
    kind, reply = dealer.ask(b"cancel", b"1")
    assert (kind, reply["of"]) == (b"refused", "cancel")


@pytest.mark.parametrize("mode", MODES)
def test_a_deadline_ends_a_run_and_keeps_the_partial_answer(dealer: Dealer, mode):
    kind, body = dealer.ask(mode.encode(), b"1", {"timeout_ms": 300}, LONG)
    assert (kind, body["error_type"]) == (b"error", "deadline_exceeded")
    if mode == "run_stream":
        assert body["details"]["partial"]["text"]


def test_a_blocking_tool_does_not_delay_the_answer_and_its_thread_frees_the_slot(daemon: Daemon, dealer: Dealer):
    kind, body = dealer.ask(b"run_sync", b"1", {"timeout_ms": 200}, {"agent": "slow", "prompt": "x"})
    assert (kind, body["error_type"]) == (b"error", "deadline_exceeded")
    wait_until(lambda: dealer.ask(b"ping", b"p")[1]["modes"]["run_sync"]["free"] == 4, "the slot")


def test_a_worker_with_a_stuck_run_is_replaced():
    agents = "stubborn=sample_agents:stubborn,echo=axon_zmq.agents.echo:agent"
    with running("run_sync", AXON_AGENTS=agents) as own, Dealer(own.endpoint) as dealer:
        # Long enough for a busy machine to start the run before its deadline.
        kind, body = dealer.ask(b"run_sync", b"1", {"timeout_ms": 5000}, {"agent": "stubborn", "prompt": "x"})
        assert (kind, body["error_type"]) == (b"error", "deadline_exceeded")
        assert dealer.ask(b"ping", b"p")[1]["modes"]["run_sync"]["free"] == 3  # the slot is out of service
        assert dealer.ask(b"run_sync", b"2", None, {"agent": "echo", "prompt": "x"})[0] == b"complete"
        worker = own.processes.pop("run_sync-1")
        assert worker.wait(STUCK_GRACE_S + WAIT_TIMEOUT_S) == 0  # it leaves; under supervisord it is started again
        assert "its code still occupies the worker" in own.log("run_sync-1")


def test_ack_duplicate_and_replay_after_the_end(dealer: Dealer):
    body = {"agent": "echo", "prompt": "one two"}
    dealer.send(b"run_stream", b"1", {"ack": True}, body)
    first = dealer.until_end(b"1")
    assert first[0] == (b"accepted", {"duplicate": False})
    dealer.send(b"run_stream", b"1", None, body)
    again = dealer.until_end(b"1")
    assert again[0] == (b"accepted", {"duplicate": True})
    assert again[1] == (b"resumed", {"from": 1, "gap": False, "open_calls": [], "last": 3})
    assert again[2:] == first[1:]


def test_resume_replays_from_the_requested_seq(dealer: Dealer):
    dealer.send(b"run_stream", b"1", None, {"agent": "echo", "prompt": "one two three"})
    first = dealer.until_end(b"1")
    dealer.send(b"resume", b"1", {"from": 3})
    again = dealer.until_end(b"1")
    assert again[0][1]["from"] == 3
    assert again[1:] == first[2:]


def test_single_frame_replies_contain_the_same_messages(daemon: Daemon):
    dealer = Dealer(daemon.endpoint)
    dealer.send(b"run_stream", b"1", {"frames": "single"}, {"agent": "echo", "prompt": "one two"})
    messages = []
    while not messages or messages[-1][0] != "complete":
        [frame] = dealer.socket.recv_multipart()
        messages.append(msgpack.unpackb(frame, timestamp=3))
    assert [(kind, id, body.get("data")) for kind, id, body in messages[:2]] == [
        ("chunk", b"1", "one"),
        ("chunk", b"1", " two"),
    ]
    dealer.send(b"ping", b"2")  # from then on, for all requests
    [frame] = dealer.socket.recv_multipart()
    assert msgpack.unpackb(frame)[0] == "pong"
    said = "x" * LARGE_MESSAGE
    dealer.send(b"run", b"3", None, {"agent": "echo", "prompt": said})
    [frame] = dealer.socket.recv_multipart()
    kind, id, body = msgpack.unpackb(frame, timestamp=3)
    assert (kind, id, body["result"]) == ("complete", b"3", said)
    dealer.close()


def test_a_req_client_gets_its_delimiter_back(daemon: Daemon):
    context = zmq.Context()
    with context.socket(zmq.REQ) as req:
        req.connect(daemon.endpoint)
        for number in (b"1", b"2"):
            req.send_multipart([b"run", number, b"", pack({"agent": "echo", "prompt": "hi"})])
            assert req.poll(20_000)
            kind, id, body = req.recv_multipart()
            assert (kind, id, unpack(body, "body")["result"]) == (b"complete", number, "hi")
    context.term()


def test_trailing_empty_frames_may_be_omitted(dealer: Dealer):
    for id, frames in ((b"1", [b"ping", b"1"]), (b"2", [b"ping", b"2", b""]), (b"3", [b"ping", b"3", b"", b""])):
        dealer.socket.send_multipart(frames)
        assert dealer.recv()[:2] == (b"pong", id)


def test_alive_is_sent_only_while_a_request_is_open(dealer: Dealer):
    dealer.send(b"run", b"1", None, LONG)
    kind, id, body = dealer.recv(alive=True)
    assert (kind, id, body["open"]) == (b"alive", b"", 1)
    dealer.send(b"cancel", b"1")
    dealer.until_end(b"1")
    assert dealer.silent(ALIVE_INTERVAL_S + 0.3)


def test_describe_reports_tools_schemas_and_broken_agents(client: Client):
    agents = client.describe()
    assert agents["broken"]["error"].startswith("AttributeError")
    weather = agents["weather"]
    assert weather["modes"] == list(MODES)
    assert weather["tools"][0]["name"] == "temperature"
    assert weather["tools"][0]["parameters"]["properties"]["place"]["type"] == "string"
    assert weather["output_schema"]["properties"].keys() == {"summary", "celsius"}
    assert agents["typed"]["deps_schema"]["required"] == ["name", "age"]
    assert client.describe("echo").keys() == {"echo"}
    with pytest.raises(AxonError, match="unknown_agent"):
        client.describe("ecko")


def test_a_killed_worker_ends_only_its_own_runs_as_worker_lost():
    with running("run_stream", "run_stream") as own, Client(own.endpoint) as client:
        streams = [client.stream(LONG["agent"], "x") for _ in range(6)]
        for stream in streams:
            next(stream)
        own.kill("run_stream-1")
        # The broker ends the runs of the worker before it counts the worker as lost.
        wait_until(lambda: client.ping()["modes"]["run_stream"]["workers"] == 1, "the broker's notice")
        ends = []
        for stream in streams:
            if _ends_as(stream) == "worker_lost":
                ends.append(stream)
                continue
            next(stream)
            stream.cancel()
            assert _ends_as(stream) == "cancelled"
        assert len(ends) == 3  # the runs were spread evenly


def _ends_as(stream) -> str | None:
    """The error type or `complete`, if the stream ends within a second."""
    give_up = time.monotonic() + 1
    try:
        for _ in stream:
            if time.monotonic() > give_up:
                return None
    except AxonError as error:
        return error.error_type
    return "complete"


def test_a_killed_broker_restarts_and_no_run_is_lost_or_started_twice():
    """Rule 6 in its plain case: workers register again with what they hold, and the client resumes."""
    with running("run_stream") as own, Client(own.endpoint) as client:
        stream = client.stream({"model": "synthetic:tokens=300,delay_ms=20"}, "x")
        next(stream)
        own.kill("broker")
        own.start_broker()
        chunks = [event for event in stream if hasattr(event, "data")]
        assert [chunk.seq for chunk in chunks] == list(range(2, 301))
        wait_until(lambda: "run_stream complete" in own.log("run_stream-1"), "the line about its end")
        assert own.log("run_stream-1").count("run_stream complete") == 1
        own.wait(run_stream=1)


def test_a_worker_that_is_stopped_finishes_its_open_runs():
    with running("run_stream") as own, Client(own.endpoint) as client:
        stream = client.stream({"model": "synthetic:tokens=50,delay_ms=20"}, "x")
        next(stream)
        own.processes["run_stream-1"].send_signal(signal.SIGTERM)
        wait_until(lambda: client.ping()["draining"], "leaving")
        assert len(stream.complete().result) == 250
        assert own.processes.pop("run_stream-1").wait(WAIT_TIMEOUT_S) == 0


def test_runs_longer_than_the_drain_time_end_as_shutting_down_with_their_partial_answer():
    with running("run_stream", AXON_DRAIN_SECONDS="0.3") as own, Client(own.endpoint) as client:
        stream = client.stream(LONG["agent"], "x")
        next(stream)
        own.processes["run_stream-1"].send_signal(signal.SIGTERM)
        with pytest.raises(AxonError) as caught:
            stream.complete()
        assert caught.value.error_type == "shutting_down"
        assert caught.value.details["partial"]["text"]


def test_many_runs_longer_than_the_drain_time_all_end_as_shutting_down():
    async def all_end(own: Daemon) -> list[str]:
        async with AsyncClient(own.endpoint) as client:
            streams = [client.stream(LONG["agent"], "x") for _ in range(400)]
            for stream in streams:
                await anext(stream)
            own.processes["run_stream-1"].send_signal(signal.SIGTERM)
            ends = await asyncio.gather(*(stream.complete() for stream in streams), return_exceptions=True)
        return [end.error_type for end in ends if isinstance(end, AxonError)]

    with running("run_stream", AXON_DRAIN_SECONDS="0.1") as own:
        assert asyncio.run(all_end(own)) == ["shutting_down"] * 400


def test_rule_9_a_client_that_does_not_read_becomes_a_slow_consumer_without_affecting_others():
    with running("run_stream", AXON_AGENTS="flood=sample_agents:flood") as own, Client(own.endpoint) as healthy:
        context = zmq.Context()
        stalled = context.socket(zmq.DEALER)
        stalled.setsockopt(zmq.RCVHWM, 1)
        stalled.setsockopt(zmq.RCVBUF, 4096)
        stalled.connect(own.endpoint)
        flood = {"agent": "flood", "prompt": "x"}
        stalled.send_multipart([b"run_stream", b"1", b"", pack(flood)])
        wait_until(lambda: "slow_consumer" in own.log("run_stream-1"), "slow_consumer", 60)
        assert len(healthy.stream({"model": "synthetic:tokens=20,delay_ms=1"}, "x").complete().result) == 100
        assert psutil.Process(own.processes["broker"].pid).memory_info().rss < 150 * limits.MIB
        terminal = None
        while stalled.poll(5000):
            kind, _, body = stalled.recv_multipart()
            if kind == b"error":
                terminal = unpack(body, "body")
                break
        assert terminal is not None
        assert terminal["error_type"] == "slow_consumer"
        stalled.close(0)
        context.term()


def test_overload_is_answered_at_once_and_accepted_requests_are_finished():
    with running("run_sync", broker=("--max-queued=5",), AXON_RUN_SYNC_SLOTS="1") as own:
        dealer = Dealer(own.endpoint)
        pace = {"agent": {"model": "synthetic:tokens=1,delay_ms=100"}, "prompt": "x"}
        for number in range(20):
            dealer.send(b"run_sync", b"%d" % number, None, pace)
        ends = {}
        while len(ends) < 20:
            _, id, body = dealer.recv()
            ends[id] = body.get("error_type", "complete")
        assert sorted(ends.values()) == ["complete"] * 6 + ["overloaded"] * 14
        dealer.close()


def test_the_runs_of_a_client_that_disappears_are_cancelled():
    with running("run_stream") as own:
        dealer = Dealer(own.endpoint)
        dealer.send(b"run_stream", b"gone", None, LONG)
        dealer.recv()
        dealer.close()
        wait_until(lambda: "is gone, with 1 open" in own.log("broker"), "the broker's notice")
        wait_until(lambda: "id=gone" in own.log("run_stream-1"), "the end of its run", CLIENT_GRACE_S + 10)
        assert "run_stream cancelled" in own.log("run_stream-1")


def test_every_death_of_a_worker_is_noticed_soon():
    """The socket monitor may report a lost link before a send fails: the broker probes the link again."""
    with running("run") as own, Client(own.endpoint) as client:
        for number in range(2, 10):
            dealer = Dealer(own.endpoint)
            dealer.send(
                b"run", b"1", None, {**LONG, "prompt": f"{number}"}
            )  # a request whose workers died twice is quarantined
            wait_until(lambda: client.ping()["modes"]["run"]["free"] == 255, "the start")
            own.kill(f"run-{number - 1}")
            kind, body = dealer.until_end(b"1")[-1]
            assert (kind, body["error_type"]) == (b"error", "worker_lost")
            dealer.close()
            own.start_worker("run", number)
            own.wait(run=1)


@pytest.mark.parametrize("agent", ["exiting", "interrupting"])
def test_a_tool_that_exits_ends_only_its_own_run(dealer: Dealer, client: Client, agent: str):
    other = client.stream({"model": "synthetic:tokens=30,delay_ms=10"}, "x")
    for mode in MODES:
        id = f"{agent}-{mode}".encode()
        dealer.send(mode.encode(), id, None, {"agent": agent, "prompt": "x"})
        kind, body = dealer.until_end(id)[-1]
        assert (kind, body["error_type"]) in ((b"error", "internal"), (b"error", "tool_failed"))
    assert len(other.complete().result) == 150
    assert client.run("echo", "still here").result == "still here"


def test_many_simultaneous_cancels_keep_their_partial_answers():
    with running("run_stream") as own, Dealer(own.endpoint) as dealer:
        for number in range(200):
            dealer.send(b"run_stream", b"%d" % number, None, LONG)
        seen: set[bytes] = set()
        while len(seen) < 200:
            kind, id, _ = dealer.recv()
            assert kind == b"chunk"
            seen.add(id)
        for id in seen:
            dealer.send(b"cancel", id)
        partial = 0
        while seen:
            kind, id, body = dealer.recv()
            if kind == b"error":
                seen.discard(id)
                partial += bool(body["details"].get("partial", {}).get("text"))
        assert partial == 200
        wait_until(lambda: dealer.ask(b"ping", b"p")[1]["modes"]["run_stream"]["free"] == 1024, "all slots")


def test_nil_in_a_body_means_absent(dealer: Dealer):
    agent = {"model": "echo", "instructions": None, "output_mode": None, "model_settings": {"temperature": None}}
    body = {"agent": agent, "prompt": ["hi", {"kind": "binary", "data": b"x", "media_type": "a/b", "identifier": None}]}
    more = dict.fromkeys(("events", "log", "output_mode", "model_settings", "usage_limits", "retries", "deps"))
    assert dealer.ask(b"run", b"1", {"timeout_ms": None, "frames": None}, {**body, **more})[0] == b"complete"
    assert dealer.ask(b"resume", b"1", {"from": None})[0] == b"complete"


def test_answers_have_string_keys_and_no_nan(client: Client):
    done = client.run("odd", "x")
    assert "{'1': 'one', 'nan': None}" in str(done.messages)
    *chunks, _ = client.stream("odd", "x")
    assert chunks[1].data["result"] == {"1": "one", "nan": None}


def test_two_processes_with_one_identity_are_reported_to_both(daemon: Daemon):
    one = Dealer(daemon.endpoint, b"twins")
    assert one.ask(b"ping", b"1", {"instance": "one"})[1]["shared"] is False
    two = Dealer(daemon.endpoint, b"twins")
    assert two.ask(b"ping", b"1", {"instance": "two"})[1]["shared"] is True
    one.close()
    two.close()


def test_every_log_line_about_a_run_has_its_id(daemon: Daemon, dealer: Dealer):
    dealer.ask(b"run", b"find-me-in-the-log", None, {"agent": "raising", "prompt": "a secret prompt"})
    about = lambda: [line for line in daemon.log("run-2").splitlines() if "find-me-in-the-log" in line]  # noqa: E731
    lines = wait_until(lambda: len(about()) == 2 and about(), "where the tool raised, and how the run ended")
    assert "id=find-me-in-the-log" in lines[0]
    assert "tool_failed" in lines[1]
    assert not any("a secret prompt" in daemon.log(name) for name in daemon.processes)
