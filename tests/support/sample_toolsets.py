"""Toolsets that workers know by name, for the tests."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_ai import Agent, RunContext
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset, FunctionToolset, ToolsetTool


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def negate(a: int) -> int:
    """Turn a number's sign."""
    return -a


functions = [add, negate]
numbers = FunctionToolset(functions)
more_numbers = FunctionToolset([add])
nothing: list[object] = []


def make() -> FunctionToolset:
    """A toolset that is created again for each loop."""
    return FunctionToolset([negate]).prefixed("made")


def fails() -> FunctionToolset:
    """Cannot be made."""
    raise SystemExit("no numbers today")


def interrupts() -> FunctionToolset:
    """Is no Ctrl-C."""
    raise KeyboardInterrupt


class Hanging(AbstractToolset[Any]):
    """Never tells its tools."""

    id = "hanging"

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        await asyncio.sleep(3600)
        return {}

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        raise NotImplementedError


async def _hidden_without_deps(ctx: RunContext[Any], tool: ToolDefinition) -> ToolDefinition | None:
    return None if ctx.deps is None else tool


rich = Agent(TestModel(), name="rich", toolsets=[CombinedToolset([make(), numbers.approval_required()]), Hanging()])


@rich.tool_plain(requires_approval=True, sequential=True)
def erase() -> None:
    """Erase everything."""


@rich.toolset
def for_this_run(ctx: RunContext[object]) -> FunctionToolset[object]:
    return FunctionToolset([multiply])


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


sums = Agent(TestModel(), name="sums", tools=[add])
also_sums = Agent(TestModel(), name="also_sums", tools=[add])
