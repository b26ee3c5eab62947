"""Mode `run_sync`: a thread for each slot, each with its own event loop, agents and providers.

An agent or provider that several event loops share fails, because its HTTP client belongs to the loop that used it
first.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import count
from typing import Any

from axon_zmq.worker.modes import agent_call
from axon_zmq.worker.registry.agents import Registry
from axon_zmq.worker.run import Run


class RunSyncMode:
    """The executor of a `run_sync` worker.

    Args:
        slots: How many threads.
        make_registry: Makes the registry of a thread. Its argument says whether the operator's modules must be executed
            again: only the first thread can use the imported ones.
    """

    def __init__(self, slots: int, make_registry: Callable[[bool], Registry]) -> None:
        self._make_registry = make_registry
        self._slot = threading.local()
        self._numbers = count()
        self._threads = ThreadPoolExecutor(slots, "slot", self._open_slot)

    def _open_slot(self) -> None:
        """Prepare a thread of the pool, when it starts."""
        # One event loop for all runs of the thread, which pydantic-ai's `run_sync` uses: the HTTP clients of providers
        # belong to it, and their connections stay open between runs.
        asyncio.set_event_loop(asyncio.new_event_loop())
        self._slot.registry = self._make_registry(next(self._numbers) > 0)

    async def execute(self, run: Run) -> dict[str, Any]:
        """Run the agent in a free thread and return the body of `complete`.

        Raises:
            AxonError: The request is invalid, or the agent failed.
        """
        context = copy_context()  # so that log records and traces of the thread belong to this run
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: context.run(self._run, run))

    def _run(self, run: Run) -> dict[str, Any]:
        call = agent_call.call_for_run(run, self._slot.registry)
        with call.converted_errors():
            result = call.agent.run_sync(call.prompt, cancellation_token=run.token, **call.options)
        return agent_call.completed(result)
