"""`assistant`: a plain assistant on the model of `AXON_MODEL`; it echoes where none is set."""

from __future__ import annotations

from pydantic_ai import Agent
from pydantic_ai.models import Model

from axon_zmq import settings
from axon_zmq.worker.registry.offline_models import echo


def make() -> Agent[object, str]:
    """The agent, for the settings of this process."""
    model: Model | str = settings.load().model or echo()
    return Agent(
        model,
        name="assistant",
        description="A plain assistant on the model of AXON_MODEL; it echoes where none is set.",
        instructions="Be helpful, correct and short.",
        defer_model_check=True,
    )
