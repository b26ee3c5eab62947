"""Models that need no network.

`echo` answers with the prompt, `tools` calls the tools that the prompt names, `synthetic` streams at a given pace, and
`test` is pydantic-ai's `TestModel`. pydantic-ai uses them like any other model, so measurements with them include all
of its work.

A request of a few bytes can ask these models for an answer of any size, so their answers are bounded: see
`MAX_OUTPUT_CHARS`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any, Final

from pydantic_ai import RunContext
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage
from pydantic_core import to_json

from axon_zmq.errors import ModelError, RequestError
from axon_zmq.worker.registry import generated_size

MAX_OUTPUT_CHARS: Final = 4 * 1024 * 1024
"""Maximum number of characters in all answers of an offline model to one run. In memory and on the wire, an answer
takes up to ten times its size: as deltas, as the result, in the messages, and packed."""
MAX_SCRIPT_CHARS: Final = MAX_OUTPUT_CHARS // 2
"""Maximum length of a prompt that the model `tools` reads as a script, in characters."""
MAX_SCRIPT_CALLS: Final = 2_000
"""Maximum number of calls in a script of the model `tools`. Each takes about 5 KiB while it is executed, and 20 bytes
in the prompt."""
MAX_PIECES: Final = 5_000
"""Maximum number of deltas in which a text is streamed. A longer text is streamed in larger deltas."""
MAX_PIECE_CHARS: Final = 65_536
"""Maximum length of a delta in characters."""
_ESTIMATED_CHARS: Final = 65_536
"""Length of a text up to which pydantic-ai estimates its tokens. For this it splits the text into words, which takes 60
bytes of memory for each word."""
_MAX_TEST_TEXT_CHARS: Final = 2 * 1024 * 1024
"""Maximum length of a text in the messages to the model `test`, which always lets pydantic-ai estimate tokens."""
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


def _pieces(text: str) -> Iterator[str]:
    """Split a text into the deltas in which it is streamed: its words, or several words each if it is long."""
    least = len(text) // MAX_PIECES
    gathered: list[str] = []
    size = 0
    for match in _WORD.finditer(text):
        gathered.append(match[0])
        size += len(match[0])
        if size > least:
            joined = "".join(gathered)
            yield from (joined[at : at + MAX_PIECE_CHARS] for at in range(0, size, MAX_PIECE_CHARS))
            gathered, size = [], 0
    if gathered:
        yield "".join(gathered)


def _check_output(messages: Sequence[ModelMessage], chars: int, most: int, name: str, fix: str) -> None:
    """Check that the answers of a run stay within their limit: a run may ask its model many times.

    Args:
        messages: The run's history and its messages so far.
        chars: Number of characters of the next answer.
        most: The limit for all answers together.
        name: Name of the model.
        fix: What the caller can do.

    Raises:
        ModelError: `model_rejected`.
    """
    of_run = messages[-1].run_id if messages else None
    earlier = [each for each in messages if isinstance(each, ModelResponse) and each.run_id == of_run]
    total = chars + sum(_chars_of(part) for each in earlier for part in each.parts)
    if total > most:
        raise ModelError(
            "model_rejected",
            f"model {name!r}: the answers of this run would have {total} characters, the limit of offline models is "
            f"{most}: {fix}",
        )


def _chars_of(part: object) -> int:
    match part:
        case TextPart(content=text) | ToolCallPart(args=str(text)):
            return len(text)
        case _:
            return 0


def _texts(messages: Sequence[ModelMessage]) -> Iterator[str]:
    """Return the texts in messages whose tokens pydantic-ai would estimate."""
    for message in messages:
        for part in message.parts:
            content = getattr(part, "content", None) if not isinstance(part, ToolCallPart) else part.args
            for text in content if isinstance(content, list) else [content]:
                if isinstance(text, str):
                    yield text
                elif isinstance(inner := getattr(text, "content", None), str):
                    yield inner


def _with_usage(messages: Sequence[ModelMessage], response: ModelResponse) -> ModelResponse:
    """Set the usage of a response to or with a long text, so that pydantic-ai does not split the text into words."""
    asked, answered = (max(map(len, _texts(each)), default=0) for each in (messages, [response]))
    if max(asked, answered) > _ESTIMATED_CHARS:
        tokens = [sum(map(len, _texts(each))) // 4 for each in (messages, [response])]
        response.usage = RequestUsage(input_tokens=50 + tokens[0], output_tokens=tokens[1])
    return response


def echo() -> FunctionModel:
    """Make a model that answers with the prompt, word by word.

    If the agent has an output tool, the model calls it with the prompt as its JSON arguments.
    """

    def prompt_of(messages: list[ModelMessage]) -> str:
        text = user_text(messages)
        most = max(len(text), MAX_OUTPUT_CHARS)
        _check_output(messages, len(text), most, "echo", "shorten the prompt, or allow fewer retries")
        return text

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        text = prompt_of(messages)
        part = ToolCallPart(info.output_tools[0].name, text) if info.output_tools else TextPart(text)
        return _with_usage(messages, ModelResponse(parts=[part]))

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        text = prompt_of(messages)
        for index, word in enumerate(_pieces(text) if text else [""]):
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
        return _with_usage(messages, ModelResponse(parts=answer(messages)))

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        for index, part in enumerate(answer(messages)):
            if isinstance(part, TextPart):
                for word in _pieces(part.content):
                    yield word
            else:
                yield {index: DeltaToolCall(part.tool_name, tool_call_id=part.tool_call_id)}
                for word in _pieces(part.args if isinstance(part.args, str) else json.dumps(part.args)):
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
    if len(text) > MAX_SCRIPT_CHARS:
        raise _script_too_large(f"its script has {len(text)} characters, the limit is {MAX_SCRIPT_CHARS}")
    try:
        calls = json.loads(text)
    except ValueError:
        return None
    steps = calls if isinstance(calls, list) and calls and isinstance(calls[0], list) else [calls]
    named = all(isinstance(step, list) and all(isinstance(c, dict) and "name" in c for c in step) for step in steps)
    if named and (calls_in_all := sum(map(len, steps))) > MAX_SCRIPT_CALLS:
        raise _script_too_large(f"its script has {calls_in_all} calls, the limit is {MAX_SCRIPT_CALLS}")
    return steps if named else None


def _script_too_large(what: str) -> ModelError:
    return ModelError("model_rejected", f"model 'tools': {what}: send a shorter prompt, or several requests")


class BoundedTestModel(TestModel):
    """pydantic-ai's `TestModel`, which generates arguments and output from their JSON Schemas, with bounds.

    A schema of a few bytes can demand a text or a list of any length.
    """

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Answer as `TestModel` does.

        Raises:
            ModelError: `model_rejected` if a message is too long, or a schema demands a value that is too large.
        """
        self._check(messages)
        return await super().request(messages, model_settings, model_request_parameters)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Stream an answer as `TestModel` does.

        Raises:
            ModelError: As `request`.
        """
        self._check(messages)
        async with super().request_stream(messages, model_settings, model_request_parameters, run_context) as response:
            yield response

    def gen_tool_args(self, tool_def: ToolDefinition) -> Any:
        """Generate the arguments of a tool.

        Raises:
            ModelError: `model_rejected` if its schema demands a value that is too large.
        """
        most = MAX_OUTPUT_CHARS // 16
        if generated_size.of(tool_def.parameters_json_schema, most) > most:
            raise ModelError(
                "model_rejected",
                f"model 'test': the schema of {tool_def.name!r} demands a value of more than {most} characters, the "
                "limit of offline models: lower its minLength and minItems, or use fewer references",
            )
        return super().gen_tool_args(tool_def)

    def _check(self, messages: list[ModelMessage]) -> None:
        if (longest := max(map(len, _texts(messages)), default=0)) > _MAX_TEST_TEXT_CHARS:
            raise ModelError(
                "model_rejected",
                f"model 'test': a message has a text of {longest} characters, the limit is {_MAX_TEST_TEXT_CHARS}: "
                "shorten it, or use another model",
            )


MODELS_BY_NAME = {"echo": echo, "tools": tools, "test": BoundedTestModel}
"""The models without settings, by their name."""


def is_offline(name: str) -> bool:
    """Whether a model's name denotes an offline model."""
    return name in MODELS_BY_NAME or name.partition(":")[0] == "synthetic"


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
        RequestError: `unknown_model`, with the invalid setting, or if all deltas together are too long.
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
    pace = Pace(**settings)
    if (chars := pace.tokens * pace.size) > MAX_OUTPUT_CHARS:
        raise RequestError(
            "unknown_model",
            f"synthetic model: tokens={pace.tokens} of size={pace.size} are {chars} characters, the limit of offline "
            f"models is {MAX_OUTPUT_CHARS}: use fewer or smaller tokens, or several requests",
        )
    return pace


def synthetic(spec: str) -> FunctionModel:
    """Make a model for load tests that streams deltas of a given number, size and pace.

    Args:
        spec: Settings, as in `pace_of`.

    Raises:
        RequestError: `unknown_model` if a setting is invalid.
    """
    pace = pace_of(spec)
    delta_of = _deltas(pace.size)

    def check(messages: list[ModelMessage]) -> None:
        fix = "use fewer or smaller tokens, or allow fewer retries"
        _check_output(messages, pace.tokens * pace.size, MAX_OUTPUT_CHARS, f"synthetic:{spec}", fix)

    async def respond(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        check(messages)
        await asyncio.sleep(pace.tokens * pace.delay_ms / 1000)
        # In blocks: a list of a million deltas would take ten times the memory of their text.
        blocks = (range(start, min(start + 1000, pace.tokens)) for start in range(0, pace.tokens, 1000))
        text = "".join(["".join(map(delta_of, block)) for block in blocks])
        return _with_usage(messages, ModelResponse(parts=[TextPart(text)]))

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        check(messages)
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
    return list(_pieces(json.dumps(value)))
