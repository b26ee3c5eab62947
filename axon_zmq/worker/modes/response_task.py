"""Reads a model's response in a separate task.

When a task is resumed, Python passes through every frame of its await chain. Between `Agent.run` and a provider's
socket there are dozens of frames; with hundreds of streams, none of them is in the processor's cache, and passing
through them costs more than the delta itself. The task here has few frames, and the agent's task is resumed only for
the merged events. With 500 paced streams on a busy machine, the median added delay of a delta fell from 1.4 s to 0.6 s
(docs/performance.md).

The response is opened, read and closed in the same task, because anyio's cancel scopes and timeouts must be left in the
task that entered them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext

from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import StreamedResponse

from axon_zmq.worker.adapter import compat

Events = AsyncIterator[ModelResponseStreamEvent]
Transform = Callable[[Events], AsyncGenerator[ModelResponseStreamEvent]]


@asynccontextmanager
async def read_in_task(
    request: AbstractAsyncContextManager[StreamedResponse], transform: Transform
) -> AsyncGenerator[StreamedResponse]:
    """Open, read and close a model's response in another task, as if it happened in the current one.

    There are two differences: context variables that the model sets are not visible here; and if the context is left
    before the response was read to its end, for any reason, the model's code is cancelled.

    Args:
        request: The model's request.
        transform: Makes the events for the reader from the events of the response. It continues after an event only
            when the reader has processed that event.
    """
    reading = _Reading(request, transform)
    task = asyncio.create_task(reading.execute())
    try:
        yield await reading.response
    finally:
        if reading.leave():
            await _cancel_and_wait(task)
        else:
            await task


async def _cancel_and_wait(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended.

    If the current task is cancelled meanwhile, asyncio cancels `task` again and the CancelledError is raised here. Only
    `cancelling` shows whether a CancelledError belongs to `task` or to the current task.
    """
    current = asyncio.current_task()
    before = current.cancelling() if current else 0
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if current is not None and current.cancelling() > before:
            raise


class _Reading:
    """A response that one task reads for another one, the reader: the agent's task, which iterates over the events."""

    def __init__(self, request: AbstractAsyncContextManager[StreamedResponse], transform: Transform) -> None:
        self._request = request
        self._transform = transform
        self.response: asyncio.Future[StreamedResponse] = asyncio.get_running_loop().create_future()
        self._queue: asyncio.Queue[ModelResponseStreamEvent | BaseException | None] = asyncio.Queue()
        """For the reader: at most one event, then the exception that ended the response, or None for its end."""
        self._requested = asyncio.Event()
        """Set when the reader has processed the last event and requests the next one."""
        self._left = asyncio.Event()
        """Set when the reader no longer needs the response."""
        self._closes_itself = False
        """Whether the task ends without being cancelled."""

    async def execute(self) -> None:
        """Open, read and close the response; pass it, its events and any exception to the reader."""
        try:
            async with self._request as response:
                # The reader was cancelled while it waited, and the model did not react to the cancellation.
                if self.response.cancelled():
                    self._closes_itself = True
                    return
                events = compat.replace_events(response, self._events)
                self.response.set_result(response)
                await self._requested.wait()
                await self._pass_on(events())
                self._closes_itself = True
                self._queue.put_nowait(None)
                # The response stays open until the reader leaves it, as it would without the task.
                await self._left.wait()
            # The context manager of the request has suppressed an exception: for the reader, the response ends here.
            if not self._closes_itself:
                self._queue.put_nowait(None)
        except BaseException as error:
            # The reader raises the exception in the agent's task, even a SystemExit, or a CancelledError that the model
            # raised itself. In this task, the exception would never be noticed.
            if self._left.is_set():
                raise
            if self.response.done():
                self._queue.put_nowait(error)
            else:
                self.response.set_exception(error)

    async def _pass_on(self, events: Events) -> None:
        closing = aclosing(events) if isinstance(events, AsyncGenerator) else nullcontext(events)
        async with closing, aclosing(self._transform(events)) as transformed:
            async for event in transformed:
                self._requested.clear()
                self._queue.put_nowait(event)
                # Without this wait, deltas of the next part would be relayed before the events of a tool call that
                # the reader is still processing.
                await self._requested.wait()

    async def _events(self) -> AsyncGenerator[ModelResponseStreamEvent]:
        """Yield the events to the reader; the response uses this instead of the provider's iterator."""
        while True:
            self._requested.set()
            event = await self._queue.get()
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event

    def leave(self) -> bool:
        """Record that the reader no longer needs the response; return whether the task must be cancelled to end."""
        self._left.set()
        return not self._closes_itself
