"""The streamed model requests of a run, which must be closed with it."""

from __future__ import annotations

import asyncio
from typing import Final

from axon_zmq.worker.adapter.compat import ModelRequestTasks

MODEL_CLOSE_TIMEOUT_S: Final = 5.0
"""Seconds that a request which the run left open may take to end."""


class OpenRequests(ModelRequestTasks):
    """The open requests of one run.

    pydantic-ai 2.62 has each streamed request in a task of its own, and forgets it if a cancel comes just when it is
    ready. The provider's stream then stays open until the garbage collector ends that task, which it does amid another
    run: that run leaves a cancel scope which is not its own, and fails.
    """

    async def aclose(self) -> None:
        """End the requests that the run has left open. Call this in the task in which it ran."""
        left = [task for task in self.tasks if not task.done() and task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=MODEL_CLOSE_TIMEOUT_S)
