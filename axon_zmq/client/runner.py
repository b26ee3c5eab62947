"""Runs the functions of one run's tools as the daemon calls them, on the client's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import partial
from typing import Final

from axon_zmq.client.threads import ToolThreads
from axon_zmq.client.tools import Body, Tool, fault
from axon_zmq.events import Refused, ToolCall, ToolCancelled

LONGEST_REFUSAL: Final = 1000
"""Characters of a `refused` that the model is told."""


class ToolRunner:
    """The tasks of one run's open calls; made in the context (`contextvars`) that its tools shall have.

    Args:
        tools: By name; calls of others are left to the application.
        answer: Sends the answer to a call; may raise what `ClientCore.answer` does.
        threads: Where blocking functions run.
    """

    def __init__(self, tools: Mapping[str, Tool], answer: Callable[[str, Body], object], threads: ToolThreads) -> None:
        self._tools = tools
        self._answer = answer
        self._threads = threads
        self._context = copy_context()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._results: set[str] = set()
        """Calls that got a result, which the daemon may refuse."""

    def __repr__(self) -> str:
        return f"<ToolRunner {len(self._tasks)} of {', '.join(self._tools)} running>"

    def take(self, event: ToolCall | ToolCancelled | Refused) -> None:
        """What the daemon says of a call."""
        match event:
            case ToolCall() if (tool := self._tools.get(event.name)) is not None:
                running = self._run(tool, event)
                self._tasks[event.call_id] = asyncio.create_task(running, context=self._context.copy())
            case ToolCancelled() if (task := self._tasks.pop(event.call_id, None)) is not None:
                task.cancel()
            case Refused(of="tool_result", call_id=str(call_id)) if event.error_type != "unknown_request":
                if call_id in self._results:
                    self._send(call_id, fault(event.message[:LONGEST_REFUSAL]))
            case _:
                pass

    def close(self) -> None:
        """The run has ended: nobody waits for an answer."""
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

    def _send(self, call_id: str, body: Body) -> None:
        self._results.discard(call_id)
        try:
            self._answer(call_id, body)
        except Exception as error:
            self._answer(call_id, fault(f"the result cannot be sent: {error}"))
        else:
            if "error" not in body:
                self._results.add(call_id)
