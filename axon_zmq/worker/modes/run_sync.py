"""Mode `run_sync`: a thread for each run that executes, each with its own event loop, agents and providers.

An agent or provider that several event loops share fails, because its HTTP client belongs to the loop that used it
first. A run that waits for a tool of its client keeps its thread, because its code is on the stack of that thread.
Another thread then executes the run that gets its slot, so that there are more threads than slots.
"""

from __future__ import annotations

import asyncio
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
        slots: How many threads are kept while they have no run. There are more threads only while runs wait for tools
            of their clients.
        make_registry: Makes the registry of a thread. Its argument says whether the operator's modules must be executed
            again: only the first thread can use the imported ones.
    """

    def __init__(self, slots: int, make_registry: Callable[[bool], Registry]) -> None:
        self._slots = slots
        self._make_registry = make_registry
        self._numbers = count()
        self._idle: list[_Thread] = []
        """Threads without a run; the one that had a run last is used first."""

    async def execute(self, run: Run) -> dict[str, Any]:
        """Run the agent in a free thread and return the body of `complete`.

        Raises:
            AxonError: The request is invalid, or the agent failed.
        """
        thread = self._idle.pop() if self._idle else _Thread(next(self._numbers), self._make_registry)
        try:
            return await thread.execute(run)
        finally:
            if len(self._idle) < self._slots:
                self._idle.append(thread)
            else:
                thread.end()


class _Thread:
    """One thread with its event loop and registry, which it makes for its first run.

    Args:
        number: Serial number; the thread with number 0 uses the imported modules of the operator.
        make_registry: As for `RunSyncMode`.
    """

    def __init__(self, number: int, make_registry: Callable[[bool], Registry]) -> None:
        self._number = number
        self._make_registry = make_registry
        self._executor = ThreadPoolExecutor(1, f"slot_{number}")
        self._registry: Registry | None = None

    async def execute(self, run: Run) -> dict[str, Any]:
        """Execute a run; as `RunSyncMode.execute`."""
        context = copy_context()  # so that log records and traces of the thread belong to this run
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: context.run(self._run, run))

    def end(self) -> None:
        """End the thread, which has no run."""
        self._executor.submit(self._close)
        self._executor.shutdown(wait=False)

    def _run(self, run: Run) -> dict[str, Any]:
        call = agent_call.call_for_run(run, self._open())
        with call.converted_errors():
            result = call.agent.run_sync(call.prompt, cancellation_token=run.token, **call.options)
        return agent_call.completed(result)

    def _open(self) -> Registry:
        if self._registry is None:
            # One event loop for all runs of the thread, which pydantic-ai's `run_sync` uses: the HTTP clients of
            # providers belong to it, and their connections stay open between runs.
            asyncio.set_event_loop(asyncio.new_event_loop())
            self._registry = self._make_registry(self._number > 0)
        return self._registry

    def _close(self) -> None:
        if self._registry is not None:
            loop = asyncio.get_event_loop()
            loop.run_until_complete(self._registry.aclose())
            loop.close()
