"""Steering: user messages for a run that executes."""

from __future__ import annotations

import json

import pytest

from axon_zmq.worker.adapter.steering import MAX_STEER_BYTES, MAX_STEERS
from tests.support.client_tools import MODE_KINDS, WEATHER, answer, asking, calls, until
from tests.support.daemon import Dealer, running


def steer(dealer: Dealer, id: bytes, content, **more) -> None:
    dealer.send(b"steer", id, None, {"content": content, **more})


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_steer_message_asap_is_in_the_next_model_request(dealer, mode):
    script = [[{"name": "weather", "args": {"place": "Oslo"}}]] * 2
    dealer.send(mode, b"1", None, asking(json.dumps(script), WEATHER))
    call = until(dealer, b"tool_call")
    steer(dealer, b"1", "in Fahrenheit")
    steer(dealer, b"1", ["and ", {"kind": "image-url", "url": "https://example.org/a.png"}], priority="asap")
    answer(dealer, b"1", call, result=1)
    answer(dealer, b"1", until(dealer, b"tool_call"), result=2)
    done = until(dealer, b"complete")
    assert json.loads(done["result"]) == [1, {"heard": "in Fahrenheit"}, {"heard": "and  [image-url]"}, 2]
    assert done["usage"]["requests"] == 3


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_steer_message_when_idle_follows_the_answer(dealer, mode):
    script = [[{"name": "weather", "args": {"place": "Oslo"}}]] * 2
    dealer.send(mode, b"1", None, asking(json.dumps(script), WEATHER))
    call = until(dealer, b"tool_call")
    steer(dealer, b"1", "thanks", priority="when_idle")
    answer(dealer, b"1", call, result=1)
    answer(dealer, b"1", until(dealer, b"tool_call"), result=2)
    done = until(dealer, b"complete")
    assert json.loads(done["result"]) == [1, 2, {"heard": "thanks"}]
    assert done["usage"]["requests"] == 4  # two calls, the first answer, and the one after "thanks"


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_steer_message_after_the_end_is_refused(dealer, mode):
    dealer.send(mode, b"1", None, {"agent": "echo", "prompt": "Hello"})
    until(dealer, b"complete")
    steer(dealer, b"1", "more")
    refused = until(dealer, b"refused")
    assert (refused["of"], refused["error_type"]) == ("steer", "invalid_request")
    assert "already ended" in refused["message"]
    steer(dealer, b"never", "more")
    assert until(dealer, b"error")["error_type"] == "unknown_request"


def test_an_invalid_steer_message_is_refused_and_the_run_is_not_affected(dealer):
    dealer.send(b"run", b"1", None, asking(calls("weather", place="Oslo"), WEATHER))
    call = until(dealer, b"tool_call")
    for body, text in (
        ({}, "/content: is missing"),
        ({"content": "x", "priority": "now"}, "/priority"),
        ({"content": "x", "contents": "x"}, "/contents"),
    ):
        dealer.send(b"steer", b"1", None, body)
        refused = until(dealer, b"refused")
        assert (refused["of"], text in refused["message"]) == ("steer", True), refused
    answer(dealer, b"1", call, result=1)
    assert json.loads(until(dealer, b"complete")["result"]) == [1]


def test_steer_messages_to_a_queued_run_reach_it_when_it_starts():
    with running("run", AXON_RUN_SLOTS="1") as daemon, Dealer(daemon.endpoint) as dealer:
        dealer.send(b"run", b"1", None, asking(calls("weather", place="Oslo"), WEATHER))
        call = until(dealer, b"tool_call")
        dealer.send(b"run", b"2", {"ack": True}, asking(calls("weather", place="Oslo"), WEATHER))
        until(dealer, b"accepted")
        steer(dealer, b"2", "hurry")
        answer(dealer, b"2", call, result="of another run")
        assert "still queued" in until(dealer, b"refused")["message"]
        answer(dealer, b"1", call, result=1)
        until(dealer, b"complete")
        answer(dealer, b"2", until(dealer, b"tool_call"), result=2)
        assert {"heard": "hurry"} in json.loads(until(dealer, b"complete")["result"])


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_the_number_of_waiting_steer_messages_is_bounded(dealer, mode):
    dealer.send(mode, b"1", None, asking(calls("weather", place="Oslo"), WEATHER))
    call = until(dealer, b"tool_call")
    for number in range(MAX_STEERS + 5):
        steer(dealer, b"1", f"more {number}")
    for _ in range(5):
        refused = until(dealer, b"refused")
        assert (refused["of"], refused["error_type"]) == ("steer", "overloaded")
    answer(dealer, b"1", call, result=1)
    heard = json.loads(until(dealer, b"complete")["result"])[1:]
    assert heard == [{"heard": f"more {number}"} for number in range(MAX_STEERS)]


def test_the_size_of_waiting_steer_messages_is_bounded(dealer):
    dealer.send(b"run", b"1", None, asking(calls("weather", place="Oslo"), WEATHER))
    until(dealer, b"tool_call")
    for _ in range(5):
        steer(dealer, b"1", "x" * (MAX_STEER_BYTES // 4))
    assert until(dealer, b"refused")["error_type"] == "overloaded"
    assert until(dealer, b"refused")["error_type"] == "overloaded"
    steer(dealer, b"1", [])
    assert "/content: is empty" in until(dealer, b"refused")["message"]
    dealer.send(b"cancel", b"1")
    assert dealer.until_end(b"1")[-1][1]["error_type"] == "cancelled"
