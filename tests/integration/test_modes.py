"""The three modes of a real daemon: messages, their order, and the end of a run."""

from __future__ import annotations

import pytest

from axon_zmq import AxonError, Client
from axon_zmq.events import Chunk, Complete
from axon_zmq.protocol.kinds import MODES
from tests.support.daemon import run_in_mode


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_answers_with_result_usage_and_new_messages(dealer, mode):
    kind, body = dealer.ask(mode.encode(), b"1", None, {"agent": "echo", "prompt": "hello there"})
    assert kind == b"complete"
    assert body["result"] == "hello there"
    assert body["usage"]["requests"] == 1
    assert [message["kind"] for message in body["messages"]] == ["request", "response"]
    assert body["model"] == "echo"
    assert body["run_id"]


def test_run_stream_sends_each_delta_as_one_chunk_with_consecutive_seq(dealer):
    dealer.send(b"run_stream", b"1", None, {"agent": "echo", "prompt": "one two three"})
    messages = dealer.until_end(b"1")
    assert [body["seq"] for _, body in messages] == [1, 2, 3, 4]
    assert [body["data"] for kind, body in messages if kind == b"chunk"] == ["one", " two", " three"]
    assert {(body["type"], body["step"], body["part"]) for kind, body in messages if kind == b"chunk"} == {
        ("text", 1, 0)
    }


def test_thinking_is_sent_in_separate_chunks(client: Client):
    events = list(client.stream("thinker", "?"))
    assert [(e.type, e.data) for e in events if isinstance(e, Chunk)] == [
        ("thinking", "let me "),
        ("thinking", "think"),
        ("text", "the "),
        ("text", "answer"),
    ]
    assert events[-1].result == "the answer"


def test_tool_events_partial_output_and_steps_are_sent(client: Client):
    *chunks, complete = client.stream("weather", "Oslo?")
    kinds = [chunk.type for chunk in chunks]
    assert kinds[:2] == ["tool_started", "tool_finished"]
    assert set(kinds[2:]) == {"output"}
    assert chunks[0].data["name"] == "temperature"
    assert chunks[0].data["args"] == {"place": "Oslo"}
    assert chunks[1].data["outcome"] == "success"
    assert chunks[1].data["call_id"] == chunks[0].data["call_id"]
    assert [chunk.step for chunk in chunks] == [1, 1] + [2] * (len(chunks) - 2)
    assert chunks[-1].data == complete.result == {"summary": "Oslo: -3 °C", "celsius": {"Oslo": -3.0}}


def test_events_are_those_of_pydantic_ai(client: Client):
    *chunks, complete = client.stream("weather", "Oslo?", events="all")
    assert {chunk.type for chunk in chunks} == {"event"}
    kinds = [chunk.data["event_kind"] for chunk in chunks]
    assert kinds[0] == "part_start"
    assert {"part_delta", "function_tool_call", "function_tool_result", "final_result"} <= set(kinds)
    assert isinstance(complete, Complete)


@pytest.mark.parametrize("mode", MODES)
def test_a_conversation_continues_from_its_messages(client: Client, mode):
    first = run_in_mode(client, mode, "echo", "my name is Ada")
    second = run_in_mode(client, mode, "echo", "and yours?", message_history=first.messages)
    assert len(second.messages) == 2  # only the new messages
    third = run_in_mode(client, mode, {"model": "echo"}, None, message_history=[*first.messages, second.messages[0]])
    assert third.result == "and yours?"


@pytest.mark.parametrize("mode", MODES)
def test_bytes_and_datetimes_keep_their_types(client: Client, mode):
    parts = ["see ", {"kind": "binary", "data": b"\x89PNG\x00\xff", "media_type": "image/png"}]
    done = run_in_mode(client, mode, "echo", parts)
    content = done.messages[0]["parts"][0]["content"]
    assert content[1]["data"] == b"\x89PNG\x00\xff"
    assert done.messages[0]["parts"][0]["timestamp"].tzinfo is not None
    again = run_in_mode(client, mode, "echo", "more", message_history=done.messages)
    assert again.result == "more"


@pytest.mark.parametrize("mode", MODES)
def test_deps_are_validated_by_the_agents_type(client: Client, mode):
    assert run_in_mode(client, mode, "typed", "?", deps={"name": "Ada", "age": 36}).result == "deps: Ada is 36"
    with pytest.raises(AxonError) as caught:
        run_in_mode(client, mode, "typed", "?", deps={"name": "Ada", "age": "old"})
    assert caught.value.error_type == "invalid_request"
    assert caught.value.details["errors"][0]["pointer"] == "/deps/age"


@pytest.mark.parametrize("mode", MODES)
def test_a_raising_tool_is_named_and_the_earlier_messages_are_kept(client: Client, mode):
    with pytest.raises(AxonError) as caught:
        run_in_mode(client, mode, "raising", "?")
    assert caught.value.error_type == "tool_failed"
    assert "divide" in caught.value.message
    assert caught.value.details["partial"]["messages"][1]["parts"][0]["tool_name"] == "divide"


@pytest.mark.parametrize("mode", MODES)
def test_an_agent_that_raises_asyncio_exceptions_still_gets_a_terminal_message(dealer, mode):
    kind, body = dealer.ask(mode.encode(), b"1", None, {"agent": "cancelling", "prompt": "?"})
    assert kind == b"error"
    assert body["error_type"] in ("internal", "tool_failed", "cancelled")


@pytest.mark.parametrize("mode", MODES)
def test_a_result_that_msgpack_cannot_represent_is_one_clear_error(dealer, mode):
    body = {"agent": "echo", "prompt": f'{{"response": {2**70}}}', "output_schema": {"type": "integer"}}
    dealer.send(mode.encode(), b"1", None, body)
    kind, body = dealer.until_end(b"1")[-1]
    assert (kind, body["error_type"]) == (b"error", "invalid_output")
    assert "msgpack" in body["message"]


def test_an_agent_whose_deps_have_no_schema_is_described_and_runs_without_deps(client: Client):
    assert client.describe("opaque")["opaque"]["deps_schema"] is None
