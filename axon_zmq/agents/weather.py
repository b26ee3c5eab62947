"""Example agent `weather`: an agent with a Python tool and structured output that needs no network.

A scripted model replaces the language model: it calls the tool for each place in the prompt, and then answers with a
`Forecast`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from axon_zmq.worker.registry.offline_models import json_words, user_text

log = logging.getLogger(__name__)

TEMPERATURES = {"Berlin": 7.5, "Lisbon": 16.0, "Oslo": -3.0, "Porto": 14.5, "Rome": 13.0}
"""Temperatures by place, in degrees Celsius."""


class Forecast(BaseModel):
    """Structured output of the agent `weather`."""

    summary: str
    celsius: dict[str, float] = Field(description="Temperature by place.")


def _script(messages: list[ModelMessage], info: AgentInfo) -> list[ToolCallPart]:
    # Like a language model, the script has no memory: it finds the earlier results of the tool in the messages.
    known = {
        str(part.content["place"]): float(part.content["celsius"])
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, ToolReturnPart) and isinstance(part.content, dict) and "place" in part.content
    }
    asked = [place for place in TEMPERATURES if place.casefold() in user_text(messages).casefold()] or ["Berlin"]
    if missing := [place for place in asked if place not in known]:
        return [ToolCallPart("temperature", {"place": place}) for place in missing]
    summary = ", ".join(f"{place}: {known[place]:g} °C" for place in asked)
    return [ToolCallPart(info.output_tools[0].name, {"summary": summary, "celsius": {p: known[p] for p in asked}})]


async def _respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    return ModelResponse(parts=_script(messages, info))


async def _stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
    for index, call in enumerate(_script(messages, info)):
        yield {index: DeltaToolCall(call.tool_name, tool_call_id=call.tool_call_id)}
        for word in json_words(call.args_as_dict()):
            yield {index: DeltaToolCall(json_args=word)}


agent = Agent(
    FunctionModel(_respond, stream_function=_stream, model_name="weather-script"),
    name="weather",
    description="Reports temperatures of a few places, with a Python tool and structured output; needs no network.",
    output_type=Forecast,
    deps_type=dict[str, float] | None,
)


@agent.tool
def temperature(ctx: RunContext[dict[str, float] | None], place: str) -> dict[str, str | float]:
    """The temperature of a place, in degrees Celsius.

    Args:
        ctx: Its `deps` may contain temperatures by place, which take precedence over `TEMPERATURES`.
        place: Name of the place.
    """
    readings = {**TEMPERATURES, **(ctx.deps or {})}
    if place not in readings:
        raise ModelRetry(f"no temperature for {place!r}; known places: {', '.join(readings)}")
    log.debug("read the thermometer of %s", place, extra={"celsius": readings[place]})
    return {"place": place, "celsius": readings[place]}
