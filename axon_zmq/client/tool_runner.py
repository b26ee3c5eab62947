"""Executes the tool functions of a client: a task for each call, and threads for blocking functions."""

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
"""Maximum number of blocking tool functions that one client executes at a time; further calls wait."""
MAX_REFUSAL_CHARACTERS: Final = 1000
"""How many characters of a `refused` message are reported to the model."""
Outcome = tuple[object, BaseException | None]
"""Return value of a call, and the exception that it raised instead, if any."""

log = logging.getLogger(__name__)


class ToolRunner:
    """Executes the tool calls of one run, each in its own task.

    The functions are called in the context (`contextvars`) in which the runner was created.

    Args:
        tools: Tools with a function by name; the application answers calls of other tools.
        answer: Sends the answer to a call; it may raise the same exceptions as `ClientCore.answer`.
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
        """Ids of the calls that were answered with a result. If the daemon refuses a result, the model must be
        informed."""

    def __repr__(self) -> str:
        return f"<ToolRunner {len(self._tasks)} of {', '.join(self._tools)} running>"

    def take(self, event: ToolCall | ToolCancelled | Refused) -> None:
        """Process an event: start or cancel the task of a call, or report a refused result to the model as an error."""
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
        """Cancel all tasks, because the run has ended and needs no more answers."""
        tasks = list(self._tasks.values())
        self._tasks.clear()  # first, because `_run` recognizes a cancelled task by its absence
        for task in tasks:
            task.cancel()

    async def _run(self, tool: Tool, call: ToolCall) -> None:
        try:
            body = await tool.answer(call.args, partial(self._threads.call, tool.name))
        except asyncio.CancelledError:
            # A call that is still in `_tasks` was not cancelled by `take` or `close`: the function itself raised this.
            if call.call_id not in self._tasks:
                raise
            body = fault("CancelledError: the tool function raised it itself")
        if self._tasks.pop(call.call_id, None) is not None:
            self._send(call.call_id, body)

    def _send(self, call_id: str, body: ToolResultBody) -> None:
        self._results.discard(call_id)
        try:
            self._answer(call_id, body)
        except Exception as error:
            # For example `too_large`. Without any answer, the run would wait for this call until its deadline.
            self._answer(call_id, fault(f"the result cannot be sent: {error}"))
        else:
            if "error" not in body:
                self._results.add(call_id)


class ToolThreads:
    """Calls blocking functions, each in its own daemon thread, up to a number of threads at a time.

    Further calls wait, which is logged once. `concurrent.futures` is not used because the interpreter joins its threads
    at exit, so one tool that never returns would keep the process from exiting. An instance belongs to one event loop.

    Args:
        most: Maximum number of threads at a time.
    """

    def __init__(self, most: int = MAX_TOOL_THREADS) -> None:
        self._most = most
        self._free = asyncio.Semaphore(most)
        self._running: Counter[str] = Counter()
        """Number of calls that have a thread, by the name of the tool."""
        self._is_saturation_logged = False

    def __repr__(self) -> str:
        return f"<ToolThreads {self._running.total()} of {self._most} busy>"

    async def call(self, name: str, function: Callable[[], object]) -> object:
        """Call a function in a thread, in the context (`contextvars`) of the current task.

        If the task is cancelled while the call waits for a thread, the function is not called. A call that has a thread
        occupies it until the function returns, even if the task is cancelled.

        Args:
            name: Name of the tool.
            function: The function.

        Returns:
            The return value of the function.

        Raises:
            BaseException: The exception that the function raised.
            RuntimeError: The operating system cannot start another thread.
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
            with suppress(RuntimeError):  # the event loop is closed, so no task waits for the outcome
                loop.call_soon_threadsafe(self._ended, name, outcome, done)

        try:
            threading.Thread(target=work, name=f"axon-tool {name}", daemon=True).start()
        except RuntimeError as error:
            self._ended(name, outcome, (None, error))
        return outcome

    def _ended(self, name: str, outcome: asyncio.Future[Outcome], done: Outcome) -> None:
        self._running -= Counter([name])
        self._free.release()
        if not outcome.done():  # the call may have been cancelled
            outcome.set_result(done)

    def _log_saturation(self) -> None:
        """Log that calls must wait: once, until a call finds a free thread again."""
        busy = self._free.locked()
        if busy and not self._is_saturation_logged:
            names = ", ".join(f"{name} ({count})" for name, count in sorted(self._running.items()))
            log.warning("all %d threads for blocking tools are busy: %s; more calls wait", self._most, names)
        self._is_saturation_logged = busy


def _caught(call: Callable[[], object]) -> Outcome:
    """Call a function, and return its value or exception.

    The exception is returned and not set on a future, because a future accepts no `StopIteration`.
    """
    try:
        return call(), None
    except BaseException as error:
        return None, error
