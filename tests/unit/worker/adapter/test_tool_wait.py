"""A run leaves its slot while it only waits for tools of its client, with real runs of pydantic-ai."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import FunctionToolset

from axon_zmq.worker.adapter import tool_wait
from axon_zmq.worker.adapter.tool_wait import ToolWait, ToolWatch


class Slot:
    """The reports of a `ToolWait`, in order, and its answers."""

    def __init__(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(tool_wait, "LEAVE_SLOT_AFTER_S", 0.0)
        self.reports: list[str] = []
        self.grants = True
        """Whether a slot is granted at once."""
        self.wait = ToolWait(lambda: self.reports.append("waits"), self._answered)
        self.answers: dict[str, asyncio.Future[str]] = {}

    def _answered(self) -> None:
        self.reports.append("answered")
        if self.grants:
            self.wait.granted()

    def client_tool(self, name: str) -> Callable[[], Awaitable[str]]:
        """A tool that waits for its client as `RemoteToolset` does."""

        async def call() -> str:
            answer = self.answers[name] = asyncio.get_running_loop().create_future()
            with self.wait.unanswered():
                await answer
            await self.wait.continue_after_answer()
            self.reports.append(f"{name} returned")
            return answer.result()

        call.__name__ = name
        return call

    def start(self, *tools: Callable[..., Any], tool_timeout: float | None = None) -> asyncio.Task[Any]:
        """Run an agent whose model calls all tools at once."""

        def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            self.reports.append("model")
            last = messages[-1]
            assert isinstance(last, ModelRequest)
            called = any(part.part_kind in ("tool-return", "retry-prompt") for part in last.parts)
            calls = [ToolCallPart(tool.name, {}) for tool in info.function_tools]
            return ModelResponse(parts=[TextPart("done")] if called else calls)

        agent = Agent(FunctionModel(respond), toolsets=[FunctionToolset(list(tools), timeout=tool_timeout)])
        return asyncio.ensure_future(agent.run("go", capabilities=[ToolWatch(self.wait)]))

    async def until(self, true: Callable[[], bool]) -> None:
        """Let the event loop turn until the condition holds."""
        for _ in range(20_000):
            if true():
                return
            await asyncio.sleep(0.001)
        raise AssertionError(self.reports)

    async def reported(self, report: str) -> None:
        await self.until(lambda: report in self.reports)


def test_a_run_that_only_waits_leaves_its_slot_and_takes_one_before_it_continues(monkeypatch):
    async def scenario() -> None:
        slot = Slot(monkeypatch)
        slot.grants = False
        task = slot.start(slot.client_tool("ask"))
        await slot.reported("waits")
        slot.answers["ask"].set_result("1")
        await slot.reported("answered")
        await asyncio.sleep(0.02)
        assert slot.reports == ["model", "waits", "answered"]
        slot.wait.granted()
        await task
        assert slot.reports == ["model", "waits", "answered", "ask returned", "model"]

    asyncio.run(scenario())


def test_a_run_keeps_its_slot_while_another_tool_executes(monkeypatch):
    async def scenario() -> None:
        slot = Slot(monkeypatch)
        end = asyncio.Event()

        async def works() -> str:
            slot.reports.append("works")
            await end.wait()
            slot.reports.append("worked")
            return "ok"

        task = slot.start(slot.client_tool("ask"), works)
        await slot.reported("works")
        await slot.until(lambda: "ask" in slot.answers)
        await asyncio.sleep(0.02)
        assert slot.reports == ["model", "works"]
        end.set()
        await slot.reported("waits")
        slot.answers["ask"].set_result("1")
        await task
        assert slot.reports == ["model", "works", "worked", "waits", "answered", "ask returned", "model"]

    asyncio.run(scenario())


def test_a_run_waits_until_all_its_calls_are_answered(monkeypatch):
    async def scenario() -> None:
        slot = Slot(monkeypatch)
        task = slot.start(slot.client_tool("one"), slot.client_tool("two"))
        await slot.reported("waits")
        slot.answers["one"].set_result("1")
        await slot.reported("one returned")
        assert "answered" not in slot.reports
        slot.answers["two"].set_result("2")
        await task
        assert slot.reports == ["model", "waits", "one returned", "answered", "two returned", "model"]

    asyncio.run(scenario())


def test_a_run_that_is_answered_soon_keeps_its_slot(monkeypatch):
    async def scenario() -> None:
        slot = Slot(monkeypatch)
        monkeypatch.setattr(tool_wait, "LEAVE_SLOT_AFTER_S", 60.0)
        task = slot.start(slot.client_tool("ask"))
        await slot.until(lambda: "ask" in slot.answers)
        slot.answers["ask"].set_result("1")
        await task
        assert slot.reports == ["model", "ask returned", "model"]

    asyncio.run(scenario())


def test_a_run_takes_a_slot_before_its_next_step_if_its_call_timed_out(monkeypatch):
    async def scenario() -> None:
        slot = Slot(monkeypatch)
        slot.grants = False
        task = slot.start(slot.client_tool("ask"), tool_timeout=0.05)
        await slot.reported("answered")
        assert slot.reports == ["model", "waits", "answered"]
        slot.wait.granted()
        await task
        assert slot.reports == ["model", "waits", "answered", "model"]

    asyncio.run(scenario())


def test_a_run_that_is_asked_to_end_does_not_wait_for_a_slot(monkeypatch):
    async def scenario() -> None:
        slot = Slot(monkeypatch)
        slot.grants = False
        task = slot.start(slot.client_tool("ask"))
        await slot.reported("waits")
        slot.answers["ask"].set_result("1")
        await slot.reported("answered")
        slot.wait.end()
        await task
        assert slot.reports == ["model", "waits", "answered", "ask returned", "model"]

    asyncio.run(scenario())


def test_a_run_that_is_asked_to_end_while_it_waits_does_not_ask_for_a_slot(monkeypatch):
    async def scenario() -> None:
        slot = Slot(monkeypatch)
        task = slot.start(slot.client_tool("ask"))
        await slot.reported("waits")
        slot.grants = False
        slot.wait.end()
        slot.answers["ask"].set_result("1")
        await task

    asyncio.run(scenario())
