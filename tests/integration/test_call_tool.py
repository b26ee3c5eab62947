"""`call_tool`: one Python tool is called without a model."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from tests.support.daemon import Dealer, running, wait_until


def call(dealer: Dealer, tool: str, args=None, header=None, id=b"1", **more):
    return dealer.ask(b"call_tool", id, header, {"tool": tool, "args": args or {}, **more})


def test_call_tool_calls_a_tool_of_an_agent(dealer):
    kind, done = call(dealer, "temperature", {"place": "Oslo"}, agent="weather")
    assert (kind, done["result"]) == (b"complete", {"place": "Oslo", "celsius": -3.0})
    assert (done["seq"], done["messages"], done["usage"]["requests"], done["usage"]["tool_calls"]) == (1, [], 0, 1)


def test_without_an_agent_the_agent_that_has_the_tool_is_found(dealer):
    assert call(dealer, "temperature", {"place": "Oslo"})[1]["result"]["celsius"] == -3.0


def test_deps_of_call_tool_are_those_of_the_agent(dealer):
    assert call(dealer, "temperature", {"place": "Oslo"}, deps={"Oslo": 4.5})[1]["result"]["celsius"] == 4.5
    assert call(dealer, "who", deps={"name": "Ada", "age": 36}, id=b"2")[1]["result"] == "Ada is 36"
    kind, error = call(dealer, "who", deps={"name": "Ada"}, id=b"3")
    assert (kind, error["details"]["errors"][0]["pointer"]) == (b"error", "/deps/age")


@pytest.mark.parametrize(
    ("body", "error_type", "text"),
    [
        ({"tool": "temperature", "args": {"place": 7}}, "invalid_request", "/args/place"),
        ({"tool": "temperature", "args": {}}, "invalid_request", "/args/place"),
        ({"tool": "temperature", "args": [1]}, "invalid_request", "/args"),
        ({"args": {}}, "invalid_request", "/tool: is missing"),
        ({"tool": "temperature", "function": "x"}, "invalid_request", "/function: is unknown"),
        ({"tool": "temperatur"}, "unknown_tool", "temperature"),
        ({"tool": "temperature", "agent": "echo"}, "unknown_tool", "temperature"),
        ({"tool": "temperature", "agent": "wether"}, "unknown_agent", "weather"),
        ({"tool": "temperature", "args": {"place": "Atlantis"}}, "tool_failed", "no temperature for 'Atlantis'"),
        ({"tool": "divide", "agent": "raising"}, "tool_failed", "ZeroDivisionError"),
        ({"tool": "impatient", "agent": "callable"}, "tool_timeout", "Timed out"),
        ({"tool": "elsewhere", "agent": "callable"}, "invalid_request", "not executed here"),
        ({"tool": "broken", "agent": "callable"}, "tool_failed", "out of order"),
    ],
)
def test_failures_of_call_tool_are_named(dealer, body, error_type, text):
    kind, error = dealer.ask(b"call_tool", b"1", None, body)
    assert (kind, error["error_type"]) == (b"error", error_type), error
    assert text in error["message"]


def test_call_tool_needs_no_approval(dealer):
    assert call(dealer, "refund", {"euros": 3}, agent="careful")[1]["result"] == "refunded 3"


def test_content_and_metadata_of_a_tool_result_are_kept(dealer):
    done = call(dealer, "picture", agent="callable")[1]
    assert done["result"] == "a dot"
    assert done["content"][0]["data"] == b"\x89PNG"
    assert done["metadata"] == {"size": 1}


def test_call_tool_can_be_cancelled_and_has_a_deadline(dealer):
    dealer.send(b"call_tool", b"1", {"ack": True}, {"tool": "sleep", "agent": "callable"})
    assert dealer.recv()[0] == b"accepted"
    dealer.send(b"steer", b"1", None, {"content": "hurry"})
    assert "no model" in dealer.recv()[2]["message"]
    kind, error = dealer.ask(b"cancel", b"1")
    assert (kind, error["error_type"]) == (b"error", "cancelled")
    kind, error = call(dealer, "sleep", agent="callable", header={"timeout_ms": 100}, id=b"2")
    assert (kind, error["error_type"]) == (b"error", "deadline_exceeded")
    wait_until(lambda: dealer.ask(b"ping", b"p")[1]["modes"]["run"]["free"] == 256, "the slots")


def test_a_repeated_call_tool_gets_the_same_answer(dealer):
    dealer.send(b"call_tool", b"1", None, {"tool": "temperature", "args": {"place": "Rome"}})
    done = dealer.until_end(b"1")[-1]
    dealer.send(b"call_tool", b"1", None, {"tool": "temperature", "args": {"place": "Rome"}})
    again = dealer.until_end(b"1")
    assert [kind for kind, _ in again] == [b"accepted", b"resumed", b"complete"]
    assert again[-1] == done


ROME = {"tool": "temperature", "args": {"place": "Rome"}}


def test_call_tool_waits_for_a_worker_of_mode_run():
    with running("run_sync") as own, Dealer(own.endpoint) as dealer:
        own.start_worker("run")

        def called() -> dict[str, Any] | None:
            kind, body = dealer.ask(b"call_tool", b"%d" % next(ids), None, ROME)
            # A request waits 10 s for a worker; on a busy machine the worker may take longer to start.
            assert kind == b"complete" or body["error_type"] == "no_worker"
            return body if kind == b"complete" else None

        ids = count()
        assert wait_until(called, "the worker")["result"]["celsius"] == 13.0
        assert "call_tool" not in own.log("run_sync-1")
