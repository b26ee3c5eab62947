"""The agents of a worker: registered ones, which are imported only here, and agents that clients define as data."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_ai import Agent
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset

from axon_zmq.errors import ConfigurationError, RequestError
from axon_zmq.process.redaction import redactor
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.requests import AgentData, from_validation, invalid
from axon_zmq.settings import McpServer
from axon_zmq.suggestions import suggestion
from axon_zmq.worker.registry import toolsets
from axon_zmq.worker.registry.models import Models
from axon_zmq.worker.registry.toolsets import Toolsets

log = logging.getLogger(__name__)


@dataclass
class Registered:
    """A registered agent: one entry of `AXON_AGENTS`."""

    name: str
    agent: Agent[object, object]

    @cached_property
    def deps_adapter(self) -> TypeAdapter[Any] | None:
        """Validator of `deps`; None if the agent accepts any value, or a type that pydantic cannot validate."""
        if self.agent.deps_type is object:
            return None
        try:
            return TypeAdapter(self.agent.deps_type)
        except PydanticSchemaGenerationError:
            return None

    def deps(self, value: object) -> Any:
        """Check and convert a request's `deps`.

        Raises:
            RequestError: `invalid_request`.
        """
        if self.agent.deps_type is NoneType and value is not None:
            raise invalid([("/deps", f"agent {self.name!r} takes no deps: remove the key")])
        if self.deps_adapter is None:
            if value is not None and self.agent.deps_type is not object:
                raise invalid([("/deps", f"agent {self.name!r} takes deps of a type that a client cannot send")])
            return value
        try:
            return self.deps_adapter.validate_python(value)
        except ValidationError as error:
            raise from_validation(error, "/deps") from None

    async def describe(self) -> dict[str, Any]:
        """Return the agent's entry in a `catalog`; `tools_error` names the toolsets that could not list their tools."""
        listing = await self.tools()
        entry = {
            "description": self.agent.render_description(),
            "modes": list(MODES),
            "tools": list(listing.tools.values()),
            "output_schema": self.agent.output_json_schema(),
            "deps_schema": None if self.deps_adapter is None else self.deps_adapter.json_schema(),
        }
        return entry | ({"tools_error": "; ".join(listing.faults)} if listing.faults else {})

    async def tools(self) -> toolsets.Listing:
        """List the tools that the agent has without `deps`, except output tools."""
        return await toolsets.listing(self.agent.toolsets, self.agent)


@dataclass(frozen=True)
class ToolSource:
    """An agent or a toolset in which a tool is looked up."""

    registered: Registered | None
    """The agent; None if this is a toolset of `AXON_TOOLSETS`."""
    toolset: AbstractToolset[object]
    """The toolset, or all toolsets of the agent combined."""

    async def tools(self) -> toolsets.Listing:
        """List its tools."""
        return await (toolsets.listing([self.toolset]) if self.registered is None else self.registered.tools())


