"""Agents of the chaos tests. Each start of a run appends a line to a file, so that a second start is detected."""

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
"""Environment variable with the path of the file of starts."""


def _record_start(name: str) -> None:
    with Path(os.environ[STARTS]).open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")  # one short append is atomic, so processes do not mix their lines


async def _stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    request = json.loads(user_text(messages))
    _record_start(request["name"])
    for number in range(request["tokens"]):
        await asyncio.sleep(request["seconds"])
        yield f"{number:04d} "


async def _respond(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    request = json.loads(user_text(messages))
    _record_start(request["name"])
    await asyncio.sleep(request["tokens"] * request["seconds"])
    return ModelResponse(parts=[TextPart("".join(f"{number:04d} " for number in range(request["tokens"])))])


paced = Agent(FunctionModel(_respond, stream_function=_stream, model_name="paced"), name="paced")
"""Answers with a number of tokens at a fixed pace. The prompt contains the run's name, the tokens and the pace."""


def prompt(name: str, tokens: int, seconds: float) -> str:
    """Return a prompt for `paced`; `seconds` is the time before each token."""
    return json.dumps({"name": name, "tokens": tokens, "seconds": seconds})


def text(tokens: int) -> str:
    """Return the answer of `paced` with this number of tokens."""
    return "".join(f"{number:04d} " for number in range(tokens))


caller = Agent(tools(), name="caller")
"""Calls the client's tools that its prompt lists."""


def _calls_its_tool(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    _record_start(user_text(messages))
    return ModelResponse(parts=[ToolCallPart(info.function_tools[0].name, {})])


poison = Agent(FunctionModel(_calls_its_tool, model_name="poison"), name="poison")


@poison.tool_plain
def crash() -> str:
    """Kill the worker process, as a crash in native code does."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


busy = Agent(FunctionModel(_calls_its_tool, model_name="busy"), name="busy")


@busy.tool_plain
async def spin() -> str:
    """Block the event loop forever."""
    while True:
        pass


async def _floods(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    for _ in range(10_000):
        await asyncio.sleep(0.001)
        yield "x" * 4000


flood = Agent(FunctionModel(stream_function=_floods, model_name="flood"), name="flood")
"""Streams 40 MB, which is more than offline models that a client names may answer."""


NAMES = ",".join(
    [f"{name}=chaos.agents:{name}" for name in ("paced", "caller", "poison", "busy", "flood")]
    + ["echo=axon_zmq.agents.echo:agent"]
)
"""Value of `AXON_AGENTS`: the agents that the daemon serves."""
