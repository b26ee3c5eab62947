"""Client tools against a real daemon: calls, answers and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.client_tools import MODE_KINDS, WEATHER, answer, asking, calls, failed, until
from tests.support.daemon import Dealer


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_run_waits_for_the_client_and_the_model_continues(dealer, mode):
    dealer.send(mode, b"1", None, asking(calls("weather", place="Oslo"), WEATHER))
    call = until(dealer, b"tool_call")
    assert (call["name"], call["args"]) == ("weather", {"place": "Oslo"})
    answer(dealer, b"1", call, result={"celsius": -3})
    done = until(dealer, b"complete")
    assert json.loads(done["result"]) == [{"celsius": -3}]
    assert done["seq"] > call["seq"]
    assert done["usage"]["tool_calls"] == 1


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_calls_of_one_step_are_open_together_and_answered_in_any_order(dealer, mode):
    other = {**WEATHER, "name": "tides"}
    dealer.send(mode, b"1", None, asking(calls("weather", "tides", "weather", place="Oslo"), WEATHER, other))
    open_calls = [until(dealer, b"tool_call") for _ in range(3)]
    assert len({call["call_id"] for call in open_calls}) == 3
    for number, call in reversed(list(enumerate(open_calls))):
        answer(dealer, b"1", call, result=number)
    assert json.loads(until(dealer, b"complete")["result"]) == [0, 1, 2]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_sequential_tools_are_called_one_after_the_other(dealer, mode):
    tool = {**WEATHER, "sequential": True}
    dealer.send(mode, b"1", None, asking(calls("weather", "weather", place="Oslo"), tool))
    first = until(dealer, b"tool_call")
    answer(dealer, b"1", {"call_id": "none such"}, result=0)
    until(dealer, b"refused")  # messages arrive in order: a second call would have arrived before
    answer(dealer, b"1", first, result=1)
    answer(dealer, b"1", until(dealer, b"tool_call"), result=2)
    assert json.loads(until(dealer, b"complete")["result"]) == [1, 2]


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_tool_timeout_is_retried_by_the_model_and_ends_the_run_without_retries(dealer, mode):
    tool = {**WEATHER, "timeout_ms": 50}
    dealer.send(mode, b"1", None, asking(json.dumps([[{"name": "weather", "args": {"place": "Oslo"}}]] * 3), tool))
    calls_made = []
    for _ in range(2):
        calls_made.append(until(dealer, b"tool_call"))
        assert until(dealer, b"tool_cancelled")["call_id"] == calls_made[-1]["call_id"]
    error = failed(dealer)
    assert (error["error_type"], error["retryable"]) == ("tool_timeout", True)
    assert error["details"]["tool"] == "weather"
    assert "weather" in error["message"]
    told = [part for message in error["details"]["partial"]["messages"] for part in message["parts"]]
    assert any("did not answer within 50 ms" in str(part.get("content")) for part in told)


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_model_may_recover_from_a_tool_timeout(dealer, mode):
    tool = {**WEATHER, "timeout_ms": 50}
    dealer.send(mode, b"1", None, asking(calls("weather", place="Oslo"), tool))
    late = until(dealer, b"tool_call")
    until(dealer, b"tool_cancelled")
    done = until(dealer, b"complete")
    assert "did not answer within 50 ms" in done["result"]
    answer(dealer, b"1", late, result=1)
    assert until(dealer, b"refused")["of"] == "tool_result"


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_retryable_error_goes_to_the_model_until_its_retries_are_used(dealer, mode):
    dealer.send(mode, b"1", None, asking(json.dumps([[{"name": "weather", "args": {"place": "?"}}]] * 3), WEATHER))
    for _ in range(2):
        answer(dealer, b"1", until(dealer, b"tool_call"), error={"message": "no such place", "retry": True})
    error = failed(dealer)
    assert error["error_type"] == "tool_failed"
    assert "no such place" in error["message"]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_final_error_tells_the_model_that_the_tool_failed(dealer, mode):
    dealer.send(mode, b"1", None, asking(calls("weather", place="Oslo"), WEATHER))
    answer(dealer, b"1", until(dealer, b"tool_call"), error={"message": "the station is down", "retry": False})
    done = until(dealer, b"complete")
    assert json.loads(done["result"]) == ["the station is down"]
    returned = done["messages"][2]["parts"][0]
    assert returned["outcome"] == "failed"


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_content_and_metadata_of_a_result_reach_model_and_application(dealer, mode):
    dealer.send(mode, b"1", None, asking(calls("weather", place="Oslo"), WEATHER))
    picture = {"kind": "binary", "data": b"\x89PNG\xff", "media_type": "image/png"}
    call = until(dealer, b"tool_call")
    answer(dealer, b"1", call, result="cold", content=["look:", picture], metadata={"station": 7, "raw": b"\x00"})
    done = until(dealer, b"complete")
    assert json.loads(done["result"]) == ["cold", {"heard": "look: [binary]"}]
    returned, shown = done["messages"][2]["parts"]
    assert returned["metadata"] == {"station": 7, "raw": b"\x00"}
    assert shown["content"][1]["data"] == picture["data"]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_cancelling_a_run_that_waits_for_a_tool_cancels_the_call(dealer, mode):
    dealer.send(mode, b"1", None, asking(calls("weather", place="Oslo"), WEATHER))
    call = until(dealer, b"tool_call")
    dealer.send(b"cancel", b"1")
    assert until(dealer, b"tool_cancelled")["call_id"] == call["call_id"]
    assert failed(dealer)["error_type"] == "cancelled"
    answer(dealer, b"1", call, result=1)
    refused = until(dealer, b"refused")
    assert (refused["of"], refused["call_id"]) == ("tool_result", call["call_id"])
    assert "ended" in refused["message"]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_tool_that_never_answers_ends_with_its_run_at_the_deadline(dealer, mode):
    dealer.send(mode, b"1", {"timeout_ms": 200}, asking(calls("weather", place="Oslo"), WEATHER))
    call = until(dealer, b"tool_call")
    assert until(dealer, b"tool_cancelled")["call_id"] == call["call_id"]
    error = failed(dealer)
    assert error["error_type"] == "deadline_exceeded"
    assert error["details"]["partial"]["messages"][1]["parts"][0]["tool_name"] == "weather"


def test_late_repeated_unknown_and_foreign_answers_are_refused_with_a_reason(dealer, daemon):
    dealer.send(b"run", b"1", None, asking(calls("weather", "weather", place="Oslo"), WEATHER))
    first, second = until(dealer, b"tool_call"), until(dealer, b"tool_call")
    answer(dealer, b"1", first, result=1)
    answer(dealer, b"1", first, result=2)
    repeated = until(dealer, b"refused")
    assert (repeated["error_type"], repeated["call_id"]) == ("unknown_request", first["call_id"])
    assert "answered already" in repeated["message"]
    answer(dealer, b"1", {"call_id": "never"}, result=2)
    assert "never made" in until(dealer, b"refused")["message"]
    dealer.send(b"tool_result", b"1", {}, {"result": 1})
    assert "call_id" in until(dealer, b"refused")["message"]
    with Dealer(daemon.endpoint) as stranger:
        answer(stranger, b"1", second, result="stolen")
        assert stranger.recv()[2]["error_type"] == "unknown_request"
    answer(dealer, b"1", second, result=3)
    assert json.loads(until(dealer, b"complete")["result"]) == [1, 3]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_result_that_does_not_match_returns_is_refused_and_may_be_corrected(dealer, mode):
    returns = {"type": "object", "properties": {"celsius": {"type": "number"}}, "required": ["celsius"]}
    dealer.send(mode, b"1", None, asking(calls("weather", place="Oslo"), {**WEATHER, "returns": returns}))
    call = until(dealer, b"tool_call")
    answer(dealer, b"1", call, result={"celsius": "cold"})
    refused = until(dealer, b"refused")
    assert (refused["error_type"], refused["call_id"]) == ("invalid_request", call["call_id"])
    assert refused["message"].startswith("/result/celsius: ")
    answer(dealer, b"1", call, rezult=1)
    assert until(dealer, b"refused")["message"].startswith("/rezult: is unknown")
    answer(dealer, b"1", call, result={"celsius": 1}, error={"message": "both"})
    assert until(dealer, b"refused")["message"].startswith("/error: ")
    answer(dealer, b"1", call, result={"celsius": -3})
    assert json.loads(until(dealer, b"complete")["result"]) == [{"celsius": -3}]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_arguments_that_do_not_match_the_parameters_go_back_to_the_model(dealer, mode):
    script = [[{"name": "weather", "args": {"place": 7}}], [{"name": "weather", "args": {"place": "Oslo"}}]]
    dealer.send(mode, b"1", None, asking(json.dumps(script), WEATHER))
    call = until(dealer, b"tool_call")  # the first call was never sent
    assert call["args"] == {"place": "Oslo"}
    answer(dealer, b"1", call, result=1)
    done = until(dealer, b"complete")
    [fault] = done["messages"][2]["parts"][0]["content"]
    assert fault["msg"] == "/place: 7 is not of type 'string'"


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_parameters_and_returns_may_be_recursive(dealer, mode):
    """A tree of folders is validated at every depth, in the arguments and in the result."""
    folder = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "folders": {"type": "array", "items": {"$ref": "#/$defs/folder"}}},
        "required": ["name"],
    }
    schema = {"$ref": "#/$defs/folder", "$defs": {"folder": folder}}
    tool = {"name": "save", "parameters": schema, "returns": schema}
    right, wrong = ({"name": "a", "folders": [{"name": "b", "folders": [{"name": name}]}]} for name in ("c", 7))
    script = [[{"name": "save", "args": wrong}], [{"name": "save", "args": right}]]
    dealer.send(mode, b"1", None, asking(json.dumps(script), tool))
    call = until(dealer, b"tool_call")
    assert call["args"] == right
    answer(dealer, b"1", call, result=wrong)
    refused = until(dealer, b"refused")
    assert refused["message"] == "/result/folders/0/folders/0/name: 7 is not of type 'string'"
    answer(dealer, b"1", call, result=right)
    done = until(dealer, b"complete")
    assert json.loads(done["result"])[-1] == right
    [fault] = done["messages"][2]["parts"][0]["content"]
    assert fault["msg"] == "/folders/0/folders/0/name: 7 is not of type 'string'"


@pytest.mark.parametrize("mode", MODE_KINDS)
@pytest.mark.parametrize("args", ["not JSON", '{"place": ', "[1]", '{"place": "Oslo"} and more'])
def test_arguments_that_are_not_a_json_object_end_the_run_with_a_reason(dealer, mode, args):
    script = [[{"name": "weather", "args": args}]] * 2
    dealer.send(mode, b"1", None, asking(json.dumps(script), WEATHER))
    error = failed(dealer)
    assert (error["error_type"], error["details"]["errors"] != []) == ("model_behavior", True)


@pytest.mark.parametrize(
    ("tools", "pointer", "text"),
    [
        ([WEATHER, WEATHER], "/tools/1/name", "duplicate tool name"),
        ([{**WEATHER, "name": f"t{n}"} for n in range(1000)], "/tools", "256"),
        ([{"name": "no spaces"}], "/tools/0/name", "pattern"),
        ([{**WEATHER, "parameters": {"type": "string"}}], "/tools/0/parameters/type", "object"),
        ([{**WEATHER, "parameters": {"type": "object", "properties": 3}}], "/tools/0/parameters/properties", "3"),
        ([{**WEATHER, "returns": {"$ref": "https://example.org/x"}}], "/tools/0/returns", "into the schema itself"),
        ([{**WEATHER, "mode": "sometimes"}], "/tools/0/mode", "live"),
        ([{**WEATHER, "timeout_ms": 0}], "/tools/0/timeout_ms", "greater"),
        ([{**WEATHER, "function": "os.system"}], "/tools/0/function", "unknown"),
    ],
)
def test_invalid_tools_are_named(dealer, tools, pointer, text):
    kind, error = dealer.ask(b"run", b"1", None, asking("[]", *tools))
    assert (kind, error["error_type"]) == (b"error", "invalid_request")
    assert error["details"]["errors"][0]["pointer"] == pointer
    assert text in error["message"]


def test_schemas_too_large_or_nested_too_deep_are_rejected(dealer):
    large = {"type": "object", "description": "x" * 300_000}
    kind, error = dealer.ask(b"run", b"1", None, asking("[]", {"name": "a", "parameters": large}))
    assert (kind, error["error_type"]) == (b"error", "too_large")
    assert "/tools/0/parameters" in error["message"]
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(100):
        deep = {"type": "object", "properties": {"a": deep}}
    kind, error = dealer.ask(b"run", b"2", None, asking("[]", {"name": "a", "parameters": deep}))
    assert (kind, error["error_type"]) == (b"error", "invalid_request")
    assert "nested" in error["message"]


def test_the_tools_of_a_request_share_one_cost_limit_and_delay_no_other_run(dealer):
    properties = {f"p{number}": {"type": "string", "description": "x" * 50} for number in range(500)}
    heavy = [
        {"name": f"t{number}", "parameters": {"type": "object", "properties": {**properties, str(number): {}}}}
        for number in range(60)
    ]
    dealer.send(b"run", b"1", None, asking("[]", *heavy))
    dealer.send(b"run", b"2", None, {"agent": "echo", "prompt": "meanwhile"})
    assert dealer.recv()[:2] == (b"complete", b"2")  # it arrived later and is finished first
    error = dealer.recv()[2]
    assert error["error_type"] == "invalid_request"
    assert error["details"]["errors"][0]["pointer"].startswith("/tools/")


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_tool_with_the_name_of_a_tool_of_the_agent_is_rejected(dealer, mode):
    tool = {**WEATHER, "name": "temperature"}
    kind, error = dealer.ask(mode, b"1", None, {"agent": "weather", "prompt": "Oslo", "tools": [tool]})
    assert (kind, error["error_type"]) == (b"error", "invalid_request")
    assert "temperature" in error["message"]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_large_result_is_validated_in_a_thread_and_delays_no_other_run(dealer, mode):
    returns = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    dealer.send(mode, b"1", None, asking(calls("weather", place="Oslo"), {**WEATHER, "returns": returns}))
    call = until(dealer, b"tool_call")
    large = list(range(100_000))
    answer(dealer, b"1", call, result=[*large, -1])
    dealer.send(mode, b"2", None, {"agent": "echo", "prompt": "meanwhile"})
    kinds = [dealer.recv()[:2] for _ in range(3 if mode == b"run_stream" else 2)]
    assert {(b"refused", b"1"), (b"complete", b"2")} <= set(kinds)
    answer(dealer, b"1", call, result=large)
    assert len(json.loads(until(dealer, b"complete")["result"])[0]) == 100_000


def test_the_timeout_is_paused_while_a_large_answer_is_validated(dealer):
    returns = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    tool = {**WEATHER, "returns": returns, "timeout_ms": 300}
    dealer.send(b"run", b"1", None, asking(calls("weather", place="Oslo"), tool))
    call = until(dealer, b"tool_call")
    large = list(range(100_000))  # its validation takes longer than the timeout of the tool
    answer(dealer, b"1", call, result=large)
    answer(dealer, b"1", call, result=[1])
    assert "answered already" in until(dealer, b"refused")["message"]
    assert len(json.loads(until(dealer, b"complete")["result"])[0]) == 100_000


def test_a_repeated_call_id_in_a_run_is_distinguished(dealer):
    body = {"agent": "same_ids", "prompt": "?", "tools": [WEATHER]}
    dealer.send(b"run", b"1", None, body)
    first = until(dealer, b"tool_call")
    answer(dealer, b"1", first, result=1)
    second = until(dealer, b"tool_call")
    assert first["call_id"] != second["call_id"]
    answer(dealer, b"1", first, result="late")
    assert "answered already" in until(dealer, b"refused")["message"]
    answer(dealer, b"1", second, result=2)
    assert until(dealer, b"complete")["result"] == "1 2"
