"""An agent whose first start takes longer than the deadline of its request; it reports the log level."""

from __future__ import annotations

import logging
import time

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from axon_zmq.worker import run_logs


def _levels(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    return ModelResponse(
        parts=[TextPart(f"root {logging.getLogger().level}, listeners {run_logs.handler.listening_runs}")]
    )


def make() -> Agent[object, str]:
    """The agent, after a second."""
    time.sleep(1.0)
    return Agent(FunctionModel(_levels), name="late")
