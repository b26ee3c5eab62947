"""The agents that a worker knows: registered ones, imported here and nowhere else, and agents as data."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
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
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.requests import AgentData, from_validation, invalid
from axon_zmq.settings import McpServer
from axon_zmq.worker.registry import toolsets
from axon_zmq.worker.registry.models import Models
from axon_zmq.worker.registry.toolsets import Toolsets

log = logging.getLogger(__name__)


@dataclass
class Registered:
    """One agent of `AXON_AGENTS`."""

    name: str
    agent: Agent[object, object]

    @cached_property
    def deps_adapter(self) -> TypeAdapter[Any] | None:
        """What checks `deps`; None where the agent takes any, or a type that cannot come over the wire."""
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
            raise invalid([("/deps", f"agent {self.name!r} takes no deps: leave it out")])
        if self.deps_adapter is None:
            if value is not None and self.agent.deps_type is not object:
                raise invalid([("/deps", f"agent {self.name!r} takes deps of a type that cannot come over the wire")])
            return value
        try:
            return self.deps_adapter.validate_python(value)
        except ValidationError as error:
            raise from_validation(error, "/deps") from None

    async def describe(self) -> dict[str, Any]:
        """The agent's entry in a `catalog`; `tools_error` names the toolsets that could not tell their tools."""
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
        """All tools that the agent has without `deps`, but for those of the output."""
        return await toolsets.listing(self.agent.toolsets, self.agent)


@dataclass(frozen=True)
class Found:
    """Where a tool was found."""

    registered: Registered | None
    """The agent that has it; None where a toolset of `AXON_TOOLSETS` has."""
    toolset: AbstractToolset[object]
    """That toolset, or all of the agent's."""

    async def tools(self) -> toolsets.Listing:
        """What it has."""
        return await (toolsets.listing([self.toolset]) if self.registered is None else self.registered.tools())


class Registry:
    """The agents of one event loop.

    Args:
        targets: `module:attribute` by name; the attribute is an `Agent`, or a function that makes one.
        models: The loop's models and providers.
        named_toolsets: Toolsets that agents as data may name.
        private: Run the modules anew instead of importing them: an agent shared between loops fails.
    """

    def __init__(
        self,
        *,
        targets: Mapping[str, str],
        models: Models,
        named_toolsets: Mapping[str, str | McpServer] | None = None,
        private: bool = False,
    ) -> None:
        self.models = models
        self.toolsets = Toolsets(named_toolsets or {}, private=private)
        self._registered: dict[str, Registered] = {}
        self._broken: dict[str, str] = {}
        for name, target in targets.items():
            try:
                agent = _load(target, private)
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                self._broken[name] = f"{type(error).__name__}: {error}"
                log.error("agent %r (%s) cannot be loaded: %s", name, target, self._broken[name])
                continue
            if isinstance(agent.model, Model):
                models.share_provider(agent.model)
            self._registered[name] = Registered(name, agent)

    def __repr__(self) -> str:
        return f"<Registry {', '.join(self._registered)}; broken: {', '.join(self._broken) or 'none'}>"

    @property
    def broken(self) -> list[str]:
        """The agents that could not be loaded."""
        return list(self._broken)

    def named(self, name: str) -> Registered:
        """A registered agent.

        Raises:
            RequestError: `unknown_agent`, with the names that are meant, or why it could not be loaded.
        """
        if (registered := self._registered.get(name)) is not None:
            return registered
        if (why := self._broken.get(name)) is not None:
            raise RequestError("unknown_agent", f"agent {name!r} could not be loaded: {why}")
        hint = toolsets.did_you_mean(name, self._registered)
        raise RequestError("unknown_agent", f"no agent {name[:64]!r} is registered; {hint}")

    def from_data(self, data: AgentData, model: str | None) -> Agent[object, object]:
        """An agent that the client defined, for one run.

        Args:
            data: Its checked definition.
            model: The request's own model, which goes before the agent's and `AXON_MODEL`.

        Raises:
            AxonError: `invalid_request`, `unknown_model` or `model_auth`.
        """
        name = model or data.model or self.models.default
        if name is None:
            raise invalid([("/agent/model", "is missing, and AXON_MODEL names no default")])
        named = self.toolsets.named(data.toolsets or ())
        try:
            return Agent(
                self.models.named(name),
                name=data.name,
                instructions=data.instructions,
                system_prompt=data.system_prompt or (),
                toolsets=named,
            )
        except UserError as error:
            raise invalid([("/agent", error.message)]) from error

    async def find_tool(self, tool: str, agent: str | None) -> Found:
        """Who has a tool: the agent that is named; or the one toolset, agent or MCP server that has it, in this order.

        Servers are asked last: they may have to be started, or hang.

        Raises:
            RequestError: `unknown_agent`, `unknown_tool`, or `invalid_request` where several have it.
        """
        if agent is not None:
            found = _of_agent(self.named(agent))
            listing = await found.tools()
            if tool in listing.tools or listing.faults:  # which may have it, with the right deps
                return found
            raise toolsets.unknown_tool(tool, listing.tools)
        agents = {f"agent {name!r}": _of_agent(registered) for name, registered in self._registered.items()}
        here, servers = (
            {
                f"toolset {name!r}": Found(None, toolset)
                for name, toolset in self.toolsets.loaded.items()
                if (name in self.toolsets.servers) is elsewhere
            }
            for elsewhere in (False, True)
        )
        return await _one_with(tool, here, agents, servers)

    async def describe(self, name: str | None) -> dict[str, Any]:
        """The body of a `catalog`: one agent, or all and the named toolsets; a broken one has `error` alone.

        Raises:
            RequestError: `unknown_agent`.
        """
        if name is not None and name not in self._broken:
            self.named(name)
        names = [*self._registered, *self._broken] if name is None else [name]
        entries = await asyncio.gather(*map(self._entry, names))
        catalog = await self.toolsets.describe() if name is None else {}
        return {"agents": dict(zip(names, entries, strict=True)), "toolsets": catalog}

    async def aclose(self) -> None:
        """End the processes that toolsets have started; from any loop."""
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
            f"{target} is {type(agent).__name__}, not a pydantic_ai.Agent or a function making one"
        )
    return agent


def _of_agent(registered: Registered) -> Found:
    return Found(registered, CombinedToolset(registered.agent.toolsets))


async def _one_with(tool: str, *rounds: Mapping[str, Found]) -> Found:
    """The one that has a tool; those of a later round are asked when none of an earlier has it."""
    seen: list[str] = []
    faults: list[str] = []
    for places in rounds:
        listings = await asyncio.gather(*(found.tools() for found in places.values()))
        having = [place for place, listing in zip(places, listings, strict=True) if tool in listing.tools]
        if len(having) > 1:
            raise invalid([("/tool", f"{tool!r} is of {' and of '.join(having)}: say which agent, or rename one")])
        if having:
            return places[having[0]]
        for place, listing in zip(places, listings, strict=True):
            seen += listing.tools
            faults += [f"{place}: {fault}" for fault in listing.faults]
    raise toolsets.unknown_tool(tool, seen, faults)
