"""Undocumented behaviour of pydantic-ai with MCP servers."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from pydantic_ai import (
    ModelRetry,
    RunContext,
)
from pydantic_ai.messages import (
    ModelResponse,
    ToolCallPart,
)
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RunUsage

from axon_zmq.worker.adapter import compat
from tests.support import ROOT


def always(*parts: Any) -> FunctionModel:
    """A model that always makes the same response."""
    return FunctionModel(lambda _messages, _info: ModelResponse(parts=list(parts)))


def test_the_error_of_an_mcp_session_is_the_cause_of_the_retry():
    from fastmcp.client.transports import StdioTransport
    from mcp import MCPError
    from pydantic_ai.mcp import MCPToolset

    async def call() -> Exception:
        server = StdioTransport(sys.executable, [str(ROOT / "tests/support/mcp_server.py")])
        async with MCPToolset[Any](server, init_timeout=None, read_timeout=None) as toolset:
            with pytest.raises(Exception) as caught:
                await toolset.direct_call_tool("leave", {})
        return caught.value

    error = asyncio.run(call())
    assert isinstance(error, ModelRetry)
    assert isinstance(compat.mcp_cause(error), MCPError)
    other = ValueError()
    assert compat.mcp_cause(other) is other


def call(toolset: Any, name: str, args: Any) -> Any:
    context: RunContext[Any] = RunContext(deps=None, model=always(), usage=RunUsage())
    return asyncio.run(compat.call_tool_directly(toolset, context, ToolCallPart(name, args)))
