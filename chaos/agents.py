"""The agents of the chaos runs. Each start of a run is a line in a file, so that a second one is seen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from axon_zmq.worker.registry.offline_models import tools, user_text

STARTS = "CHAOS_STARTS"
"""Environment variable: the file of starts."""


def _started(name: str) -> None:
    with Path(os.environ[STARTS]).open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")  # one short write: of several processes none tears another's


async def _stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    asked = json.loads(user_text(messages))
    _started(asked["name"])
    for number in range(asked["tokens"]):
        await asyncio.sleep(asked["seconds"])
        yield f"{number:04d} "


async def _respond(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    asked = json.loads(user_text(messages))
    _started(asked["name"])
    await asyncio.sleep(asked["tokens"] * asked["seconds"])
    return ModelResponse(parts=[TextPart("".join(f"{number:04d} " for number in range(asked["tokens"])))])


paced = Agent(FunctionModel(_respond, stream_function=_stream, model_name="paced"), name="paced")
"""The prompt says its name, how many tokens it has, and the seconds before each."""


def prompt(name: str, tokens: int, seconds: float) -> str:
    """A prompt for `paced`."""
    return json.dumps({"name": name, "tokens": tokens, "seconds": seconds})


def text(tokens: int) -> str:
    """What `paced` answers."""
    return "".join(f"{number:04d} " for number in range(tokens))


caller = Agent(tools(), name="caller")
"""Calls what its prompt says: tools of the client's."""


def _calls_its_tool(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    _started(user_text(messages))
    return ModelResponse(parts=[ToolCallPart(info.function_tools[0].name, {})])


poison = Agent(FunctionModel(_calls_its_tool, model_name="poison"), name="poison")


@poison.tool_plain
def crash() -> str:
    """Ends its own process, as a fault in native code does."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


busy = Agent(FunctionModel(_calls_its_tool, model_name="busy"), name="busy")


@busy.tool_plain
async def spin() -> str:
    """Holds the event loop, for ever."""
    while True:
        pass


NAMES = ",".join(
    [f"{name}=chaos.agents:{name}" for name in ("paced", "caller", "poison", "busy")]
    + ["echo=axon_zmq.agents.echo:agent"]
)
"""What the daemon serves (`AXON_AGENTS`)."""
