"""An agent that kills the process that runs it, as a fault in native code does; for the tests of crashes."""

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
