"""Detects that the code of a run only waits for tools that its client executes, and lets it wait for a slot afterwards.

`ToolWait` counts the tools of a run that are executing and, among them, the calls that the client has not answered. If
the client must answer all of them, the code of the run does nothing else: pydantic-ai makes no request to the model
until all tools of the last response have returned. `ToolWatch` tells it about the tools of the agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, AgentNode, WrapToolExecuteHandler
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import ToolDefinition

from axon_zmq.process.event_loop import call_on

LEAVE_SLOT_AFTER_S: Final = 0.05
"""Seconds for which a run only waits before it leaves its slot. Most tools of clients answer sooner; then the run keeps
its slot, and the broker is not involved."""


class ToolWait:
    """The tool calls of one run, and whether it has left its slot because it only waits for its client.

    All methods must be called on the event loop of the agent, except `granted` and `end`, which may be called from any
    thread.

    Args:
        only_waits: Reports that the run only waits for its client. Called on the event loop of the agent.
        answered: Reports that the run wants to continue; `granted` must be called when it may. Called on the same loop.
    """

    def __init__(self, only_waits: Callable[[], None], answered: Callable[[], None]) -> None:
        self._only_waits = only_waits
        self._answered = answered
        self._executing = 0
        """Number of tools that are executing, including those of the client."""
        self._unanswered = 0
        """Number of calls that the client has not answered."""
        self._timer: asyncio.TimerHandle | None = None
        self._has_left = False
        """Whether the run has left its slot and has not got another one."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slot: asyncio.Event | None = None
        """Set when the run gets a slot; None while it does not want one."""
        self._ended = False

    def __repr__(self) -> str:
        left = ", slot left" if self._has_left else ""
        return f"<ToolWait {self._executing} executing, {self._unanswered} unanswered{left}>"

    @contextmanager
    def executing(self) -> Generator[None]:
        """Count a tool as executing."""
        self._count(1, 0)
        try:
            yield
        finally:
            self._count(-1, 0)

    @contextmanager
    def unanswered(self) -> Generator[None]:
        """Count a call as not answered by the client."""
        self._count(0, 1)
        try:
            yield
        finally:
            self._count(0, -1)

    async def continue_after_answer(self) -> None:
        """Wait for a slot if the run has left its slot and waits for no other answer."""
        if not self._unanswered:
            await self.take_slot()

    async def take_slot(self) -> None:
        """Wait until the run has a slot again, if it has left its slot."""
        if not self._has_left:
            return
        slot = self._slot
        if slot is None:
            self._loop = asyncio.get_running_loop()
            slot = self._slot = asyncio.Event()
            self._answered()  # it may grant the slot at once
        # Checked after `_slot` was set: `end`, in another thread, sets `_ended` before it reads `_slot`.
        if not self._ended:
            await slot.wait()

    def granted(self) -> None:
        """Let the run continue, because it has got a slot."""
        if self._slot is not None and self._loop is not None:
            call_on(self._loop, self._granted)

    def end(self) -> None:
        """Let the run continue without a slot from now on, because it is asked to end."""
        self._ended = True
        self.granted()

    def _granted(self) -> None:
        slot, self._slot = self._slot, None
        self._has_left = False
        if slot is not None:
            slot.set()

    def _count(self, executing: int, unanswered: int) -> None:
        self._executing += executing
        self._unanswered += unanswered
        only_waits = self._unanswered > 0 and self._executing <= self._unanswered
        if not only_waits and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif only_waits and self._timer is None and not self._has_left:
            self._timer = asyncio.get_running_loop().call_later(LEAVE_SLOT_AFTER_S, self._leave)

    def _leave(self) -> None:
        self._timer = None
        if not self._ended:
            self._has_left = True
            self._only_waits()


class ToolWatch(AbstractCapability[object]):
    """A capability that tells a `ToolWait` which tools of a run are executing.

    It also lets a run that has left its slot wait for one before another tool and before the next step, such as a
    request to the model: a call of a client's tool may have ended without an answer, by a timeout of the agent.
    """

    def __init__(self, wait: ToolWait) -> None:
        self._wait = wait

    async def before_node_run(
        self,
        ctx: RunContext[object],  # noqa: ARG002 -- the name is pydantic-ai's
        *,
        node: AgentNode[object],
    ) -> AgentNode[object]:
        """Wait for a slot, if the run has none."""
        await self._wait.take_slot()
        return node

    async def wrap_tool_execute(
        self,
        ctx: RunContext[object],  # noqa: ARG002 -- the names are pydantic-ai's
        *,
        call: ToolCallPart,  # noqa: ARG002
        tool_def: ToolDefinition,  # noqa: ARG002
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Count the tool as executing."""
        await self._wait.take_slot()
        with self._wait.executing():
            return await handler(args)
