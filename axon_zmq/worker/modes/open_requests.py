"""The requests to the model that a streamed run has under way, so that none outlives it."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models import ModelRequestContext

CLOSE_TIME: Final = 5.0
"""Seconds that a request which was left behind has to end."""


class OpenRequests(AbstractCapability[Any]):
    """Those of one run.

    pydantic-ai 2.62 has each streamed request in a task of its own, and forgets it where a cancel comes just when it is
    ready. The provider's stream then stays open until the garbage collector ends that task, which it does amid another
    run: that one leaves a cancel scope which is not its own, and fails.
    """

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    async def before_model_request(
        self,
        ctx: RunContext[Any],  # noqa: ARG002 -- the name is pydantic-ai's
        request_context: ModelRequestContext,
    ) -> ModelRequestContext:
        """Note the task: pydantic-ai calls this in it."""
        if (task := asyncio.current_task()) is not None:
            self._tasks.append(task)
        return request_context

    async def aclose(self) -> None:
        """End those that the run has left, from the task in which it ran."""
        left = [task for task in self._tasks if not task.done() and task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CLOSE_TIME)
