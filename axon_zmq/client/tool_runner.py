"""Execution of tool functions on the client's side: one task for each call, and threads for blocking functions."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Final

from axon_zmq.client.tool_functions import Tool, ToolResultBody, fault
from axon_zmq.events import Refused, ToolCall, ToolCancelled

MAX_TOOL_THREADS: Final = 32
"""Blocking tool functions that one client executes at a time; further calls wait."""
MAX_REFUSAL_CHARACTERS: Final = 1000
"""Characters of a `refused` message that are passed on to the model."""
Outcome = tuple[object, BaseException | None]
"""What a call returned, or the exception that it raised."""

log = logging.getLogger(__name__)


class ToolRunner:
    """The tasks of one run's open tool calls.

    Its tools get the context (`contextvars`) in which the runner is made.

    Args:
        tools: The functions by tool name; calls of other tools are left to the application.
        answer: Sends the answer to a call; may raise what `ClientCore.answer` raises.
        threads: Executes the blocking functions.
    """

    def __init__(
        self, tools: Mapping[str, Tool], answer: Callable[[str, ToolResultBody], object], threads: ToolThreads
    ) -> None:
        self._tools = tools
        self._answer = answer
        self._threads = threads
        self._context = copy_context()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._results: set[str] = set()
        """Calls that were answered with a result, which the daemon may refuse."""

    def __repr__(self) -> str:
        return f"<ToolRunner {len(self._tasks)} of {', '.join(self._tools)} running>"

    def take(self, event: ToolCall | ToolCancelled | Refused) -> None:
        """Start or cancel the task of a call, or report a refused result to the model."""
        match event:
            case ToolCall() if (tool := self._tools.get(event.name)) is not None:
                running = self._run(tool, event)
                self._tasks[event.call_id] = asyncio.create_task(running, context=self._context.copy())
            case ToolCancelled() if (task := self._tasks.pop(event.call_id, None)) is not None:
                task.cancel()
            case Refused(of="tool_result", call_id=str(call_id)) if event.error_type != "unknown_request":
                if call_id in self._results:
                    self._send(call_id, fault(event.message[:MAX_REFUSAL_CHARACTERS]))
            case _:
                pass

    def close(self) -> None:
        """Cancel all tasks: the run has ended, and no answer is wanted any more."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()

    async def _run(self, tool: Tool, call: ToolCall) -> None:
        try:
            body = await tool.answer(call.args, partial(self._threads.call, tool.name))
        except asyncio.CancelledError:
            if call.call_id not in self._tasks:
                raise
            body = fault("CancelledError: the tool cancelled itself")
        if self._tasks.pop(call.call_id, None) is not None:
            self._send(call.call_id, body)

    def _send(self, call_id: str, body: ToolResultBody) -> None:
        self._results.discard(call_id)
        try:
            self._answer(call_id, body)
        except Exception as error:
            self._answer(call_id, fault(f"the result cannot be sent: {error}"))
        else:
            if "error" not in body:
                self._results.add(call_id)


class ToolThreads:
    """A daemon thread for each call of a blocking function, up to a bound; calls over it wait, which is logged.

    The threads are not of `concurrent.futures`, whose threads the interpreter joins at its exit: one tool that never
    returns would block the exit for ever. Used from one loop.

    Args:
        most: Threads at a time.
    """

    def __init__(self, most: int = MAX_TOOL_THREADS) -> None:
        self._most = most
        self._free = asyncio.Semaphore(most)
        self._running: Counter[str] = Counter()
        """Calls that have a thread, by the name of their tool."""
        self._is_saturation_logged = False

    def __repr__(self) -> str:
        return f"<ToolThreads {self._running.total()} of {self._most} busy>"

    async def call(self, name: str, function: Callable[[], object]) -> object:
        """Call a tool's function in a thread and in this task's context (`contextvars`).

        A call that is cancelled before it has a thread is never made; one that has a thread keeps it
        until the function returns.

        Raises:
            BaseException: Whatever the function raises.
            RuntimeError: The system gives no more threads.
        """
        self._log_saturation()
        await self._free.acquire()
        self._running[name] += 1
        returned, error = await self._start(name, partial(copy_context().run, function))
        if error is not None:
            raise error
        return returned

    def _start(self, name: str, call: Callable[[], object]) -> asyncio.Future[Outcome]:
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

    def _log_saturation(self) -> None:
        """Log that calls wait: once, until a call finds a free thread again."""
        busy = self._free.locked()
        if busy and not self._is_saturation_logged:
            names = ", ".join(f"{name} ({count})" for name, count in sorted(self._running.items()))
            log.warning("all %d threads for blocking tools are busy: %s; more calls wait", self._most, names)
        self._is_saturation_logged = busy


def _caught(call: Callable[[], object]) -> Outcome:
    """What a call returned or raised; a future could not carry every exception (StopIteration)."""
    try:
        return call(), None
    except BaseException as error:
        return None, error
