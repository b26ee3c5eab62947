"""The agents that are measured, the same ones in the workers and in process."""

from __future__ import annotations

from pydantic_ai import Agent

from axon_zmq.agents.echo import agent as echo
from axon_zmq.worker.offline import synthetic

DELTAS = 500
"""What `stream` streams: so many deltas of five characters, without a pause."""

stream = Agent(synthetic(f"tokens={DELTAS},delay_ms=0,size=5"), name="stream")

__all__ = ["DELTAS", "echo", "stream"]
