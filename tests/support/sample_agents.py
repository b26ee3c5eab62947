"""Agents that misbehave. Workers import them by the names in `tests.support.daemon.AGENTS`."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from datetime import date

import psutil
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, DeferredToolRequests, RunContext, ToolReturn
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import ExternalToolset

from axon_zmq.worker.registry.offline_models import user_text


def calls_first_tool_once(text: str = "done") -> FunctionModel:
    """A model that calls the agent's first tool, and then answers with its result."""

    def step(messages: list[ModelMessage], info: AgentInfo) -> ToolCallPart | str:
        last = messages[-1]
        assert isinstance(last, ModelRequest)
        returned = [part for part in last.parts if isinstance(part, ToolReturnPart)]
        return f"{text}: {returned[0].content}" if returned else ToolCallPart(info.function_tools[0].name, {})

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        part = step(messages, info)
        return ModelResponse(parts=[TextPart(part) if isinstance(part, str) else part])

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        part = step(messages, info)
        if isinstance(part, str):
            yield part
        else:
            yield {0: DeltaToolCall(part.tool_name, "{}", tool_call_id=part.tool_call_id)}

    return FunctionModel(respond, stream_function=stream, model_name="scripted")


async def _floods(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    for _ in range(20_000):
        yield "x" * 4000
        await asyncio.sleep(0)


flood = Agent(FunctionModel(stream_function=_floods, model_name="flood"), name="flood")
"""Streams 80 MB, which is more than offline models that a client names may answer."""


async def _hoards(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """Take the memory that the prompt names: `BYTES at once`, or until the process uses `BYTES in all`."""
    size, _, how = user_text(messages).partition(" ")
    if how.startswith("at once"):
        return ModelResponse(parts=[TextPart(f"{len(bytearray(int(size)))}")])
    blocks: list[bytes] = []
    while (missing := int(size) - psutil.Process().memory_info().rss) > 0:
        blocks.append(b"x" * min(missing, 2**20))
    await asyncio.sleep(60)
    return ModelResponse(parts=[TextPart(f"{len(blocks)}")])


hoarder = Agent(FunctionModel(_hoards, model_name="hoarder"), name="hoarder")

slow = Agent(calls_first_tool_once(), name="slow")


@slow.tool_plain
def sleep_in_a_thread() -> str:
    """Block only the thread of this tool."""
    time.sleep(1)
    return "slept"


stubborn = Agent(calls_first_tool_once(), name="stubborn")


@stubborn.tool_plain
async def block_the_loop() -> str:
    """Block the event loop, so that the tool cannot be cancelled."""
    time.sleep(60)  # noqa: ASYNC251 -- on purpose
    return "never"


raising = Agent(calls_first_tool_once(), name="raising")


@raising.tool_plain
def divide() -> float:
    """Raise an exception."""
    return 1 / 0


cancelling = Agent(calls_first_tool_once(), name="cancelling")


@cancelling.tool_plain
async def cancel_itself() -> str:
    """Raise an exception that only asyncio should raise."""
    raise asyncio.CancelledError


exiting = Agent(calls_first_tool_once(), name="exiting")


@exiting.tool_plain
def exit_now() -> str:
    """Exit the process."""
    raise SystemExit(3)


interrupting = Agent(calls_first_tool_once(), name="interrupting")


@interrupting.tool_plain
def interrupt_now() -> str:
    """Raise KeyboardInterrupt, as a debugger does at Ctrl-C."""
    raise KeyboardInterrupt


async def _leaving(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    yield "good"
    yield "bye"
    raise SystemExit(3)


leaving = Agent(FunctionModel(stream_function=_leaving), name="leaving")


odd = Agent(calls_first_tool_once(), name="odd")


@odd.tool_plain
def odd_answer() -> dict[object, object]:
    """Return a map that msgpack can pack and other languages cannot read."""
    return {1: "one", "nan": float("nan")}


class Opaque:
    """A type of deps that has no JSON Schema."""


opaque = Agent(calls_first_tool_once(), name="opaque", deps_type=Opaque)


@opaque.tool_plain
def nothing() -> int:
    """Return an integer that msgpack cannot represent."""
    return 2**70


async def _think(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[object]:
    yield {0: DeltaThinkingPart(content="let me ")}
    yield {0: DeltaThinkingPart(content="think")}
    await asyncio.sleep(0)
    yield "the "
    yield "answer"


thinker = Agent(FunctionModel(stream_function=_think), name="thinker")  # type: ignore[arg-type]


class Person(BaseModel):
    name: str
    age: int


typed = Agent(calls_first_tool_once("deps"), name="typed", deps_type=Person)


@typed.tool
def who(ctx: RunContext[Person]) -> str:
    """Return the deps."""
    return f"{ctx.deps.name} is {ctx.deps.age}"


def _same_ids(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    results = [
        str(part.content)
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart)
    ]
    if len(results) < 2:
        return ModelResponse(parts=[ToolCallPart("weather", {"place": "Oslo"}, tool_call_id="call_0")])
    return ModelResponse(parts=[TextPart(" ".join(results))])


same_ids = Agent(FunctionModel(_same_ids), name="same_ids")
"""An agent whose model restarts the numbers of calls in each response, as some providers do."""


def _careful(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    returned = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    if returned:
        return ModelResponse(parts=[TextPart(str(returned[-1].content))])
    if user_text(messages) == "elsewhere":
        return ModelResponse(parts=[ToolCallPart("elsewhere", {})])
    return ModelResponse(parts=[ToolCallPart("refund", {"euros": 12})])


async def _careful_stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    [part] = _careful(messages, info).parts
    if isinstance(part, TextPart):
        yield part.content
    elif isinstance(part, ToolCallPart):
        yield {0: DeltaToolCall(part.tool_name, '{"euros": 12}', tool_call_id=part.tool_call_id)}


careful = Agent(FunctionModel(_careful, stream_function=_careful_stream), name="careful")


@careful.tool_plain(requires_approval=True)
def refund(euros: int) -> str:
    """Refund an order."""
    return f"refunded {euros}"


_log = logging.getLogger("sample_agents.tools")


def _asking_once(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    if any(isinstance(part, ToolReturnPart) for message in messages for part in message.parts):
        return ModelResponse(parts=[TextPart("done")])
    return ModelResponse(parts=[ToolCallPart("ask", {"place": user_text(messages)})])


async def _asking_once_stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    [part] = _asking_once(messages, info).parts
    if isinstance(part, TextPart):
        yield part.content
    elif isinstance(part, ToolCallPart):
        yield {0: DeltaToolCall(part.tool_name, json.dumps(part.args), tool_call_id=part.tool_call_id)}


logging_ = Agent(FunctionModel(_asking_once, stream_function=_asking_once_stream), name="logging")
"""An agent whose tool writes log records."""


class _Textless:
    def __repr__(self) -> str:
        raise RuntimeError("it has no text")


@logging_.tool_plain
async def ask(place: str) -> str:
    """Write log records."""
    _log.debug("in detail: %s", place)
    extra = {"place": place, "when": date(2026, 1, 2), "raw": b"\x00\xff", "big": 2**70}
    _log.info("asked for %s", place, extra=extra)
    await asyncio.to_thread(_log.warning, "from a thread")
    try:
        print(1 / 0)
    except ZeroDivisionError:
        _log.exception("cannot divide")
    if place == "library":
        library = logging.getLogger("botocore.auth")
        library.debug("Authorization: Bearer abc")
        library.info("Authorization: Bearer abc")
        library.warning("the library warns")
    if place == "odd":
        odd = {"odd": _Textless(), "nested": {"blob": b"\xff"}, "huge": list(range(100_000))}
        _log.debug("%s", "SECRET")
        _log.debug("%d of %s", "SECRET", extra=odd)
    if place == "flood":
        for number in range(5000):
            _log.info("record %d", number)
    return "logged"


callable_ = Agent(
    FunctionModel(_careful),
    name="callable",
    toolsets=[ExternalToolset([ToolDefinition(name="elsewhere")])],
    output_type=[str, DeferredToolRequests],
)
"""Tools that tests call without a model."""


@callable_.tool_plain
async def sleep() -> str:
    """Sleep for a minute."""
    await asyncio.sleep(60)
    return "slept"


@callable_.tool_plain(timeout=0.05)
async def impatient() -> str:
    """Sleep for longer than the timeout of the tool."""
    await asyncio.sleep(60)
    return "slept"


@callable_.tool_plain
def broken() -> str:
    """Raise ModelRetry or another exception."""
    raise ToolFailed("out of order")


@callable_.tool_plain
def picture() -> ToolReturn:
    """Return a picture."""
    return ToolReturn("a dot", content=[BinaryContent(b"\x89PNG", media_type="image/png")], metadata={"size": 1})


@callable_.tool_plain
def undocumented() -> str:
    return "nothing is said of it"


def double(number: int) -> int:
    """Return twice the number."""
    return 2 * number


plain = [double]
"""A toolset: a list of functions."""
