"""An agent that kills its worker process, as a crash in native code does."""

from __future__ import annotations

import os
import signal

from pydantic_ai import Agent
from sample_agents import calls_first_tool_once

agent = Agent(calls_first_tool_once(), name="crashing")


@agent.tool_plain
def crash() -> str:
    """Ends its own process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"