class Registry:
    """The agents of one event loop.

    Args:
        targets: `module:attribute` for each name; the attribute is an `Agent`, or a function that returns one.
        models: Models and providers of the event loop.
        named_toolsets: Toolsets that agents as data may name.
        private: Execute the modules again instead of importing them, because an agent that several event loops share
            fails.
        allowed_settings: Model settings that requests may set although they are refused by default; see
            `axon_zmq.worker.adapter.model_settings.checked`.
    """

    def __init__(
        self,
        *,
        targets: Mapping[str, str],
        models: Models,
        named_toolsets: Mapping[str, str | McpServer] | None = None,
        private: bool = False,
        allowed_settings: Collection[str] = (),
    ) -> None:
        self.models = models
        self.allowed_settings = frozenset(allowed_settings)
        self.toolsets = Toolsets(named_toolsets or {}, private=private)
        self._registered: dict[str, Registered] = {}
        self._broken: dict[str, str] = {}
        for name, target in targets.items():
            try:
                agent = _load(target, private)
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                # One faulty module must not take the other agents out of service.
                redactor.refresh()  # the module may have read a .env file before it failed
                self._broken[name] = redactor.text(f"{type(error).__name__}: {error}")
                log.error("agent %r (%s) cannot be loaded: %s", name, target, self._broken[name])
                continue
            if isinstance(agent.model, Model):
                models.share_provider(agent.model)  # one pool of connections for all agents with the same URL and key
            self._registered[name] = Registered(name, agent)

    def __repr__(self) -> str:
        return f"<Registry {', '.join(self._registered)}; broken: {', '.join(self._broken) or 'none'}>"

    @property
    def broken(self) -> list[str]:
        """Names of the agents that could not be loaded."""
        return list(self._broken)

    def named(self, name: str) -> Registered:
        """Return a registered agent.

        Raises:
            RequestError: `unknown_agent`, with similar names, or with the reason why it could not be loaded.
        """
        if (registered := self._registered.get(name)) is not None:
            return registered
        if (why := self._broken.get(name)) is not None:
            raise RequestError("unknown_agent", f"agent {name!r} could not be loaded: {why}")
        hint = suggestion(name, self._registered, toolsets.REGISTERED)
        raise RequestError("unknown_agent", f"no agent {name[:64]!r} is registered; {hint}")

    def from_data(self, data: AgentData, model: str | None) -> Agent[object, object]:
        """Make an agent that the client defined, for one run.

        Args:
            data: The checked definition.
            model: The model of the request, which takes precedence over the agent's and `AXON_MODEL`.

        Raises:
            AxonError: `invalid_request`, `unknown_model` or `model_auth`.
        """
        if name := model or data.model:
            chosen = self.models.named_by_client(name)
        elif (name := self.models.default) is not None:
            chosen = self.models.named(name)
        else:
            raise invalid([("/agent/model", "is missing, and AXON_MODEL names no default")])
        named = self.toolsets.named(data.toolsets or ())
        try:
            return Agent(
                chosen,
                name=data.name,
                instructions=data.instructions,
                system_prompt=data.system_prompt or (),
                toolsets=named,
            )
        except UserError as error:
            raise invalid([("/agent", error.message)]) from error

    async def find_tool(self, tool: str, agent: str | None) -> ToolSource:
        """Find the agent or toolset that has a tool.

        Without `agent`, toolsets in this process are searched first, then agents, then MCP servers: these come last
        because they may have to be started, or may hang.

        Raises:
            RequestError: `unknown_agent`, `unknown_tool`, or `invalid_request` if several have a tool of this name.
        """
        if agent is not None:
            found = _agent_tools(self.named(agent))
            listing = await found.tools()
            # A toolset that cannot list its tools without `deps` may have the tool.
            if tool in listing.tools or listing.faults:
                return found
            raise toolsets.unknown_tool(tool, listing.tools)
        agents = {f"agent {name!r}": _agent_tools(registered) for name, registered in self._registered.items()}
        local, servers = (
            {
                f"toolset {name!r}": ToolSource(None, toolset)
                for name, toolset in self.toolsets.loaded.items()
                if (name in self.toolsets.servers) is is_server
            }
            for is_server in (False, True)
        )
        return await _first_with_tool(tool, local, agents, servers)

    async def describe(self, name: str | None) -> dict[str, Any]:
        """Return the body of a `catalog`, without secrets.

        Args:
            name: The agent to describe; None for all agents and all named toolsets. An agent or toolset that could not
                be loaded has only `error`.

        Raises:
            RequestError: `unknown_agent`.
        """
        if name is not None and name not in self._broken:
            self.named(name)
        names = [*self._registered, *self._broken] if name is None else [name]
        entries = await asyncio.gather(*map(self._entry, names))
        catalog = await self.toolsets.describe() if name is None else {}
        redactor.refresh()
        return redactor.value({"agents": dict(zip(names, entries, strict=True)), "toolsets": catalog})

    async def aclose(self) -> None:
        """End the processes that toolsets have started; may be called on any event loop."""
        await self.toolsets.aclose()

    async def _entry(self, name: str) -> dict[str, Any]:
        if (why := self._broken.get(name)) is not None:
            return {"error": why}
        try:
            return await self._registered[name].describe()
        except Exception as error:
            return {"error": f"cannot be described: {type(error).__name__}: {error}"}


def _load(target: str, private: bool) -> Agent[object, object]:
    found = toolsets.attribute(target, private)
    agent = found() if callable(found) and not isinstance(found, Agent) else found
    if not isinstance(agent, Agent):
        raise ConfigurationError(
            f"{target} is {type(agent).__name__}: expected a pydantic_ai.Agent or a function that returns one"
        )
    return agent


def _agent_tools(registered: Registered) -> ToolSource:
    return ToolSource(registered, CombinedToolset(registered.agent.toolsets))


async def _first_with_tool(tool: str, *groups: Mapping[str, ToolSource]) -> ToolSource:
    """Return the candidate that has a tool; a group is asked only if no candidate of the groups before it has the tool.

    Raises:
        RequestError: `unknown_tool`, or `invalid_request` if several candidates of a group have the tool.
    """
    names: list[str] = []
    faults: list[str] = []
    for candidates in groups:
        listings = await asyncio.gather(*(found.tools() for found in candidates.values()))
        having = [place for place, listing in zip(candidates, listings, strict=True) if tool in listing.tools]
        if len(having) > 1:
            fault = f"{tool!r} is a tool of {' and of '.join(having)}: send the agent's name, or rename one tool"
            raise invalid([("/tool", fault)])
        if having:
            return candidates[having[0]]
        for place, listing in zip(candidates, listings, strict=True):
            names += listing.tools
            faults += [f"{place}: {fault}" for fault in listing.faults]
    raise toolsets.unknown_tool(tool, names, faults)
