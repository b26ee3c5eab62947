"""Registries with the sample agents and toolsets."""

from __future__ import annotations

import json
import sys
from typing import Any

from axon_zmq.protocol.requests import AgentData
from axon_zmq.settings import McpServer
from axon_zmq.worker.registry.agents import Registry
from axon_zmq.worker.registry.models import Models
from tests.support import ROOT

SERVER = str(ROOT / "tests/support/mcp_server.py")
AGENTS = {name: f"tests.support.sample_toolsets:{name}" for name in ("sums", "also_sums", "rich")}
TOOLSETS: dict[str, str | McpServer] = {
    name: f"tests.support.sample_toolsets:{name}"
    for name in ("functions", "numbers", "more_numbers", "make", "fails", "interrupts", "nothing", "no_such")
}


def server(*arguments: str, **more: Any) -> McpServer:
    return McpServer(command=sys.executable, args=[SERVER, *arguments], **more)


def registry(*agents: str, **named: str | McpServer) -> Registry:
    return Registry(targets={name: AGENTS[name] for name in agents}, models=Models(None), named_toolsets=named)


async def calls(known: Registry, toolset: str, *steps: tuple[str, dict[str, Any]]) -> list[Any]:
    """The results of tools of one toolset, called one after the other in one run."""
    agent = known.from_data(AgentData(model="tools", toolsets=[toolset]), None)
    prompt = json.dumps([[{"name": name, "args": args}] for name, args in steps])
    return json.loads((await agent.run(prompt)).output)
