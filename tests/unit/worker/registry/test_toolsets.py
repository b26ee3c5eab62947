"""Toolsets by name: found, described and called."""

from __future__ import annotations

import asyncio
import sys

import pytest
from pydantic_ai.exceptions import UserError

from axon_zmq import AxonError
from axon_zmq.protocol.requests import AgentData
from axon_zmq.settings import McpServer
from axon_zmq.worker.adapter import errors
from axon_zmq.worker.registry import toolsets
from axon_zmq.worker.registry.agents import Registry
from tests.support.registries import AGENTS, TOOLSETS, calls, registry, server

# --- by name ------------------------------------------------------------------------------------------


def test_a_toolset_may_be_an_object_a_list_of_functions_or_a_factory():
    async def work(known: Registry) -> None:
        assert await calls(known, "numbers", ("add", {"a": 1, "b": 2})) == [3]
        assert await calls(known, "functions", ("add", {"a": 1, "b": 2}), ("negate", {"a": 5})) == [3, -5]
        assert await calls(known, "make", ("made_negate", {"a": 5})) == [-5]

    asyncio.run(work(registry(**TOOLSETS)))


@pytest.mark.parametrize(
    ("names", "pointer", "says"),
    [
        (["numers"], "/agent/toolsets/0", "no toolset 'numers' is registered; did you mean 'numbers'?"),
        (["numbers", "xyz"], "/agent/toolsets/1", "registered names: functions, numbers, more_numbers, make"),
        (["numbers", "make", "numbers"], "/agent/toolsets/2", "'numbers' is listed twice"),
        (["fails"], "/agent/toolsets/0", "toolset 'fails' could not be loaded: SystemExit: no numbers today"),
        (["interrupts"], "/agent/toolsets/0", "could not be loaded: KeyboardInterrupt"),
        (
            ["nothing"],
            "/agent/toolsets/0",
            "is list: expected a pydantic_ai toolset, a list of functions, or a",
        ),
        (["no_such"], "/agent/toolsets/0", "could not be loaded: AttributeError"),
    ],
)
def test_an_unavailable_toolset_is_reported_with_its_position(names, pointer, says):
    with pytest.raises(AxonError) as caught:
        registry(**TOOLSETS).from_data(AgentData(model="echo", toolsets=names), None)
    assert caught.value.error_type == "invalid_request"
    assert caught.value.details["errors"][0]["pointer"] == pointer
    assert says in caught.value.message


def test_two_toolsets_with_the_same_tool_name_are_both_named():
    agent = registry(**TOOLSETS).from_data(AgentData(model="echo", toolsets=["numbers", "more_numbers"]), None)
    with pytest.raises(UserError) as caught:
        asyncio.run(agent.run("hi"))
    error = errors.explain(caught.value, [], None)
    assert error.error_type == "invalid_request"
    for said in ("toolset 'numbers'", "oolset 'more_numbers'", "'add'", "set a prefix"):
        assert said in error.message


# --- lists of tools ------- -----------------------------------------------------------------------------


def test_describe_lists_the_tools_of_each_kind_of_toolset_and_reports_failures(monkeypatch):
    monkeypatch.setattr(toolsets, "LISTING_TIMEOUT_S", 0.2)
    entry = asyncio.run(registry("rich").describe("rich"))["agents"]["rich"]
    tools = {tool["name"]: tool for tool in entry["tools"]}
    assert tools.keys() == {"made_negate", "add", "negate", "erase", "multiply"}
    assert tools["add"]["description"] == "Add two numbers."
    assert tools["add"]["parameters"]["required"] == ["a", "b"]
    assert tools["add"]["returns"] == {"type": "integer"}
    assert {name for name, tool in tools.items() if tool.get("approval")} == {"add", "negate", "erase"}
    assert {name for name, tool in tools.items() if tool.get("sequential")} == {"erase"}
    assert entry["tools_error"] == "Hanging 'hanging': did not answer within 0.2 s"


def test_a_tool_is_found_by_agent_and_name_or_by_name_alone(monkeypatch):
    monkeypatch.setattr(toolsets, "LISTING_TIMEOUT_S", 0.2)
    known = registry(*AGENTS, make="tests.support.sample_toolsets:make")
    found = asyncio.run(known.find_tool("add", "sums"))
    assert found.registered is known.named("sums")
    found = asyncio.run(known.find_tool("erase", None))
    assert found.registered is known.named("rich")
    found = asyncio.run(known.find_tool("made_negate", None))  # in a toolset and in an agent: an agent can be named
    assert (found.registered, found.toolset) == (None, known.toolsets.loaded["make"])


@pytest.mark.parametrize(
    ("tool", "agent", "error_type", "says"),
    [
        (
            "add",
            None,
            "invalid_request",
            "is a tool of agent 'sums' and of agent 'also_sums' and of agent 'rich'",
        ),
        ("multipy", None, "unknown_tool", "could not list their tools: agent 'rich': Hanging 'hanging'"),
        ("ad", "sums", "unknown_tool", "did you mean 'add'?"),
        ("add", "sum", "unknown_agent", "did you mean 'sums'?"),
    ],
)
def test_an_unknown_tool_is_reported_with_the_known_ones(monkeypatch, tool, agent, error_type, says):
    monkeypatch.setattr(toolsets, "LISTING_TIMEOUT_S", 0.2)
    with pytest.raises(AxonError) as caught:
        asyncio.run(registry(*AGENTS).find_tool(tool, agent))
    assert caught.value.error_type == error_type
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"command": "echo", "args": ["${NO_SUCH}"]}, "toolsets.mcp.args: ${NO_SUCH} is not set"),
        ({"command": "echo", "env": {"KEY": "${NO_SUCH}"}}, "toolsets.mcp.env.KEY: ${NO_SUCH} is not set"),
        ({"url": "https://${NO_SUCH}/mcp"}, "toolsets.mcp.url: ${NO_SUCH} is not set"),
        ({"url": "https://x/", "headers": {"A": "${NO_SUCH}"}}, "toolsets.mcp.headers.A: ${NO_SUCH} is not set"),
        ({"command": "no-such-program"}, "toolsets.mcp.command: program 'no-such-program' not found"),
        ({"command": "echo", "cwd": "/no/such"}, "toolsets.mcp.cwd: '/no/such' is not a directory"),
    ],
)
def test_an_invalid_server_configuration_breaks_only_that_toolset(more, says):
    known = registry(mcp=McpServer(**more), numbers="tests.support.sample_toolsets:numbers")
    told = asyncio.run(known.describe(None))["toolsets"]
    assert says in told["mcp"]["error"]
    assert told["numbers"]["tools"]


def test_without_the_extra_a_server_is_broken_and_the_fix_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastmcp", None)
    monkeypatch.setitem(sys.modules, "fastmcp.client.transports.base", None)
    monkeypatch.delitem(sys.modules, "axon_zmq.worker.registry.mcp_servers")
    assert "pip install 'axon-zmq[mcp]'" in registry(mcp=server()).toolsets.broken["mcp"]
