"""Example agent `assistant`: a general assistant that uses the model in `AXON_MODEL`, or `echo` if that is not set."""

from __future__ import annotations

from pydantic_ai import Agent
from pydantic_ai.models import Model

from axon_zmq import settings
from axon_zmq.worker.registry.offline_models import echo


def make() -> Agent[object, str]:
    """Create the agent with the settings of this process."""
    model: Model | str = settings.load().model or echo()
    return Agent(
        model,
        name="assistant",
        description="A general assistant that uses the model in AXON_MODEL. Without a model, it repeats the prompt.",
        instructions="Be helpful, correct and short.",
        # The worker resolves the name of the model, so that all runs share one provider for a base URL and API key.
        defer_model_check=True,
    )
