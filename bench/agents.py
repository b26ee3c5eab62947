"""The agents that are measured, the same ones in the workers and in process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, FunctionModel

from axon_zmq.agents.echo import agent as echo
from axon_zmq.worker.registry.offline_models import synthetic, tools, user_text

DELTAS = 500
"""What `stream` streams: so many deltas of five characters, without a pause."""
SIZE = 5
"""Characters of a delta."""
PACE = 0.02
"""Seconds between two deltas of `paced`, as between two tokens of a large model."""

stream = Agent(synthetic(f"tokens={DELTAS},delay_ms=0,size={SIZE}"), name="stream")

caller = Agent(tools(), name="caller")
"""Calls what its prompt says: tools of the client's."""
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
        await asyncio.sleep(max(0.0, start + number * PACE - loop.time()))
        yield _number(number)


paced = Agent(FunctionModel(stream_function=_paced), name="paced")
"""As many deltas as its prompt says, each at its time, as `synthetic` has them."""


def text(deltas: int) -> str:
    """What so many deltas of `stream` or `paced` say: each is its own number, so a gap shows."""
    return "".join(map(_number, range(deltas)))


__all__ = ["DELTAS", "PACE", "SIZE", "caller", "echo", "paced", "python_caller", "stream", "text"]
