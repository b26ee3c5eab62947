"""The streamed model requests of a run, which must be closed with it."""

from __future__ import annotations

import asyncio
from typing import Final

from axon_zmq.worker.adapter.compat import ModelRequestTasks

MODEL_CLOSE_TIMEOUT_S: Final = 5.0
"""Seconds that the requests which a run left open may take to end."""


class OpenRequests(ModelRequestTasks):
    """The open model requests of one run.

    Works around a race in pydantic-ai 2.62, which executes each streamed request in a separate task. If the run is
    cancelled at the moment when the response becomes ready, pydantic-ai loses its reference to that task. The
    provider's stream then stays open until the garbage collector destroys the task, which happens while another run
    executes. The cleanup leaves the task's cancel scope in the middle of that run, anyio finds a scope that is not its
    own, and the run fails. This happened in 3 of about 15,000 cancellations.

    The capability keeps a reference to each task, so that `aclose` can end it.
    """

    async def aclose(self) -> None:
        """End the requests that the run has left open; must be called in the task that executed the run."""
        # The current task may be among the recorded ones, and must not cancel itself.
        left = [task for task in self.tasks if not task.done() and task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=MODEL_CLOSE_TIMEOUT_S)
