"""Models that need no network.

`echo` answers with the prompt, `tools` calls the tools that the prompt names, and `synthetic` streams at a given pace.
pydantic-ai uses them like any other model, so measurements with them include all of its work.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from typing import Any

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_core import to_json

from axon_zmq.errors import RequestError

_WORD = re.compile(r"\s*\S+|\s+$")


def user_text(messages: list[ModelMessage]) -> str:
    """Return the text of the last user prompt; other parts appear as their kind in brackets."""
    for message in reversed(messages):
        if isinstance(message, ModelRequest):
            for part in reversed(message.parts):
                if isinstance(part, UserPromptPart):
                    return part.content if isinstance(part.content, str) else " ".join(map(_part_text, part.content))
    return ""


def _part_text(part: object) -> str:
    return part if isinstance(part, str) else f"[{getattr(part, 'kind', type(part).__name__)}]"


def echo() -> FunctionModel:
    """Make a model that answers with the prompt, word by word.

    If the agent has an output tool, the model calls it with the prompt as its JSON arguments.
    """

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        text = user_text(messages)
        if info.output_tools:
            return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, text)])
        return ModelResponse(parts=[TextPart(text)])

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return answer(messages, info)

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        words = _WORD.findall(user_text(messages)) or [""]
        for index, word in enumerate(words):
            if info.output_tools:
                yield {0: DeltaToolCall(info.output_tools[0].name if index == 0 else None, word)}
            else:
                yield word

    return FunctionModel(respond, stream_function=stream, model_name="echo")


def tools() -> FunctionModel:
    """Make a model that calls tools as a script: the prompt is a JSON list of `{"name": …, "args": …}`.

    The calls of one list are made in one response; a list of lists is one response for each inner list. At the end the
    model answers with a JSON list of the tools' results, with `{"heard": text}` for each user message in between.
    """

    def answer(messages: list[ModelMessage]) -> list[TextPart | ToolCallPart]:
        script, step, gathered = _script(messages)
        if script is None:
            return [TextPart('write a JSON list of calls as the prompt: [{"name": "a_tool", "args": {}}]')]
        if step < len(script):
            return [ToolCallPart(call["name"], call.get("args", {})) for call in script[step]]
        return [TextPart(to_json(gathered, bytes_mode="base64").decode())]

    async def respond(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=answer(messages))

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        for index, part in enumerate(answer(messages)):
            if isinstance(part, TextPart):
                for word in _WORD.findall(part.content):
                    yield word
            else:
                yield {index: DeltaToolCall(part.tool_name, tool_call_id=part.tool_call_id)}
                for word in _WORD.findall(part.args if isinstance(part.args, str) else json.dumps(part.args)):
                    yield {index: DeltaToolCall(json_args=word)}

    return FunctionModel(respond, stream_function=stream, model_name="tools")


def _script(messages: list[ModelMessage]) -> tuple[list[list[dict[str, Any]]] | None, int, list[Any]]:
    """Return the steps of the last prompt that is a script, how many of them are done, and their results so far."""
    script, step, gathered = None, 0, list[Any]()
    for message in messages:
        step += isinstance(message, ModelResponse)
        for part in message.parts:
            if isinstance(part, ToolReturnPart):
                gathered.append(part.content)
            elif isinstance(part, UserPromptPart):
                text = user_text([ModelRequest(parts=[part])])
                if (steps := _steps(text)) is None:
                    gathered.append({"heard": text})
                else:
                    script, step, gathered = steps, 0, []
    return script, step, gathered


def _steps(text: str) -> list[list[dict[str, Any]]] | None:
    try:
        calls = json.loads(text)
    except ValueError:
        return None
    steps = calls if isinstance(calls, list) and calls and isinstance(calls[0], list) else [calls]
    named = all(isinstance(step, list) and all(isinstance(c, dict) and "name" in c for c in step) for step in steps)
    return steps if named else None


MODELS_BY_NAME = {"echo": echo, "tools": tools}
"""The models without settings, by their name."""


@dataclass(frozen=True)
class Pace:
    """Number, pace and size of the deltas of a `synthetic` model."""

    tokens: int = 50
    """Number of deltas; at most a million."""
    delay_ms: int = 20
    """Milliseconds between two deltas; at most 60,000."""
    size: int = 5
    """Characters of each delta; at most 64 Ki."""


_MAX_PACE = Pace(tokens=1_000_000, delay_ms=60_000, size=65_536)


def pace_of(spec: str) -> Pace:
    """Parse settings such as `tokens=50,delay_ms=20,size=5`; a missing setting has its default.

    Raises:
        RequestError: `unknown_model`, with the invalid setting.
    """
    settings: dict[str, int] = {}
    known = [field.name for field in fields(Pace)]
    for item in filter(None, spec.split(",")):
        name, _, value = item.partition("=")
        most = getattr(_MAX_PACE, name) if name in known else 0
        least = 1 if name != "delay_ms" else 0
        if name not in known or not value.isdecimal() or not least <= int(value) <= most:
            raise RequestError(
                "unknown_model",
                f"synthetic model: invalid setting {item!r}: expected synthetic:tokens=50,delay_ms=20,size=5 with at "
                f"most {', '.join(f'{name}={getattr(_MAX_PACE, name)}' for name in known)}",
            )
        settings[name] = int(value)
    return Pace(**settings)


def synthetic(spec: str) -> FunctionModel:
    """Make a model for load tests that streams deltas of a given number, size and pace.

    Args:
        spec: Settings, as in `pace_of`.

    Raises:
        RequestError: `unknown_model` if a setting is invalid.
    """
    pace = pace_of(spec)
    delta_of = _deltas(pace.size)

    async def respond(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        await asyncio.sleep(pace.tokens * pace.delay_ms / 1000)
        return ModelResponse(parts=[TextPart("".join(map(delta_of, range(pace.tokens))))])

    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for index in range(pace.tokens):
            # Each delta has an absolute time: with a pause after each delta, the delays of the event loop would add up.
            await asyncio.sleep(max(0.0, start + index * pace.delay_ms / 1000 - loop.time()))
            yield delta_of(index)

    return FunctionModel(respond, stream_function=stream, model_name=f"synthetic:{spec}")


def _deltas(size: int) -> Callable[[int], str]:
    """Return a function that makes the text of the n-th delta: its number, which makes gaps visible."""
    if size == 1:
        return lambda index: str(index % 10)
    return lambda index: f"{index:0{size - 1}d}"[1 - size :] + " "


def json_words(value: object) -> list[str]:
    """Split a value's JSON text into the pieces in which an offline model streams it."""
    return _WORD.findall(json.dumps(value))
