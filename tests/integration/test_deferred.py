"""Runs that end with deferred calls and continue later, on any worker and on another daemon."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.client_tools import MODE_KINDS, WEATHER, answer, asking, calls, until
from tests.support.daemon import Dealer, running

DEFERRED = {**WEATHER, "mode": "deferred"}
APPROVED = {**WEATHER, "approval": True}
REFUND = {"agent": "careful", "prompt": "?"}
"""An agent whose Python tool `refund` requires approval."""


def pending(dealer: Dealer, mode: bytes, id: bytes, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run an agent until its deferred calls; returns these calls, and the body of the run that continues."""
    dealer.send(mode, id, None, body)
    done = until(dealer, b"complete")
    assert "result" not in done
    return done["deferred"], {**body, "prompt": None, "message_history": done["messages"]}


def go_on(dealer: Dealer, mode: bytes, id: bytes, body: dict[str, Any], **results: Any) -> None:
    dealer.send(mode, id, None, {**body, "deferred_tool_results": results})


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_deferred_tool_ends_the_run_and_its_result_continues_it(dealer, mode):
    deferred, more = pending(dealer, mode, b"1", asking(calls("weather", place="Oslo"), DEFERRED))
    [call] = deferred["calls"]
    assert (call["name"], call["args"], deferred["approvals"]) == ("weather", {"place": "Oslo"}, [])
    go_on(dealer, mode, b"2", more, calls={call["call_id"]: {"celsius": -3}})
    assert json.loads(until(dealer, b"complete")["result"]) == [{"celsius": -3}]


@pytest.mark.parametrize(
    ("result", "outcome", "content"),
    [
        ({"kind": "tool-failed", "message": "out of order"}, "failed", "out of order"),
        ({"kind": "model-retry", "message": "which Oslo?"}, "retried", "which Oslo?"),
        ({"kind": "tool-return", "return_value": 5, "metadata": {"m": b"\x00"}}, "success", 5),
    ],
)
def test_the_result_of_a_deferred_tool_may_have_content_or_be_a_failure(dealer, result, outcome, content):
    deferred, more = pending(dealer, b"run", b"1", asking(calls("weather", place="Oslo"), DEFERRED))
    go_on(dealer, b"run", b"2", more, calls={deferred["calls"][0]["call_id"]: result})
    returned = until(dealer, b"complete")["messages"][0]["parts"][0]
    assert (returned["outcome"], returned["content"]) == (outcome, content)
    if outcome == "success":
        assert returned["metadata"] == {"m": b"\x00"}


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_an_approved_call_of_a_live_tool_goes_to_the_client(dealer, mode):
    deferred, more = pending(dealer, mode, b"1", asking(calls("weather", place="Oslo"), APPROVED))
    [call] = deferred["approvals"]
    override = {"kind": "tool-approved", "override_args": {"place": "Bergen"}}
    go_on(dealer, mode, b"2", more, approvals={call["call_id"]: override})
    live = until(dealer, b"tool_call")
    assert live["args"] == {"place": "Bergen"}
    answer(dealer, b"2", live, result=8)
    assert json.loads(until(dealer, b"complete")["result"]) == [8]


def test_an_approved_call_of_a_deferred_tool_is_deferred(dealer):
    tool = {**DEFERRED, "approval": True}
    deferred, more = pending(dealer, b"run", b"1", asking(calls("weather", place="Oslo"), tool))
    call_id = deferred["approvals"][0]["call_id"]
    go_on(dealer, b"run", b"2", more, approvals={call_id: True})
    again = until(dealer, b"complete")
    assert [call["call_id"] for call in again["deferred"]["calls"]] == [call_id]
    go_on(dealer, b"run", b"3", more, calls={call_id: 5})
    assert json.loads(until(dealer, b"complete")["result"]) == [5]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_python_tool_may_require_approval(dealer, mode):
    deferred, more = pending(dealer, mode, b"1", REFUND)
    [call] = deferred["approvals"]
    assert (call["name"], call["args"]) == ("refund", {"euros": 12})
    go_on(dealer, mode, b"2", more, approvals={call["call_id"]: True})
    assert until(dealer, b"complete")["result"] == "refunded 12"
    go_on(dealer, mode, b"3", more, approvals={call["call_id"]: {"kind": "tool-denied", "message": "too much"}})
    assert until(dealer, b"complete")["result"] == "too much"
    go_on(dealer, mode, b"4", more, approvals={call["call_id"]: False})
    assert "denied" in until(dealer, b"complete")["result"]
    override = {"kind": "tool-approved", "override_args": {"euros": 5}}
    go_on(dealer, mode, b"5", more, approvals={call["call_id"]: override})
    assert until(dealer, b"complete")["result"] == "refunded 5"


@pytest.mark.parametrize(
    ("results", "pointer"),
    [
        ({"calls": {"nonesuch": 1}}, "/deferred_tool_results/calls/nonesuch"),
        ({"approvals": {"ID": True}}, "/deferred_tool_results/approvals/ID"),
        ({"calls": {"ID": "cold"}}, "/deferred_tool_results/calls/ID"),
        (
            {"calls": {"ID": {"kind": "tool-return", "return_value": "cold"}}},
            "/deferred_tool_results/calls/ID/return_value",
        ),
        ({"results": {}}, "/deferred_tool_results/results"),
        ({"approvals": {"ID": "yes"}}, "/deferred_tool_results/approvals/ID"),
    ],
)
def test_invalid_results_are_named(dealer, results, pointer):
    tool = {**DEFERRED, "returns": {"type": "number"}}
    deferred, more = pending(dealer, b"run", b"1", asking(calls("weather", place="Oslo"), tool))
    call_id = deferred["calls"][0]["call_id"]
    go_on(dealer, b"run", b"2", more, **json.loads(json.dumps(results).replace("ID", call_id)))
    error = until(dealer, b"error")
    assert error["error_type"] == "invalid_request"
    assert error["details"]["errors"][0]["pointer"].startswith(pointer.replace("ID", call_id))


