"""Undocumented behaviour of pydantic-ai on which this project relies: a behavioural test for each use.

To verify another version: install it, run this file, and add the version to `compat.VERIFIED`.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_ai import (
    Agent,
    DeferredToolRequests,
    DeferredToolResults,
    ModelRetry,
    NativeOutput,
    RunContext,
    capture_run_messages,
)
from pydantic_ai import exceptions as ai
from pydantic_ai.capabilities import AbstractCapability, Instrumentation
from pydantic_ai.messages import (
    AgentStreamEvent,
    BinaryContent,
    ImageUrl,
    InstructionDeltaPart,
    InstructionId,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPartDelta,
    ToolCallPart,
    ToolReturnPart,
    ToolsetInstructionSource,
    UploadedFile,
    UserPromptPart,
)
from pydantic_ai.models import Model, download_item
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings, InstrumentedModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import ExternalToolset, FunctionToolset
from pydantic_ai.usage import RunUsage

from axon_zmq.protocol.msgpack import unpack
from axon_zmq.protocol.plain import packer
from axon_zmq.worker.adapter import compat, messages
from tests.support import ROOT
from tests.support.spans import Recorder


def test_the_lowest_and_the_pinned_version_of_pydantic_ai_are_verified_ones():
    """A newer version may be installed: then the other tests of this file tell whether it works."""
    named = re.search(r"pydantic-ai-slim\[openai\]>=([\d.]+),", (ROOT / "pyproject.toml").read_text())
    pinned = re.search(r"^pydantic-ai-slim==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert named
    assert pinned
    for each in (named[1], pinned[1]):
        assert any(f"{known}.".startswith(f"{each}.") for known in compat.VERIFIED), f"verify {each}, and add it"


# --- models for these tests ------------------------------------------------------------------------


def answering(*parts: Any, then: str = "done") -> FunctionModel:
    """A model that first responds with `parts`, and then with `then`."""

    def respond(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        is_first = not any(isinstance(message, ModelResponse) for message in messages)
        return ModelResponse(parts=list(parts) if is_first else [TextPart(then)])

    return FunctionModel(respond)


def always(*parts: Any) -> FunctionModel:
    """A model that always makes the same response."""
    return FunctionModel(lambda _messages, _info: ModelResponse(parts=list(parts)))


def streaming(*words: str) -> FunctionModel:
    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        for word in words:
            yield word

    return FunctionModel(stream_function=stream)


def provider(body: bytes, status: int = 200, key: str = "k") -> OpenAIProvider:
    """An OpenAI-compatible provider that always answers with `body`, and with the key in a header."""

    def respond(request: httpx2.Request) -> httpx2.Response:
        text = body.replace(b"AUTHORIZATION", request.headers["authorization"].encode())
        return httpx2.Response(status, content=text, headers={"Content-Type": "application/json"})

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(respond))
    return OpenAIProvider(
        openai_client=AsyncOpenAI(api_key=key, base_url="http://provider.test/", http_client=client, max_retries=0)
    )


def openai_model(body: bytes, status: int = 200) -> OpenAIChatModel:
    return OpenAIChatModel("m", provider=provider(body, status))


async def ignore(_context: RunContext[Any], events: Any) -> None:
    async for _ in events:
        pass


def failure(agent: Agent[Any, Any], **options: Any) -> Exception:
    """The exception that a run raises."""
    with pytest.raises(Exception) as caught:
        asyncio.run(agent.run("go", **options))
    return caught.value


# --- texts of exceptions ---------------------------------------------------------------------------


class Point(BaseModel):
    x: int
    y: int


NOT_A_POINT = ToolCallPart("final_result", {"x": "secret"})


def agent_refusing_text() -> Agent[Any, Any]:
    agent: Agent[Any, Any] = Agent(always(TextPart("a")), retries=0)

    @agent.output_validator
    def refuse(_text: str) -> str:
        raise ModelRetry("never good enough")

    return agent


@pytest.mark.parametrize(
    "agent",
    [
        Agent(always(NOT_A_POINT), output_type=Point, retries=0),
        Agent(always(TextPart('{"x": 1}')), output_type=NativeOutput(Point), retries=0),
        agent_refusing_text(),
    ],
    ids=["tool", "native", "validator"],
)
def test_an_output_that_exceeds_its_retries_is_recognized(agent):
    assert compat.are_output_retries_exhausted(failure(agent))


def test_a_tool_call_that_exceeds_its_retries_is_not_taken_for_an_output():
    error = failure(Agent(always(ToolCallPart("square", {"n": "x"})), tools=[square], retries=0))
    assert isinstance(error, ai.UnexpectedModelBehavior)
    assert not compat.are_output_retries_exhausted(error)


def square(n: int) -> int:
    return n * n


def test_a_tool_timeout_is_distinguished_from_a_requested_retry():
    toolset: FunctionToolset[Any] = FunctionToolset(max_retries=0)

    @toolset.tool_plain(timeout=0.01)
    async def slow() -> None:
        await asyncio.sleep(10)

    @toolset.tool_plain
    async def picky() -> None:
        raise ModelRetry("not like this")

    causes = {name: failure(Agent(always(ToolCallPart(name)), toolsets=[toolset])).__cause__ for name in toolset.tools}
    assert {name: compat.is_tool_timeout(cause) for name, cause in causes.items()} == {"slow": True, "picky": False}
    assert not compat.is_tool_timeout(TimeoutError())
    assert not compat.is_tool_timeout(None)


def test_an_approval_for_an_external_call_is_recognized():
    external = ExternalToolset([ToolDefinition(name="elsewhere")])
    agent: Agent[Any, Any] = Agent(
        answering(ToolCallPart("elsewhere", {}, "call-1")),
        toolsets=[external],
        output_type=[str, DeferredToolRequests],
    )
    first = asyncio.run(agent.run("go"))
    with pytest.raises(Exception) as caught:
        asyncio.run(
            agent.run(
                message_history=first.all_messages(),
                deferred_tool_results=DeferredToolResults(approvals={"call-1": True}),
            )
        )
    assert compat.is_external_tool_approved(caught.value)
    assert not compat.is_external_tool_approved(RuntimeError("something else"))


def test_the_first_line_of_unexpected_behavior_contains_nothing_of_the_answer():
    answer = (
        b'{"id":"i","object":"chat.completion","created":1,"model":"m",'
        b'"choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":{"a":"secret"}}}]}'
    )
    error = failure(Agent(openai_model(answer)))
    assert isinstance(error, ai.UnexpectedModelBehavior)
    assert "secret" in error.message
    line = compat.without_model_output(error)
    assert line.startswith("Invalid response")
    assert "secret" not in line


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/secret.png", "blocked"),
        ("ftp://host.test/secret.png", 'URL protocol "ftp" is not allowed'),
    ],
)
def test_the_reason_of_a_failed_download_is_known_without_its_url(url, reason):
    with pytest.raises(Exception) as caught:
        asyncio.run(download_item(ImageUrl(url), data_format="bytes"))
    said = compat.download_failure(caught.value)
    assert said is not None
    assert reason in said
    assert "secret" not in said
    assert "allow-local" not in said  # the advice in its second sentence is for programs that run in the daemon


def test_other_errors_are_not_taken_for_failed_downloads():
    error = failure(Agent(openai_model(b'{"choices": "no"}')))
    assert compat.download_failure(error) is None


# --- origins of exceptions ------ -----------------------------------------------------------------


def test_the_tool_that_raised_is_identified():
    def broken() -> None:
        raise ZeroDivisionError

    async def broken_too() -> None:
        raise ZeroDivisionError

    for tool in (broken, broken_too):
        assert compat.raising_tool(failure(Agent(always(ToolCallPart(tool.__name__)), tools=[tool]))) == tool.__name__


def test_errors_outside_tools_are_attributed_to_no_tool():
    assert compat.raising_tool(failure(Agent(openai_model(b'{"choices": "no"}')))) is None
    error = failure(Agent(always(ToolCallPart("square", {"n": "x"})), tools=[square], retries=0))
    assert compat.raising_tool(error) is None

    async def run_another() -> str:
        raise ai.UsageLimitExceeded("of an agent within the tool")

    assert compat.raising_tool(failure(Agent(always(ToolCallPart("run_another")), tools=[run_another]))) is None


def test_code_for_a_providers_api_is_recognized_by_its_module():
    error = failure(Agent(openai_model(b'{"choices": "no"}')))
    assert type(error) is AttributeError, "pydantic-ai now has an error of its own for this: classify that instead"
    assert compat.is_raised_by_model_code(error)

    def broken() -> None:
        raise AttributeError

    error = failure(Agent(always(ToolCallPart("broken")), tools=[broken]))
    assert not compat.is_raised_by_model_code(error)
    assert not compat.is_raised_by_model_code(AttributeError())


# --- data of exceptions -- --------------------------------------------------------------------------


def test_the_last_attempt_of_a_fallback_model_is_the_last_exception_of_the_group():
    models = [openai_model(b'{"error": {"message": "first"}}', 500), openai_model(b"{}", 429)]
    error = failure(Agent(FallbackModel(*models)))
    assert isinstance(error, ai.FallbackExceptionGroup)
    assert isinstance(compat.last_attempt(error), ai.ModelRateLimitError)
    assert compat.last_attempt(ValueError()) is None


def test_an_unreadable_response_is_distinguished_from_an_error_of_the_provider():
    assert compat.is_unreadable_response(failure(Agent(openai_model(b"<html>"))))
    for status in (400, 401, 404, 429, 500, 503):
        assert not compat.is_unreadable_response(failure(Agent(openai_model(b"{}", status)))), status
    reported = b'data: {"error": {"message": "it broke"}}\n\n'
    error = failure(Agent(openai_model(reported)), event_stream_handler=ignore)
    assert isinstance(error, ai.ModelAPIError)
    assert not compat.is_unreadable_response(error)


def test_the_last_retry_is_the_cause_of_the_exception_that_ends_the_run():
    class OurRetry(ModelRetry):
        pass

    ours = OurRetry("no")

    def picky() -> None:
        raise ours

    assert compat.last_retry(failure(Agent(always(ToolCallPart("picky")), tools=[picky], retries=0))) is ours
    error = failure(Agent(always(ToolCallPart("square", {"n": "x"})), tools=[square], retries=0))
    assert isinstance(compat.last_retry(error), ValidationError)
    error = failure(Agent(always(NOT_A_POINT), output_type=Point, retries=0))
    assert isinstance(compat.last_retry(error), ValidationError)


def test_validation_errors_of_an_output_are_found_below_the_final_exception():
    agent = Agent(always(TextPart('{"x": 1}')), output_type=NativeOutput(Point), retries=0)
    faults = compat.retry_faults(failure(agent).__cause__)
    assert [(fault["type"], tuple(fault["loc"]), fault["msg"]) for fault in faults] == [
        ("missing", ("y",), "Field required")
    ]
    assert compat.retry_faults(None) == []
    assert compat.retry_faults(failure(agent_refusing_text()).__cause__) == []


# --- agents and runs -------------------------------------------------------------------------------


def test_output_validators_are_recognized_and_reject_another_output_type():
    assert not compat.has_output_validators(Agent())
    agent = agent_refusing_text()
    assert compat.has_output_validators(agent)
    assert isinstance(failure(agent, output_type=[str, DeferredToolRequests]), ai.UserError)


@pytest.mark.parametrize(
    ("output_type", "is_wrapped"), [(int, True), (list[str], True), (dict[str, int], True), (Point, False)]
)
def test_a_wrapped_output_is_recognized_by_its_schema(output_type, is_wrapped):
    asked: list[dict[str, Any]] = []

    def respond(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked.append(info.output_tools[0].parameters_json_schema)
        return ModelResponse(parts=[TextPart("a")])

    agent: Agent[Any, Any] = Agent(FunctionModel(respond), retries=0)
    failure(agent, output_type=output_type)
    assert (list(asked[0]["properties"]) == [compat.WRAPPED_OUTPUT_KEY]) == is_wrapped
    assert compat.is_output_wrapped(agent, output_type) or not is_wrapped
    assert compat.WRAPPED_OUTPUT_KEY not in agent.output_json_schema(output_type).get("properties", {})


def test_captured_messages_start_with_the_history():
    def broken() -> None:
        raise ZeroDivisionError

    history = asyncio.run(Agent(always(TextPart("earlier"))).run("before")).all_messages()
    for given in (history, None):
        with capture_run_messages() as captured:
            failure(Agent(always(ToolCallPart("broken")), tools=[broken]), message_history=given)
        own = compat.own_messages(captured, given)
        assert [type(message) for message in own[:2]] == [ModelRequest, ModelResponse]
        assert isinstance(own[0].parts[0], UserPromptPart)
        assert own[0].parts[0].content == "go"


def test_the_run_context_is_available_before_the_first_request_and_accepts_messages_until_the_end():
    order: list[str] = []
    contexts: list[RunContext[Any]] = []
    heard: list[str] = []

    def begin(context: RunContext[Any]) -> None:
        order.append("begin")
        contexts.append(context)

    def respond(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        order.append("request")
        texts = [part.content for part in messages[-1].parts if isinstance(part, UserPromptPart)]
        heard.extend(map(str, texts))
        if len(heard) == 1:
            contexts[-1].enqueue("more", priority="asap")
            assert compat.pending_message_count(contexts[-1]) == 1
        return ModelResponse(parts=[TextPart("a")])

    metadata = compat.metadata_that_shows_context({"a": 1}, begin)
    result = asyncio.run(Agent(FunctionModel(respond)).run("go", metadata=metadata))
    assert result.metadata == {"a": 1}
    assert order.index("begin") < order.index("request")
    assert heard[0] == "go"
    assert "more" in heard[1]
    assert compat.pending_message_count(contexts[-1]) == 0
    for context in contexts:
        with pytest.raises(ai.UserError):
            context.enqueue("too late")


def test_cancelling_the_recorded_task_closes_the_streamed_response():
    states: list[str] = []

    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            states.append("closed")

    async def play() -> None:
        requests = compat.ModelRequestTasks()

        async def listen(_context: RunContext[Any], events: Any) -> None:
            async for _ in events:
                (task,) = requests.tasks
                assert task is not asyncio.current_task(), "the run's own task: nothing can be left behind"
                states.append("open")
                task.cancel()
                await asyncio.wait([task])
                states.append("cancelled")

        with pytest.raises(asyncio.CancelledError):
            model = FunctionModel(stream_function=stream)
            await Agent(model).run("go", event_stream_handler=listen, capabilities=[requests])

    asyncio.run(play())
    assert states == ["open", "closed", "cancelled"]


def call(toolset: Any, name: str, args: Any) -> Any:
    context: RunContext[Any] = RunContext(deps=None, model=always(), usage=RunUsage())
    return asyncio.run(compat.call_tool_directly(toolset, context, ToolCallPart(name, args)))


def test_a_tool_is_called_without_a_model_and_its_arguments_are_validated():
    toolset: FunctionToolset[Any] = FunctionToolset([square])
    assert call(toolset, "square", {"n": 3}) == 9
    assert call(toolset.approval_required(), "square", {"n": "4"}) == 16
    with pytest.raises(ValueError, match="valid integer"):
        call(toolset, "square", {"n": "x"})
    with pytest.raises(ai.CallDeferred):
        call(ExternalToolset([ToolDefinition(name="elsewhere")]), "elsewhere", {})


# --- traces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["agent", "all agents", "model", "capability"])
def test_all_spans_are_made_with_wrapped_tracers(how: str, monkeypatch: Any):
    monkeypatch.setattr(InstrumentationSettings, "tracer", None, raising=False)  # restores the class at the end
    monkeypatch.setattr(Agent, "_instrument_default", False)
    recorded: list[str] = []
    unwrapped: list[str] = []
    early = InstrumentationSettings(tracer_provider=Recorder(unwrapped.append))
    monkeypatch.setitem(vars(early), "tracer", Recorder(unwrapped.append).get_tracer())
    compat.wrap_tracers(lambda _: Recorder(recorded.append).get_tracer())
    model: Model = answering(ToolCallPart("work", {}))
    agent = Agent(
        InstrumentedModel(model, early) if how == "model" else model,
        capabilities=[Instrumentation(early)] if how == "capability" else [],
    )
    agent.tool_plain(lambda: "x", name="work")
    if how == "agent":
        agent.instrument = early
    if how == "all agents":
        Agent.instrument_all(early)
    asyncio.run(agent.run("x"))
    assert unwrapped == []
    starts = " ".join(text for text in recorded if text.startswith("start"))
    assert {"invoke_agent", "chat", "execute_tool"} <= set(starts.split())


# --- models ----------------------------------------------------------------------------------------


def test_the_settings_of_providers_are_found_without_their_packages():
    found = compat.provider_settings()
    assert {"openai_user", "openai_reasoning_summary", "anthropic_thinking", "google_labels"} <= found
    assert not found & {*ModelSettings.__annotations__, "openai_api_key"}
    assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", name) for name in found)


def test_models_share_a_given_provider():
    seen: list[Any] = []

    def shared(own: Any) -> Any:
        seen.append(own)
        return provider(b'{"error": {"message": "AUTHORIZATION"}}', 500, key="the-shared-one")

    model = openai_model(b"{}")
    own = model.provider
    compat.share_provider(model, shared)
    assert seen == [own]
    assert "the-shared-one" in str(failure(Agent(model)))
    compat.share_provider(always(), shared)  # has none
    assert len(seen) == 1


def test_a_model_without_streaming_is_recognized_before_the_request():
    class Silent(Model):
        model_name = "silent"
        system = "test"

        async def request(self, *_: Any) -> ModelResponse:
            return ModelResponse(parts=[TextPart("a")])

    assert not compat.can_stream(Silent())
    assert isinstance(failure(Agent(Silent()), event_stream_handler=ignore), ai.UserError)
    error = failure(Agent(WrapperModel(Silent())), event_stream_handler=ignore)
    assert isinstance(error, NotImplementedError), "a wrapped model is now recognized: remove `can_stream`"
    assert compat.can_stream(streaming("a"))


class Suspending(WrapperModel):
    """A model that suspends its first response, as models with paused turns do."""

    def __init__(self, wrapped: Model) -> None:
        super().__init__(wrapped)
        self.resumed: list[bool] = []

    @asynccontextmanager
    async def request_stream(self, messages: list[ModelMessage], *more: Any) -> AsyncIterator[Any]:
        self.resumed.append(compat.resumes_suspended_response(messages))
        async with self.wrapped.request_stream(messages, *more) as response:
            response.provider_response_id = str(len(self.resumed))
            if len(self.resumed) == 1:
                response.state = "suspended"
            yield response


def test_a_resumed_response_is_recognized():
    starts: list[bool] = []

    async def listen(_context: RunContext[Any], events: Any) -> None:
        starts.extend([compat.resumes_response(event) async for event in events if isinstance(event, PartStartEvent)])

    model = Suspending(streaming("a", "b"))
    asyncio.run(Agent(model).run("go", event_stream_handler=listen))
    assert model.resumed == [False, True]
    assert starts == [False, True]


class Wrapping(AbstractCapability[Any]):
    async def wrap_run_event_stream(self, ctx: RunContext[Any], *, stream: Any) -> Any:
        async for event in stream:
            yield event


class Listening(AbstractCapability[Any]):
    async def on_event(self, ctx: RunContext[Any], *, event: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("capabilities", "has_hooks"),
    [
        ([], False),
        ([compat.ModelRequestTasks()], False),
        ([Wrapping()], True),
        ([Listening()], True),
        ([compat.ModelRequestTasks(), Wrapping()], True),
    ],
)
def test_capabilities_that_handle_events_are_recognized(capabilities, has_hooks):
    seen: list[bool] = []

    class Looking(WrapperModel):
        @asynccontextmanager
        async def request_stream(self, messages: Any, settings: Any, parameters: Any, context: Any = None) -> Any:
            seen.append(compat.has_event_hooks(context))
            async with self.wrapped.request_stream(messages, settings, parameters, context) as response:
                yield response

    asyncio.run(Agent(Looking(streaming("a"))).run("go", event_stream_handler=ignore, capabilities=capabilities))
    assert seen == [has_hooks]


class Marked(PartDeltaEvent):
    """An event type of this project."""


def test_replaced_events_reach_the_handler_unchanged_and_the_original_events_are_read_on_demand():
    handed: list[AgentStreamEvent] = []
    read: list[str] = []
    made: list[Marked] = []

    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        for word in ("a", "b"):
            read.append(word)
            yield word

    class Replacing(WrapperModel):
        @asynccontextmanager
        async def request_stream(self, *request: Any, **more: Any) -> AsyncIterator[Any]:
            async with self.wrapped.request_stream(*request, **more) as response:
                original = compat.replace_events(response, lambda: events(original))
                before = list(read)  # FunctionModel reads its first item when it is opened
                yield response
                assert before == ["a"]

    async def events(original: Callable[[], AsyncIterator[Any]]) -> AsyncIterator[Any]:
        async for event in original():
            if isinstance(event, PartDeltaEvent):
                made.append(Marked(index=event.index, delta=TextPartDelta("replaced")))
                yield made[-1]
            else:
                yield event

    async def listen(_context: RunContext[Any], given: Any) -> None:
        handed.extend([event async for event in given])

    asyncio.run(Agent(Replacing(FunctionModel(stream_function=stream))).run("go", event_stream_handler=listen))
    assert len(made) == 1, "the events are made more than once, or not of our function"
    assert [event for event in handed if isinstance(event, PartDeltaEvent)] == made
    assert next(event for event in handed if isinstance(event, Marked)) is made[0]
    assert read == ["a", "b"]


# --- messages --------------------------------------------------------------------------------------


PNG = b"\x89PNG\xff\x00"
INSTRUCTION = InstructionDeltaPart(id=InstructionId(ToolsetInstructionSource("tools")), content="be brief")
MESSAGES = [
    ModelRequest(
        [UserPromptPart([BinaryContent.narrow_type(BinaryContent(PNG, media_type="image/png"))]), INSTRUCTION]
    ),
    ModelResponse([TextPart("a")]),
]


def test_messages_keep_bytes_and_datetimes_and_can_be_read_again():
    dumped = compat.serializer(ModelMessagesTypeAdapter).to_python(MESSAGES, warnings=False)
    assert PNG in list(leaves(dumped))
    assert dumped[1]["timestamp"] == MESSAGES[1].timestamp
    assert "toolset:tools" in list(leaves(dumped))
    assert ModelMessagesTypeAdapter.validate_python(dumped) == MESSAGES


def test_pydantic_ais_public_serializers_do_not_keep_bytes_and_datetimes():
    as_python = ModelMessagesTypeAdapter.dump_python(MESSAGES)
    assert "toolset:tools" not in list(leaves(as_python)), "`dump_python` does by now: use that"
    as_json = ModelMessagesTypeAdapter.dump_python(MESSAGES, mode="json")
    assert PNG not in list(leaves(as_json))


def test_a_callback_in_an_event_is_left_out():
    delta = ThinkingPartDelta(content_delta="hm", provider_details=lambda details: details or {})
    event = PartDeltaEvent(index=0, delta=delta)
    dumped = compat.serializer(TypeAdapter(AgentStreamEvent)).to_python(event, warnings=False)
    assert (dumped["delta"]["content_delta"], dumped["delta"]["provider_details"]) == ("hm", None)


NAMED = {"title": "Sunset"}
FILES = [
    ImageUrl("https://example.org/a.png", vendor_metadata=NAMED),
    ImageUrl("https://example.org/b", media_type="image/png", force_download=True, vendor_metadata={"raw": PNG}),
    UploadedFile(
        "file-1", "openai", vendor_metadata={"at": datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=2)))}
    ),
    UploadedFile("file-2", "openai", vendor_metadata={"large": 2**70}),
]
LOOKS_LIKE_A_FILE = {"kind": "image-url", "url": "https://example.org/c.png", "title": "a column of a tool's table"}


def returned_after_a_round_trip(content: Any) -> Any:
    sent = messages.dump([ModelRequest([ToolReturnPart("t", content, "1")])])
    [back] = messages.load(unpack(packer()({"m": sent}), "it")["m"]) or []
    return back.parts[0].content


@dataclass
class Album:
    files: list[ImageUrl | UploadedFile]


@pytest.mark.parametrize("file", FILES, ids=["json", "bytes", "time", "integer"])
def test_a_file_in_a_tool_result_comes_back_as_a_file(file):
    kept = returned_after_a_round_trip({"first": [file, 1]})["first"]
    assert (type(kept[0]), kept[1]) == (type(file), 1)
    [kept] = returned_after_a_round_trip(Album([file]))["files"]
    assert type(kept) is type(file)
    assert kept.identifier == file.identifier


def test_a_file_in_a_tool_result_without_a_record_is_a_file():
    """Clients write such results, and histories of earlier versions have them."""
    uploaded = {"kind": "uploaded-file", "file_id": "file-1", "provider_name": "openai"}
    part = {"part_kind": "tool-return", "tool_name": "t", "tool_call_id": "1", "content": [uploaded]}
    [read] = messages.load([{"kind": "request", "parts": [part]}]) or []
    assert read.parts[0].content == [UploadedFile("file-1", "openai")]
    result = {"calls": {"1": {"kind": "tool-return", "return_value": [uploaded]}}}
    read = TypeAdapter(DeferredToolResults).validate_python(result, context=compat.FILES_ARE_REBUILT)
    assert read.calls["1"].return_value == [UploadedFile("file-1", "openai")]


@pytest.mark.skipif(
    not hasattr(ToolReturnPart, "__pydantic_serializer__"),
    reason="this pydantic-ai has no records of files: it makes a file of each such map, without the unknown key",
)
def test_data_of_a_tool_that_looks_like_a_file_is_kept_if_pydantic_ai_has_records():
    assert returned_after_a_round_trip([LOOKS_LIKE_A_FILE]) == [LOOKS_LIKE_A_FILE]
    assert returned_after_a_round_trip([LOOKS_LIKE_A_FILE, FILES[0]]) == [LOOKS_LIKE_A_FILE, FILES[0]]


def test_a_result_that_contains_itself_has_no_endless_search_for_files():
    endless: list[Any] = [FILES[1]]
    endless.append(endless)
    assert messages.dump([ModelRequest([ToolReturnPart("t", endless, "1")])])


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


# --- no undocumented use elsewhere -------- ---------------------------------------------------------

PACKAGE = ROOT / "axon_zmq"
COMPAT = PACKAGE / "worker" / "adapter" / "compat.py"

UNDOCUMENTED = frozenset(
    (
        "FallbackExceptionGroup",
        "ToolManager",
        "ToolRetryError",
        "before_model_request",
        "download_item",
        "has_on_event",
        "has_wrap_run_event_stream",
        "in_stream",
        "pending_messages",
        "root_capability",
        "tool_manager",
        "tool_retry",
        "content_file_digests",
        "rebuild_unrecorded_tool_files",
        "when_used",
    )
)
"""Names without an underscore that compat.py relies on in undocumented ways."""
TRACEBACKS = frozenset(("__code__", "f_code", "f_globals", "f_locals", "tb_frame", "tb_next", "walk_tb", "extract_tb"))
TEXT_METHODS = frozenset(
    ("startswith", "endswith", "find", "rfind", "index", "count", "partition", "rpartition", "split", "splitlines")
)
"""Methods that split or search a text."""
PRIVATE = re.compile(r"_[a-z]\w*")
NOT_PRIVATE = frozenset(("_asdict", "_exit", "_fields", "_make", "_replace"))
"""Documented names of `NamedTuple` and `os`."""
NOT_OF_PYDANTIC_AI = {
    "fault.message in _FORGOTTEN_SESSION_TEXTS": "a text of the MCP SDK",
    "from mcp.shared._stream_protocols import ReadStream": "a type of the MCP SDK",
    "str(error).splitlines()": "a text of the regex compiler in pydantic-core",
    "vars(logging.makeLogRecord({}))": "the fields of a log record",
    "vars(record)": "the fields of a log record",
}
"""Findings that concern another library, by their source."""


class Scanner(ast.NodeVisitor):
    """Finds undocumented uses, which belong into compat.py: `found` has a line of source and a reason for each."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[tuple[str, str]] = []
        self._own = {node.name for node in ast.walk(tree) if isinstance(node, DEFINITIONS)} | {
            name for node in ast.walk(tree) for name in assigned(node)
        }
        """Names that the module defines, as functions, fields or attributes of `self`."""
        self._imported = {
            alias.asname or alias.name.partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
            if (isinstance(node, ast.ImportFrom) and is_pydantic_ai(node.module or ""))
            or (isinstance(node, ast.Import) and is_pydantic_ai(alias.name))
        }
        self._docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        self.visit(tree)

    def _report(self, node: ast.AST, reason: str) -> None:
        self.found.append((ast.unparse(node), reason))

    def visit_Import(self, node: ast.Import) -> None:
        if any(is_private_path(alias.name) for alias in node.names):
            self._report(node, "a private module")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        names = {alias.name for alias in node.names} | set((node.module or "").split("."))
        foreign = not (node.module or "").startswith("axon_zmq")
        if foreign and (is_private_path(node.module or "") or any(map(PRIVATE.fullmatch, names))):
            self._report(node, "a private module or name")
        elif is_pydantic_ai(node.module or "") and names & UNDOCUMENTED:
            self._report(node, "an undocumented name")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        name, owner = node.attr, node.value
        if PRIVATE.fullmatch(name) and name not in NOT_PRIVATE and not (is_self(owner) and name in self._own):
            self._report(node, "a private attribute")
        elif name in UNDOCUMENTED:
            self._report(node, "an undocumented attribute")
        elif name in TRACEBACKS or name == "__dict__":
            self._report(node, "introspection of an object")
        elif isinstance(node.ctx, ast.Store | ast.Del) and root_of(owner) in self._imported:
            self._report(node, "a change of pydantic-ai itself")

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if node.name in UNDOCUMENTED:
            self._report(ast.Name(node.name), "a hook whose place among others is undocumented")
        self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 -- a name of ast.NodeVisitor

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(target, ast.Name) and target.id == "__slots__" for target in node.targets):
            self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """A message of this project: only the inserted expressions are checked."""
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                self.visit(value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str) or id(node) in self._docstrings:
            return
        text = node.value
        if PRIVATE.fullmatch(text) or text in UNDOCUMENTED or text.startswith("pydantic_ai."):
            self._report(node, "a name in a text")
        elif len(text.split()) >= 3 and any(quote + text in pydantic_ai_source() for quote in "'\""):
            self._report(node, "a text of pydantic-ai's")

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "ContextVar":
            return  # its argument is its own name
        self.generic_visit(node)
        match node.func:
            case ast.Name("isinstance") if any(map(is_cause, node.args)):
                self._report(node, "the cause of an exception")
            case ast.Name("vars"):
                self._report(node, "the attributes of an object")
            case ast.Name("setattr" | "delattr") if node.args and root_of(node.args[0]) in self._imported:
                self._report(node, "a change of pydantic-ai itself")
            case ast.Attribute(attr=name, value=owner) if name in TEXT_METHODS and is_text_of_error(owner):
                self._report(node, "the text of an exception")
            case ast.Attribute(attr="search" | "match" | "fullmatch" | "findall" | "split") if any(
                map(is_text_of_error, node.args)
            ):
                self._report(node, "the text of an exception")
            case _:
                pass

    def visit_Compare(self, node: ast.Compare) -> None:
        self.generic_visit(node)
        sides = [node.left, *node.comparators]
        if any(map(is_text_of_error, sides)):
            self._report(node, "the text of an exception")
        elif any(isinstance(side, ast.Attribute) and side.attr in ("__name__", "__qualname__") for side in sides):
            self._report(node, "the name of a class or function")
        elif len([side for side in sides if isinstance(side, ast.Attribute) and side.attr in METHODS]) == 2:
            self._report(node, "whether a class overrides a method")

    def visit_MatchClass(self, node: ast.MatchClass) -> None:
        self.generic_visit(node)
        if {"message", "args"} & set(node.kwd_attrs) and any(isinstance(p, ast.MatchValue) for p in node.kwd_patterns):
            self._report(node, "the text of an exception")


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
METHODS = frozenset(("request", "request_stream", "count_tokens"))


