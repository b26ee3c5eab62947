"""Prompts, messages and events of every type that pydantic-ai has, through a daemon and back."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from axon_zmq import Client
from axon_zmq.protocol.kinds import MODES
from tests.support.content import (
    AT,
    MAPS,
    MESSAGES,
    RAW,
    packed,
    unpacked,
)
from tests.support.daemon import Daemon, Dealer, run_in_mode, running

ODD_AGENT = """
    import dataclasses, threading
    from datetime import UTC, datetime
    from decimal import Decimal
    from uuid import UUID
    from pydantic import BaseModel
    from pydantic_ai import Agent, ToolReturn
    from pydantic_ai.messages import BinaryContent, ModelResponse, TextContent, TextPart, ToolCallPart
    from pydantic_ai.models.function import DeltaToolCall, FunctionModel

    ARGS = {"n": 2**70}

    class Model(BaseModel):
        raw: bytes

    async def respond(messages, info):
        return ModelResponse([TextPart("done") if len(messages) > 1 else ToolCallPart("everything", ARGS)])

    async def stream(messages, info):
        yield "done" if len(messages) > 1 else {0: DeltaToolCall("everything", '{"n": %d}' % 2**70)}

    odd = Agent(FunctionModel(respond, stream_function=stream))

    @odd.tool_plain
    def everything(n: int) -> ToolReturn:
        metadata = {"lock": threading.Lock(), "n": n, "nan": float("nan")}
        metadata["self"] = metadata
        values = {"set": {1}, "decimal": Decimal("1.5"), "uuid": UUID(int=5), "model": Model(raw=b"raw"), 1: n}
        file = BinaryContent(b"\\x89PNG\\xff", media_type="image/png")
        at = datetime(2024, 2, 29, tzinfo=UTC)
        return ToolReturn(
            [values, file, at], content=[file, TextContent("x", metadata={"at": at})], metadata=metadata
        )
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with an agent whose tool leaves values of many Python types in the messages of a run."""
    folder = tmp_path_factory.mktemp("agents")
    (folder / "odd_agent.py").write_text(textwrap.dedent(ODD_AGENT))
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    with running(*MODES, AXON_AGENTS="odd=odd_agent:odd", PYTHONPATH=path) as daemon:
        yield daemon


def kind_of(part: Any) -> str:
    return part["kind"]


def wanted(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "format"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", MAPS, ids=kind_of)
def test_a_message_part_is_unchanged_after_a_round_trip_and_accepted_in_the_next_run(client: Client, mode, part):
    first = run_in_mode(client, mode, "echo", ["see", part])
    content = first.messages[0]["parts"][0]["content"]
    assert content[0] == "see"
    assert content[1].items() >= wanted(part).items()
    second = run_in_mode(client, mode, "echo", "more", message_history=first.messages)
    assert second.result == "more"
    third = run_in_mode(client, mode, "echo", content)
    assert third.messages[0]["parts"][0]["content"] == content


@pytest.mark.parametrize("mode", MODES)
def test_all_parts_and_a_history_of_every_type_pass_through_the_daemon(client: Client, mode):
    done = run_in_mode(client, mode, "echo", MAPS, message_history=unpacked(packed(MESSAGES[:2])), events="all")
    content = done.messages[0]["parts"][0]["content"]
    assert all(back.items() >= wanted(part).items() for back, part in zip(content, MAPS, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_part_that_pydantic_ai_rejects_is_named(dealer: Dealer, mode):
    prompt = ["x", {"kind": "structured-content", "value": 1, "tag": "system"}]
    _, body = dealer.ask(mode.encode(), b"1", None, {"agent": "echo", "prompt": prompt})
    assert body["error_type"] == "invalid_request"
    assert body["details"]["errors"][0]["pointer"] == "/prompt/1"


@pytest.mark.parametrize("mode", MODES)
def test_a_tool_result_and_a_steer_message_may_have_content_of_every_type(dealer: Dealer, mode):
    body = {"agent": {"model": "tools"}, "prompt": '[{"name": "look"}]', "tools": [{"name": "look"}]}
    dealer.send(mode.encode(), b"1", None, body)
    while (message := dealer.recv())[0] != b"tool_call":
        assert message[0] == b"chunk", message
    dealer.send(b"steer", b"1", None, {"content": MAPS})
    result = {"result": {"raw": b"raw", "at": AT}, "content": MAPS, "metadata": {"raw": RAW}}
    dealer.send(b"tool_result", b"1", {"call_id": message[2]["call_id"]}, result)
    *_, (kind, done) = dealer.until_end(b"1")
    assert kind == b"complete", done
    parts = [part for message in done["messages"] for part in message["parts"]]
    [returned] = [part for part in parts if part["part_kind"] == "tool-return"]
    assert (returned["content"], returned["metadata"]) == (result["result"], result["metadata"])
    said = [part["content"] for part in parts if part["part_kind"] == "user-prompt"][1:]
    assert len(said) == 2  # the content of the result, and the steer message
    for content in said:
        assert all(back.items() >= wanted(part).items() for back, part in zip(content, MAPS, strict=True))
    go_on = {"agent": "echo", "prompt": "more", "message_history": done["messages"]}
    kind, done = dealer.ask(mode.encode(), b"2", None, go_on)
    assert (kind, done["result"]) == (b"complete", "more")


@pytest.mark.parametrize("mode", MODES)
def test_a_successful_run_is_complete_whatever_its_tools_left_in_its_messages(odd: Daemon, mode):
    with Client(odd.endpoint) as client:
        done = run_in_mode(client, mode, "odd", "?")
        assert done.result == "done"
        called, returned, said = (done.messages[i]["parts"][j] for i, j in ((1, 0), (2, 0), (2, 1)))
        assert json.loads(called["args"])["n"] == 2**70 if mode == "run_stream" else called["args"] == {"n": str(2**70)}
        values, file, at = returned["content"]
        assert values == {
            "set": [1],
            "decimal": "1.5",
            "uuid": str(UUID(int=5)),
            "model": {"raw": b"raw"},
            "1": str(2**70),
        }
        assert (file["data"], at) == (b"\x89PNG\xff", datetime(2024, 2, 29, tzinfo=UTC))
        assert (returned["metadata"]["n"], returned["metadata"]["nan"]) == (str(2**70), None)
        assert "contains itself" in str(returned["metadata"]["self"])
        assert said["content"][0]["data"] == b"\x89PNG\xff"
        assert said["content"][1]["metadata"]["at"] == at
        again = run_in_mode(client, mode, "odd", "more", message_history=done.messages)
        assert again.result == "done"


@pytest.mark.parametrize("mode", MODES)
def test_a_result_that_msgpack_cannot_represent_is_one_clear_error_in_a_daemon(dealer: Dealer, mode):
    body = {"agent": "echo", "prompt": json.dumps({"response": 2**70}), "output_schema": {"type": "integer"}}
    dealer.send(mode.encode(), b"1", None, body)
    *_, (kind, error) = dealer.until_end(b"1")
    assert (kind, error["error_type"]) == (b"error", "invalid_output")
    assert "msgpack" in error["message"]


@pytest.mark.parametrize("events", ["text", "all"])
def test_a_stream_shows_arguments_and_results_of_tools_of_any_type(odd: Daemon, events):
    with Client(odd.endpoint) as client:
        *chunks, done = client.stream("odd", "?", events=events)
    assert done.result == "done"
    shown = {chunk.type: chunk.data for chunk in chunks}
    if events == "text":
        assert shown["tool_started"]["args"] == {"n": str(2**70)}
        assert shown["tool_finished"]["result"][1]["data"] == b"\x89PNG\xff"
    else:
        [finished] = [chunk.data for chunk in chunks if chunk.data["event_kind"] == "function_tool_result"]
        assert finished["part"]["content"][1]["data"] == b"\x89PNG\xff"


@pytest.mark.parametrize("mode", MODES)
def test_content_that_pydantic_ai_rejects_leaves_the_call_open(dealer: Dealer, mode):
    body = {"agent": {"model": "tools"}, "prompt": '[{"name": "look"}]', "tools": [{"name": "look"}]}
    dealer.send(mode.encode(), b"1", None, body)
    while (message := dealer.recv())[0] != b"tool_call":
        assert message[0] == b"chunk", message
    wrong = [{"kind": "structured-content", "value": 1, "tag": "system"}]
    dealer.send(b"tool_result", b"1", {"call_id": message[2]["call_id"]}, {"result": 1, "content": wrong})
    dealer.send(b"steer", b"1", None, {"content": wrong})
    for of in ("tool_result", "steer"):
        kind, _, refused = dealer.recv()
        assert (kind, refused["of"], refused["error_type"]) == (b"refused", of, "invalid_request")
        assert "/content/0: cannot be made into text" in refused["message"]
    dealer.send(b"tool_result", b"1", {"call_id": message[2]["call_id"]}, {"result": 1})
    assert dealer.until_end(b"1")[-1][0] == b"complete"
