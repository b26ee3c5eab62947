"""The agents that are measured: the same ones in the workers, in the peers and in process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, FunctionModel

from axon_zmq.agents.echo import agent as echo
from axon_zmq.worker.registry.offline_models import synthetic, tools, user_text

DELTAS = 500
"""Number of deltas that `stream` sends, each of `SIZE` characters, without a pause."""
SIZE = 5
"""Characters of a delta."""
PACE_S = 0.02
"""Seconds between two deltas of `paced`, as between two tokens of a large model."""

stream = Agent(synthetic(f"tokens={DELTAS},delay_ms=0,size={SIZE}"), name="stream")

caller = Agent(tools(), name="caller")
"""Calls the tools that its prompt names; the client executes them."""
python_caller = Agent(tools(), name="python_caller")
"""The same, with the tool in Python."""


@python_caller.tool_plain
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def _number(number: int) -> str:
    return f"{number:0{SIZE - 1}d} "


async def _paced(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(int(user_text(messages))):
        await asyncio.sleep(max(0.0, start + number * PACE_S - loop.time()))
        yield _number(number)


paced = Agent(FunctionModel(stream_function=_paced), name="paced")
"""Sends the number of deltas that its prompt gives, one every `PACE_S` seconds, as `synthetic` does."""


def text(deltas: int) -> str:
    """The text of that many deltas of `stream` or `paced`. Each delta is its own number, so that a gap is visible."""
    return "".join(map(_number, range(deltas)))


__all__ = ["DELTAS", "PACE_S", "SIZE", "caller", "echo", "paced", "python_caller", "stream", "text"]
