"""The agents that a worker knows: registered ones, imported here and nowhere else, and agents as data."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from types import ModuleType, NoneType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_ai import Agent
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model
from pydantic_ai.toolsets import FunctionToolset

from axon_zmq import wire
from axon_zmq.errors import ConfigurationError, RequestError
from axon_zmq.messages import AgentData, from_validation, invalid
from axon_zmq.worker.models import Models

log = logging.getLogger(__name__)


@dataclass
class Registered:
    """One agent of `AXON_AGENTS`."""

    name: str
    agent: Agent[Any, Any]

    @cached_property
    def deps_adapter(self) -> TypeAdapter[Any] | None:
        """What checks `deps`; None where the agent takes any, or a type that cannot come over the wire."""
        if self.agent.deps_type is object:
            return None
        try:
            return TypeAdapter(self.agent.deps_type)
        except PydanticSchemaGenerationError:
            return None

    def deps(self, value: Any) -> Any:
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

    def describe(self) -> dict[str, Any]:
        """The agent's entry in a `catalog`."""
        tools = [
            tool.tool_def
            for toolset in self.agent.toolsets
            if isinstance(toolset, FunctionToolset)
            for tool in toolset.tools.values()
        ]
        return {
            "description": self.agent.render_description(),
            "modes": list(wire.MODES),
            "tools": [
                {"name": tool.name, "description": tool.description, "parameters": tool.parameters_json_schema}
                for tool in tools
            ],
            "output_schema": self.agent.output_json_schema(),
            "deps_schema": None if self.deps_adapter is None else self.deps_adapter.json_schema(),
        }


class Registry:
    """The agents of one event loop.

    Args:
        targets: `module:attribute` by name; the attribute is an `Agent`, or a function that makes one.
        models: The loop's models and providers.
        private: Run the modules anew instead of importing them: an agent shared between loops fails.
    """

    def __init__(self, targets: Mapping[str, str], models: Models, *, private: bool = False) -> None:
        self.models = models
        self._registered: dict[str, Registered] = {}
        self._broken: dict[str, str] = {}
        for name, target in targets.items():
            try:
                agent = _load(target, private)
            except (Exception, SystemExit) as error:
                self._broken[name] = f"{type(error).__name__}: {error}"
                log.error("agent %r (%s) cannot be loaded: %s", name, target, self._broken[name])
                continue
            if isinstance(agent.model, Model):
                models.share_provider(agent.model)
            self._registered[name] = Registered(name, agent)

    def __repr__(self) -> str:
        return f"<Registry {', '.join(self._registered)}; broken: {', '.join(self._broken) or 'none'}>"

    def named(self, name: str) -> Registered:
        """A registered agent.

        Raises:
            RequestError: `unknown_agent`, with the names that are meant, or why it could not be loaded.
        """
        if (registered := self._registered.get(name)) is not None:
            return registered
        if (why := self._broken.get(name)) is not None:
            raise RequestError("unknown_agent", f"agent {name!r} could not be loaded: {why}")
        near = get_close_matches(name, self._registered, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(self._registered) or 'none'}"
        raise RequestError("unknown_agent", f"no agent {name[:64]!r} is registered; {hint}")

    def from_data(self, data: AgentData, model: str | None) -> Agent[Any, Any]:
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
        try:
            return Agent(
                self.models.named(name),
                name=data.name,
                instructions=data.instructions,
                system_prompt=data.system_prompt or (),
            )
        except UserError as error:
            raise invalid([("/agent", error.message)]) from error

    def describe(self, name: str | None) -> dict[str, Any]:
        """The body of a `catalog`: one agent, or all; a broken one has `error` in place of the rest.

        Raises:
            RequestError: `unknown_agent`.
        """
        if name is not None and name not in self._broken:
            self.named(name)
        names = [*self._registered, *self._broken] if name is None else [name]
        return {"agents": {each: self._entry(each) for each in names}}

    def _entry(self, name: str) -> dict[str, Any]:
        if (why := self._broken.get(name)) is not None:
            return {"error": why}
        try:
            return self._registered[name].describe()
        except Exception as error:
            return {"error": f"cannot be described: {type(error).__name__}: {error}"}


def _load(target: str, private: bool) -> Agent[Any, Any]:
    module_name, _, attribute = target.partition(":")
    module = _private_copy(module_name) if private else importlib.import_module(module_name)
    found = getattr(module, attribute)
    agent = found() if callable(found) and not isinstance(found, Agent) else found
    if not isinstance(agent, Agent):
        raise ConfigurationError(
            f"{target} is {type(agent).__name__}, not a pydantic_ai.Agent or a function making one"
        )
    return agent


def _private_copy(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
