"""Threads for tools that block: few at a time, and none that keeps the interpreter from its exit."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Final

THREADS: Final = 32
"""Blocking tools of one client that run at a time; more wait."""
Outcome = tuple[Any, BaseException | None]
"""What a call returned, or raised."""

log = logging.getLogger(__name__)


class ToolThreads:
    """A daemon thread for each call; what has no thread waits, and that is logged.

    Not of `concurrent.futures`, whose threads the interpreter joins at its exit: one tool that never
    returns would hold it up for ever. Used from one loop.

    Args:
        most: Threads at a time.
    """

    def __init__(self, most: int = THREADS) -> None:
        self._most = most
        self._free = asyncio.Semaphore(most)
        self._running: Counter[str] = Counter()
        """Calls that have a thread, by their tool's name."""
        self._told = False

    def __repr__(self) -> str:
        return f"<ToolThreads {self._running.total()} of {self._most} busy>"

    async def call(self, name: str, function: Callable[[], Any]) -> Any:
        """Call a tool's function in a thread and in this task's context (`contextvars`).

        A call that is cancelled before it has a thread is never made; one that has a thread keeps it
        until it returns.

        Raises:
            BaseException: Whatever the function raises.
            RuntimeError: The system gives no more threads.
        """
        self._tell()
        await self._free.acquire()
        self._running[name] += 1
        outcome = self._start(name, partial(copy_context().run, function))
        returned, error = await outcome
        if error is not None:
            raise error
        return returned

    def _start(self, name: str, call: Callable[[], Any]) -> asyncio.Future[Outcome]:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()

        def work() -> None:
            done = _caught(call)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._ended, name, outcome, done)

        try:
            threading.Thread(target=work, name=f"axon-tool {name}", daemon=True).start()
        except RuntimeError as error:
            self._ended(name, outcome, (None, error))
        return outcome

    def _ended(self, name: str, outcome: asyncio.Future[Outcome], done: Outcome) -> None:
        self._running -= Counter([name])
        self._free.release()
        if not outcome.done():  # its call may be cancelled
            outcome.set_result(done)

    def _tell(self) -> None:
        """Log that calls wait, once until one does not."""
        busy = self._free.locked()
        if busy and not self._told:
            names = ", ".join(f"{name} ({count})" for name, count in sorted(self._running.items()))
            log.warning("all %d threads for blocking tools are busy: %s; more calls wait", self._most, names)
        self._told = busy


def _caught(call: Callable[[], Any]) -> Outcome:
    """What a call returned or raised; a future could not carry every exception (StopIteration)."""
    try:
        return call(), None
    except BaseException as error:
        return None, error