def test_invalid_arguments_with_an_approval_are_named(dealer):
    deferred, more = pending(dealer, b"run", b"1", asking(calls("weather", place="Oslo"), APPROVED))
    call_id = deferred["approvals"][0]["call_id"]
    go_on(dealer, b"run", b"2", more, approvals={call_id: {"kind": "tool-approved", "override_args": {"place": 7}}})
    error = until(dealer, b"error")
    assert error["details"]["errors"][0]["pointer"] == f"/deferred_tool_results/approvals/{call_id}/override_args/place"


def test_results_without_a_history_or_for_some_calls_only_are_rejected(dealer):
    kind, error = dealer.ask(b"run", b"1", None, asking("[]", DEFERRED, deferred_tool_results={"calls": {}}))
    assert (kind, error["details"]["errors"][0]["pointer"]) == (b"error", "/message_history")
    deferred, more = pending(dealer, b"run", b"2", asking(calls("weather", "weather", place="Oslo"), DEFERRED))
    go_on(dealer, b"run", b"3", more, calls={deferred["calls"][0]["call_id"]: 1})
    error = until(dealer, b"error")
    assert error["error_type"] == "invalid_request"
    assert deferred["calls"][1]["call_id"] in error["message"]


@pytest.mark.parametrize("tool", [DEFERRED, APPROVED])
def test_a_run_that_continues_without_the_tools_fails_with_a_reason(dealer, tool):
    deferred, more = pending(dealer, b"run", b"1", asking(calls("weather", place="Oslo"), tool))
    [call] = deferred["calls"] + deferred["approvals"]
    results = {"calls": {call["call_id"]: 5}} if tool is DEFERRED else {"approvals": {call["call_id"]: True}}
    go_on(dealer, b"run", b"2", {**more, "tools": None}, **results)
    error = until(dealer, b"error")
    assert (error["error_type"], "send the same tools" in error["message"]) == ("invalid_request", True)


def test_structured_output_and_deferred_calls_work_in_one_run(dealer):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    script = [[{"name": "weather", "args": {"place": "Oslo"}}], [{"name": "final_result", "args": {"n": 5}}]]
    body = asking(json.dumps(script), DEFERRED, output_schema=schema)
    deferred, more = pending(dealer, b"run", b"1", body)
    go_on(dealer, b"run", b"2", more, calls={deferred["calls"][0]["call_id"]: 1})
    assert until(dealer, b"complete")["result"] == {"n": 5}


def test_a_run_continues_after_a_restart_of_the_whole_daemon():
    with running("run") as before, Dealer(before.endpoint) as dealer:
        deferred, more = pending(dealer, b"run", b"1", asking(calls("weather", place="Oslo"), DEFERRED))
    with running("run_stream") as after, Dealer(after.endpoint) as dealer:
        go_on(dealer, b"run_stream", b"2", more, calls={deferred["calls"][0]["call_id"]: 4})
        assert json.loads(until(dealer, b"complete")["result"]) == [4]


def test_an_approval_for_a_call_that_needs_a_result_is_rejected(dealer):
    body = {"agent": "callable", "prompt": "elsewhere"}
    deferred, more = pending(dealer, b"run", b"1", body)
    call_id = deferred["calls"][0]["call_id"]
    go_on(dealer, b"run", b"2", more, approvals={call_id: True})
    error = until(dealer, b"error")
    assert (error["error_type"], "move the entry to calls" in error["message"]) == ("invalid_request", True)
    go_on(dealer, b"run", b"3", more, calls={call_id: "from elsewhere"})
    assert until(dealer, b"complete")["result"] == "from elsewhere"


@pytest.mark.parametrize(
    ("approvals", "pointer", "reason"),
    [
        ({"ID": "yes"}, "ID", "must be true, false, or a map whose kind is tool-approved or tool-denied"),
        ({"ID": {"kind": "approved"}}, "ID", "must be true, false, or a map"),
        ({"ID": {"kind": ["tool-approved"]}}, "ID", "must be true, false, or a map"),
        ({"ID": {"kind": "tool-approved", "override_args": 5}}, "ID/override_args", "valid dictionary"),
        ({"ID": {"kind": "tool-denied", "message": 5}}, "ID/message", "valid string"),
        ({"ID": {"kind": "tool-approved", "override_args": {"place": 7}}}, "ID/override_args/place", "not of type"),
        ({"un/known": True}, "un~1known", "the last response in message_history has no tool call"),
    ],
)
def test_an_invalid_decision_is_reported_in_our_words(dealer, approvals, pointer, reason):
    history = [
        {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "[]"}]},
        {
            "kind": "response",
            "parts": [{"part_kind": "tool-call", "tool_name": "weather", "args": {}, "tool_call_id": "x/y~z"}],
        },
    ]
    given = {"approvals": {"x/y~z" if id == "ID" else id: decision for id, decision in approvals.items()}}
    body = asking(None, APPROVED, message_history=history, deferred_tool_results=given)
    _, error = dealer.ask(b"run", b"1", None, body)
    [fault] = error["details"]["errors"]
    assert fault["pointer"] == "/deferred_tool_results/approvals/" + pointer.replace("ID", "x~1y~0z")
    assert reason in fault["message"]
