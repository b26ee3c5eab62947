"""Rule 7: client tools when a client reconnects or disappears, or the broker restarts."""

from __future__ import annotations

import json
import time

import pytest

from axon_zmq.broker.core.broker import CLIENT_GRACE_S
from axon_zmq.supervise import broker_status
from tests.support.client_tools import MODE_KINDS, WEATHER, answer, asking, calls, until
from tests.support.daemon import WAIT_TIMEOUT_S, Dealer, running, wait_until


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_resumed_lists_the_open_calls_completely_and_no_others(dealer, mode):
    dealer.send(mode, b"1", None, asking(calls("weather", "weather", place="Oslo"), WEATHER))
    first, second = until(dealer, b"tool_call"), until(dealer, b"tool_call")
    answer(dealer, b"1", first, result=1)
    dealer.send(b"resume", b"1", {"from": 1})
    resumed = until(dealer, b"resumed")
    assert resumed["open_calls"] == [second]
    assert resumed["last"] >= second["seq"]
    replayed = [until(dealer, b"tool_call") for _ in range(2)]
    assert replayed == [first, second]
    answer(dealer, b"1", second, result=2)
    assert json.loads(until(dealer, b"complete")["result"]) == [1, 2]
    dealer.send(b"resume", b"1", {"from": 10_000})
    assert until(dealer, b"resumed")["open_calls"] == []


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_client_that_returns_as_another_process_answers_open_calls(daemon, mode):
    with Dealer(daemon.endpoint, b"comes-back") as before:
        before.send(mode, mode + b"-7", {"on_disconnect": "keep"}, asking(calls("weather", place="Oslo"), WEATHER))
        call = until(before, b"tool_call")
    with Dealer(daemon.endpoint, b"comes-back") as after:
        after.send(b"resume", mode + b"-7", {"from": 1})
        [still_open] = until(after, b"resumed")["open_calls"]
        assert still_open == call
        answer(after, mode + b"-7", call, result=5)
        until(after, b"tool_call")  # the replayed one
        assert json.loads(until(after, b"complete")["result"]) == [5]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_broker_killed_during_a_tool_call_loses_neither_run_nor_call(mode):
    with running(mode.decode()) as own, Dealer(own.endpoint, b"faithful") as dealer:
        dealer.send(mode, b"1", None, asking(calls("weather", place="Oslo"), WEATHER))
        call = until(dealer, b"tool_call")
        own.kill("broker")
        own.start_broker()
        dealer.send(b"resume", b"1", {"from": call["seq"] + 1})
        assert until(dealer, b"resumed")["open_calls"] == [call]
        answer(dealer, b"1", call, result=6)
        done = until(dealer, b"complete")
        assert json.loads(done["result"]) == [6]
        assert done["usage"]["tool_calls"] == 1


def test_a_tool_timeout_is_paused_while_the_client_is_gone():
    tool = {**WEATHER, "timeout_ms": 4000}  # the broker notices after 2 s
    with running("run") as own:
        with Dealer(own.endpoint, b"wanderer") as before:
            before.send(b"run", b"1", {"on_disconnect": "keep"}, asking(calls("weather", place="Oslo"), tool))
            call = until(before, b"tool_call")
        wait_until(lambda: "wanderer is gone" in own.log("broker"), "the broker's notice")
        time.sleep(tool["timeout_ms"] / 1000 + 0.5)  # this time must not count
        with Dealer(own.endpoint, b"wanderer") as after:
            after.send(b"resume", b"1", {"from": call["seq"] + 1})
            assert until(after, b"resumed")["open_calls"] == [call]
            answer(after, b"1", call, result=7)
            assert json.loads(until(after, b"complete")["result"]) == [7]


def test_a_tool_timeout_continues_when_the_client_returns():
    tool = {**WEATHER, "timeout_ms": 4000}
    with running("run") as own:
        with Dealer(own.endpoint, b"wanderer") as before:
            before.send(b"run", b"1", {"on_disconnect": "keep"}, asking(calls("weather", place="Oslo"), tool))
            until(before, b"tool_call")
        wait_until(lambda: "wanderer is gone" in own.log("broker"), "the broker's notice")
        with Dealer(own.endpoint, b"wanderer") as after:
            after.send(b"resume", b"1", {"from": 1})
            until(after, b"resumed")
            until(after, b"tool_call")
            until(after, b"tool_cancelled")
            assert "did not answer within 4000 ms" in until(after, b"complete")["result"]


def test_a_client_that_disappears_during_a_tool_call_leaves_no_slot_occupied():
    with running("run", "run_sync", "run_stream") as own:
        for mode in MODE_KINDS:
            with Dealer(own.endpoint, b"vanishing-" + mode) as dealer:
                dealer.send(mode, mode, None, asking(calls("weather", place="Oslo"), WEATHER))
                until(dealer, b"tool_call")

        def runs() -> list[int]:
            """Number of unfinished runs of each worker; those that wait for their client occupy no slot."""
            return [worker["busy"] + worker["waiting"] for worker in broker_status.status(own.run_dir)["workers"]]

        assert runs() == [1, 1, 1]
        wait_until(lambda: runs() == [0, 0, 0], "the runs to end", CLIENT_GRACE_S + WAIT_TIMEOUT_S)