def assigned(node: ast.AST) -> Iterator[str]:
    """Names of fields, and of attributes of `self`, that a statement defines."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        for each in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(each, ast.Name):
                yield each.id
            elif isinstance(each, ast.Attribute) and is_self(each.value):
                yield each.attr


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_cause(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("__cause__", "__context__")


def is_pydantic_ai(module: str) -> bool:
    return module.partition(".")[0] in ("pydantic_ai", "pydantic_graph")


def is_private_path(module: str) -> bool:
    return any(PRIVATE.fullmatch(name) for name in module.split(".")) and not module.startswith("axon_zmq")


def root_of(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def is_text_of_error(node: ast.AST) -> bool:
    """`str(error)`, `repr(error)`, `error.message`, `error.args[0]`, and expressions of these alone."""
    match node:
        case ast.Call(func=ast.Name("str" | "repr"), args=[ast.Name()]):
            return True
        case ast.Attribute(attr="message" | "args"):
            return True
        case (
            ast.Subscript(value=value) | ast.Call(func=ast.Attribute(value=value, attr="lower" | "strip" | "casefold"))
        ):
            return is_text_of_error(value)
        case _:
            return False


@cache
def pydantic_ai_source() -> str:
    """The source of all modules of pydantic-ai, in which the beginning of a text is searched."""
    spec = find_spec("pydantic_ai")
    assert spec is not None
    assert spec.origin is not None
    return "\n".join(path.read_text() for path in sorted(Path(spec.origin).parent.rglob("*.py")))


def findings(source: str) -> list[tuple[str, str]]:
    return Scanner(ast.parse(source)).found


def scanned() -> list[Path]:
    """The packages that may import pydantic-ai (see test_architecture.py), and any other module that names it."""
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != COMPAT
        and (
            path.relative_to(PACKAGE).parts[0] in ("worker", "agents")
            or re.search("(from|import) pydantic_ai", path.read_text())
        )
    ]


@pytest.mark.parametrize("path", scanned(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_undocumented_behaviour_is_used_only_in_compat(path):
    found = [f"{source}: {reason}" for source, reason in findings(path.read_text()) if source not in NOT_OF_PYDANTIC_AI]
    assert not found, f"move to {COMPAT.relative_to(ROOT)}, with a test of what it relies on"


SEEDS = {
    "the provider of a model is read": 'provider = getattr(model, "_provider", None)',
    "the provider of a model is replaced": 'vars(model)["_provider"] = shared',
    "the output validators of an agent": 'refuses = vars(agent).get("_output_validators")',
    "the events of a response, by name": 'EVENTS = "_get_event_iterator"',
    "the events of a response, replaced": "vars(response)[EVENTS] = events",
    "a constant with a text, output": '_OUTPUT_RETRIES = "Exceeded maximum output retries"',
    "a constant with a text, timeout": 'TIMED_OUT = "Timed out after "',
    "a constant with a text, external": '_NOT_CALLED_HERE = "External tools cannot be called"',
    "a text is looked for": "exhausted = _OUTPUT_RETRIES in str(error)",
    "a text is compared": "external = str(error) == _NOT_CALLED_HERE",
    "a text begins": 'timed_out = retry.message.startswith("Timed out")',
    "a text is taken apart": 'first = error.message.partition("\\n")[0]',
    "a text is searched": 'found = re.search("x", str(error))',
    "a text is matched": 'match error:\n    case ModelRetry(message="a"):\n        pass',
    "the arguments of an exception": 'is_it = error.args[0] == "a"',
    "frames by code": "is_it = frame.f_code is FunctionToolset.call_tool.__code__",
    "frames by local variables": 'name = frame.f_locals.get("name")',
    "frames by module": 'module = frame.f_globals.get("__name__")',
    "the module of a provider": 'is_it = module.startswith("pydantic_ai.models.")',
    "the download function": "from pydantic_ai.models import download_item",
    "the retry that was one too many": "is_ours = isinstance(error.__cause__, ClientRetry)",
    "the faults of a retry": 'content = getattr(cause, "tool_retry", None)',
    "the order of attempts": "last = ai.FallbackExceptionGroup",
    "a private module": "import pydantic_ai._agent_graph",
    "a private module, from": "from pydantic_ai._utils import PeekableAsyncStream",
    "a private module, from the package": "from pydantic_ai import _agent_graph",
    "a private module, by name": 'module = importlib.import_module("pydantic_ai._output")',
    "a private attribute": "schema = agent._output_schema",
    "a private attribute of a base class": "class Mine(WrapperModel):\n    def f(self):\n        return self._settings",
    "the dictionary of an object": "fields = agent.__dict__",
    "the serializers of a schema": 'always = {"when_used": "always"}',
    "the record of files": 'digests = part["content_file_digests"]',
    "the capabilities of a run": "hooks = context.root_capability",
    "the pending messages of a run": "waiting = context.pending_messages",
    "the task of a request": "class Mine(AbstractCapability):\n    async def before_model_request(self): ...",
    "the manager of tools": "from pydantic_ai.tool_manager import ToolManager",
    "an overridden method": "streams = type(model).request_stream is Model.request_stream",
    "a class by its name": 'is_it = type(error).__name__ == "ToolRetryError"',
    "a patched function": "import pydantic_ai\npydantic_ai.models.check = None",
    "a patched class": 'from pydantic_ai import Agent\nsetattr(Agent, "run", run)',
}
"""Undocumented uses that modules have had or might have, which belong into compat.py."""


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS.keys())
def test_each_kind_of_undocumented_use_is_detected(seed):
    assert findings(seed)


@pytest.mark.parametrize(
    "source",
    [
        "from pydantic_ai import Agent\nagent = Agent(name='a')",
        "class Mine(WrapperModel):\n    def __init__(self):\n        self._relay = 1\n        use(self._relay)",
        "text = f'{type(error).__name__}: {error}'",
        "said = error.message.rstrip('.')",
        "made = path._replace(depth=1)",
        '"""The text of pydantic_ai._output, in a docstring."""',
    ],
)
def test_documented_uses_are_not_reported(source):
    assert not findings(source)
