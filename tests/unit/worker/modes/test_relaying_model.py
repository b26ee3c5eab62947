"""The relaying model sends deltas at once and passes them to pydantic-ai in merged form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext, _agent_graph
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import AgentStreamEvent, ModelMessage, PartDeltaEvent, ToolReturnPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel
from pydantic_ai.models.wrapper import WrapperModel

from axon_zmq.worker.modes.open_requests import OpenRequests
from axon_zmq.worker.modes.relaying_model import MAX_MERGED_DELTAS, Relayed, RelayingModel
from axon_zmq.worker.modes.run_stream import Chunks

Seen = tuple[list[tuple[str, Any, int, int]], list[AgentStreamEvent], Any]
"""Chunks, events, and the result"""


def run(agent: Agent[Any, Any], model: Model, wrap: Callable[[Model, Any], Model] = RelayingModel) -> Seen:
    """Run an agent in the way of `run_stream`."""
    chunks: list[tuple[str, Any, int, int]] = []
    events: list[AgentStreamEvent] = []
    relay = Chunks(lambda *chunk: chunks.append(chunk), False, lambda: False).relay

    async def listen(_context: RunContext[Any], stream: Any) -> None:
        async for event in stream:
            events.append(event)
            if not isinstance(event, Relayed):
                relay(event)

    more = {"model": wrap(model, relay), "event_stream_handler": listen, "capabilities": [OpenRequests()]}
    result = asyncio.run(agent.run("go", **more))
    return chunks, events, result


def alone(model: Model, _relay: Any) -> Model:
    return model


def saying(*pieces: Any) -> FunctionModel:
    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[Any]:
        told = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
        for piece in ["done ", "now"] if told else pieces:
            yield piece

    return FunctionModel(stream_function=stream)


@pytest.mark.parametrize("wrap", [RelayingModel, lambda model, _relay: model])
def test_a_request_whose_run_is_cancelled_when_it_is_just_ready_is_ended(monkeypatch, wrap):
    drain = _agent_graph.cancel_and_drain

    async def cancelled_meanwhile(*tasks: asyncio.Task[Any], msg: object = None) -> None:
        await drain(*tasks, msg=msg)
        if len(tasks) == 1:
            raise asyncio.CancelledError  # as its `await` does if the task is cancelled there

    async def play() -> None:
        requests = OpenRequests()
        model = wrap(saying("a"), lambda _delta: None)
        with pytest.raises(asyncio.CancelledError):
            await Agent().run("go", model=model, event_stream_handler=_drain, capabilities=[requests])
        # pydantic-ai 2.62 leaves the request open; 2.68 ends it by itself.
        assert len(asyncio.all_tasks()) in (1, 2)
        await requests.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    monkeypatch.setattr(_agent_graph, "cancel_and_drain", cancelled_meanwhile)
    asyncio.run(play())


WORDS = [f"{number} " for number in range(3 * MAX_MERGED_DELTAS)]
CALL = [{0: DeltaToolCall("note", tool_call_id="c")}, *({0: DeltaToolCall(json_args=part)} for part in '{"a":"bcd"}')]


def noting(*capabilities: AbstractCapability[Any]) -> Agent[Any, Any]:
    agent: Agent[Any, Any] = Agent(capabilities=list(capabilities))

    @agent.tool_plain
    def note(a: str) -> str:
        return a

    return agent


@pytest.mark.parametrize(
    "pieces",
    [
        WORDS,
        ["one"],
        [
            {0: DeltaThinkingPart(content="hm ")},
            {0: DeltaThinkingPart(content="mm")},
            {0: DeltaThinkingPart(signature="s")},
        ],
        CALL,
    ],
    ids=["text", "one", "thinking", "call"],
)
def test_chunks_result_messages_and_usage_equal_those_of_pydantic_ai_alone(pieces):
    chunks, _, result = run(noting(), saying(*pieces, *([] if pieces is CALL else ["end"])))
    other_chunks, _, other = run(noting(), saying(*pieces, *([] if pieces is CALL else ["end"])), alone)
    assert chunks == other_chunks
    assert result.output == other.output
    assert result.usage == other.usage
    assert [message.parts for message in result.new_messages()[1::2]] == [
        message.parts for message in other.new_messages()[1::2]
    ]


def test_each_delta_is_relayed_and_pydantic_ai_receives_merged_deltas():
    chunks, events, _ = run(Agent(), saying(*WORDS))
    assert [data for _, data, _, _ in chunks] == WORDS
    deltas = [event for event in events if isinstance(event, PartDeltaEvent)]
    assert len(deltas) == 3
    assert all(isinstance(event, Relayed) for event in deltas)
    assert "".join(event.delta.content_delta for event in deltas) == "".join(WORDS[1:])


def test_chunks_sent_by_a_tool_keep_their_position():
    chunks, _, _ = run(noting(), saying("so ", "then ", "there "))
    assert [data for _, data, _, _ in chunks] == ["so ", "then ", "there "]
    chunks, _, _ = run(noting(), saying(*CALL))
    assert [(kind, step) for kind, _, step, _ in chunks] == [
        ("tool_started", 1),
        ("tool_finished", 1),
        ("text", 2),
        ("text", 2),
    ]


class Watching(AbstractCapability[Any]):
    """A capability that handles every event."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def wrap_run_event_stream(self, ctx: RunContext[Any], *, stream: Any) -> Any:
        async for event in stream:
            if isinstance(event, PartDeltaEvent):
                self.seen.append(event.delta.content_delta)
            yield event


