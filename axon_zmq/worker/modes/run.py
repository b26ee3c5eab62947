"""Mode `run`: many runs at a time on one event loop, each with `await Agent.run`."""

from __future__ import annotations

from typing import Any

from axon_zmq.worker.modes import agent_call
from axon_zmq.worker.registry.agents import Registry
from axon_zmq.worker.run import Run


class RunMode:
    """The executor of a `run` worker."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def execute(self, run: Run) -> dict[str, Any]:
        """Run the agent and return the body of `complete`.

        Raises:
            AxonError: The request is invalid, or the agent failed.
        """
        call = await agent_call.call_for_run_in_thread(run, self._registry)
        with call.converted_errors():
            result = await call.agent.run(call.prompt, cancellation_token=run.token, **call.options)
        return agent_call.completed(result)
