"""The agents that are measured, the same ones in the workers and in process."""

from __future__ import annotations

from pydantic_ai import Agent

from axon_zmq.agents.echo import agent as echo
from axon_zmq.worker.offline import synthetic, tools

DELTAS = 500
"""What `stream` streams: so many deltas of five characters, without a pause."""

stream = Agent(synthetic(f"tokens={DELTAS},delay_ms=0,size=5"), name="stream")

caller = Agent(tools(), name="caller")
"""Calls what its prompt says: tools of the client's."""
python_caller = Agent(tools(), name="python_caller")
"""The same, with the tool in Python."""


@python_caller.tool_plain
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


__all__ = ["DELTAS", "caller", "echo", "python_caller", "stream"]