def test_a_capability_that_handles_events_receives_each_event():
    watching = Watching()
    chunks, _, _ = run(Agent(capabilities=[watching]), saying(*WORDS))
    assert watching.seen == WORDS[1:]
    assert [data for _, data, _, _ in chunks] == WORDS


class Suspending(WrapperModel):
    """A model that suspends its first response, as models with paused turns do."""

    def __init__(self, wrapped: Model, *, same: bool) -> None:
        super().__init__(wrapped)
        self.asked = 0
        self.same = same

    @asynccontextmanager
    async def request_stream(self, *request: Any, **more: Any) -> AsyncIterator[Any]:
        async with self.wrapped.request_stream(*request, **more) as response:
            self.asked += 1
            response.provider_response_id = "same" if self.same else f"{self.asked}"
            if self.asked == 1:
                response.state = "suspended"
            yield response


@pytest.mark.parametrize("same", [True, False])
def test_a_resumed_response_equals_that_of_pydantic_ai_alone(same):
    chunks, _, result = run(Agent(), Suspending(saying(*WORDS), same=same))
    other_chunks, _, other = run(Agent(), Suspending(saying(*WORDS), same=same), alone)
    assert chunks == other_chunks
    assert result.output == other.output
    if not same:  # both are one response, and so one step
        assert {step for _, _, step, _ in chunks} == {1}
        assert "".join(data for _, data, _, _ in chunks) == result.output


def test_deltas_of_another_agent_with_the_same_model_are_not_relayed():
    agent = noting()
    inner: Agent[Any, Any] = Agent()

    @agent.tool
    async def delegate(ctx: RunContext[Any]) -> str:
        async with inner.run_stream("in", model=ctx.model) as answer:
            return await answer.get_output()

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[Any]:
        told = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
        is_inner = messages[0].parts[0].content == "in"
        if told or is_inner:
            for word in ["of ", "the ", "inner" if is_inner else "outer"]:
                yield word
        else:
            yield {0: DeltaToolCall("delegate", "{}", tool_call_id="c")}

    chunks, _, result = run(agent, FunctionModel(stream_function=stream))
    assert [data for kind, data, _, _ in chunks if kind == "text"] == ["of ", "the ", "outer"]
    assert chunks[1][1]["result"] == "of the inner"
    assert result.output == "of the outer"


def test_a_blocked_relay_pauses_the_model():
    taken: list[str] = []
    given: list[str] = []

    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        for word in WORDS[:10]:
            given.append(word)
            yield word

    async def wait() -> None:
        await asyncio.sleep(0)
        assert len(given) <= len(taken) + 2  # the first event is not a delta, and FunctionModel reads one event ahead

    def relay(event: PartDeltaEvent) -> Any:
        taken.append(event.delta.content_delta)
        return wait()

    agent: Agent[Any, Any] = Agent()
    asyncio.run(
        agent.run("go", model=RelayingModel(FunctionModel(stream_function=stream), relay), event_stream_handler=_drain)
    )
    assert taken == WORDS[1:10]


async def _drain(_context: RunContext[Any], events: Any) -> None:
    async for _ in events:
        pass
