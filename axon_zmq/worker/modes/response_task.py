"""A model's response, read in a task of its own.

What wakes a task passes through each frame that it is awaited in, and between `Agent.run` and a provider's
socket these are dozens: with hundreds of streams, none of which is in the processor's cache, that costs more than
the delta itself. Here they are few, and the agent's own task is woken only for what it is handed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext

from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import StreamedResponse

from axon_zmq.worker.adapter import compat

Events = AsyncIterator[ModelResponseStreamEvent]
MadeOf = Callable[[Events], AsyncGenerator[ModelResponseStreamEvent]]


@asynccontextmanager
async def read_in_task(
    request: AbstractAsyncContextManager[StreamedResponse], made_of: MadeOf
) -> AsyncGenerator[StreamedResponse]:
    """The response of a request that is opened, read and closed in another task, as if it were in this one.

    Two things differ: context variables that the model sets are not seen here; and where this is left before the
    response was read to its end, whatever the reason, the model sees that it is cancelled.

    Args:
        request: The model's.
        made_of: Makes of its events those that are handed on. It goes on only when the last one has been dealt with.
    """
    reading = _Reading(request, made_of)
    task = asyncio.create_task(reading.work())
    try:
        yield await reading.response
    finally:
        if reading.leave():
            await _cancelled(task)
        else:
            await task


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end; who is cancelled while it waits here cancels it again, and hears of it."""
    here = asyncio.current_task()
    before = here.cancelling() if here else 0
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if here is not None and here.cancelling() > before:
            raise


class _Reading:
    def __init__(self, request: AbstractAsyncContextManager[StreamedResponse], made_of: MadeOf) -> None:
        self._request = request
        self._made_of = made_of
        self.response: asyncio.Future[StreamedResponse] = asyncio.get_running_loop().create_future()
        self._handed: asyncio.Queue[ModelResponseStreamEvent | BaseException | None] = asyncio.Queue()
        """One event at most; or how it ended."""
        self._asked = asyncio.Event()
        """The reader wants the next one."""
        self._left = asyncio.Event()
        self._closes_itself = False

    async def work(self) -> None:
        """Open, read and close it; however that ends, `response` or who reads the events is told."""
        try:
            async with self._request as response:
                if self.response.cancelled():  # nobody waits any more, and the model did not hear of it
                    self._closes_itself = True
                    return
                events = compat.replace_events(response, self._events)
                self.response.set_result(response)
                await self._asked.wait()
                await self._hand_on(events())
                self._closes_itself = True
                self._handed.put_nowait(None)
                await self._left.wait()
            if not self._closes_itself:  # the model raised something, and took it back where it closes
                self._handed.put_nowait(None)
        except BaseException as error:  # the agent's own task raises it, an exit or a model's own cancel too
            if self._left.is_set():
                raise
            if self.response.done():
                self._handed.put_nowait(error)
            else:
                self.response.set_exception(error)

    async def _hand_on(self, events: Events) -> None:
        closing = aclosing(events) if isinstance(events, AsyncGenerator) else nullcontext(events)
        async with closing, aclosing(self._made_of(events)) as made:
            async for event in made:
                self._asked.clear()
                self._handed.put_nowait(event)
                await self._asked.wait()

    async def _events(self) -> AsyncGenerator[ModelResponseStreamEvent]:
        while True:
            self._asked.set()
            event = await self._handed.get()
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event

    def leave(self) -> bool:
        """The response is not read any more; whether it has to be cancelled to be closed."""
        self._left.set()
        return not self._closes_itself
