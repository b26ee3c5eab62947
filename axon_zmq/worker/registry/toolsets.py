"""The registered toolsets of a worker, and the tools that a toolset has."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from pydantic_ai import Agent, RunContext
from pydantic_ai.models import Model
from pydantic_ai.toolsets import (
    AbstractToolset,
    ApprovalRequiredToolset,
    CombinedToolset,
    FunctionToolset,
    ToolsetTool,
    WrapperToolset,
)
from pydantic_ai.usage import RunUsage

from axon_zmq.errors import AxonError, ConfigurationError, RequestError
from axon_zmq.process.redaction import redactor
from axon_zmq.protocol.plain import plain
from axon_zmq.protocol.requests import invalid
from axon_zmq.settings import McpServer
from axon_zmq.suggestions import suggestion
from axon_zmq.worker.registry import offline_models

if TYPE_CHECKING:
    from axon_zmq.worker.registry.mcp_servers import ServerToolset

log = logging.getLogger(__name__)

LISTING_TIMEOUT_S: Final = 5.0
"""Seconds that one toolset may take to list its tools for a `catalog`."""
MAX_FAULT_CHARS: Final = 500
"""Maximum number of characters of a toolset's exception that an error message repeats."""
REGISTERED: Final = "registered names"
"""Introduces the registered names in a hint of an error message."""

Toolset = AbstractToolset[object]


class Toolsets:
    """The registered toolsets of one event loop; one that cannot be loaded does not affect the others.

    Args:
        configured: `module:attribute`, or an MCP server, for each name. The attribute is a toolset, a list of
            functions, or a function without arguments that returns one of these.
        private: Execute the modules again instead of importing them, as in `Registry`.
    """

    def __init__(self, configured: Mapping[str, str | McpServer], *, private: bool = False) -> None:
        self.broken: dict[str, str] = {}
        """The reason for each toolset that could not be loaded, by its name."""
        self.loaded: dict[str, Toolset] = {}
        self.servers = frozenset(name for name, source in configured.items() if isinstance(source, McpServer))
        """Names of the toolsets that are MCP servers."""
        self._servers: list[ServerToolset] = []
        for name, source in configured.items():
            try:
                made = self._server(name, source) if isinstance(source, McpServer) else _load(source, private)
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                self.broken[name] = (
                    redactor.text(str(error)) if isinstance(error, ConfigurationError) else _reason(error)
                )
                log.error("toolset %r cannot be loaded: %s", name, self.broken[name])
            else:
                self.loaded[name] = NamedToolset(made, name)

    def __repr__(self) -> str:
        return f"<Toolsets {', '.join(self.loaded) or 'none'}; broken: {', '.join(self.broken) or 'none'}>"

    def named(self, names: Sequence[str]) -> list[Toolset]:
        """Return the toolsets that an agent as data names.

        Raises:
            RequestError: `invalid_request`, with a JSON pointer to the name that is unknown, broken or repeated.
        """
        for index, name in enumerate(names):
            if (fault := self._fault(name)) or name in names[:index]:
                raise invalid([(f"/agent/toolsets/{index}", fault or f"{name!r} is listed twice: remove one")])
        return [self.loaded[name] for name in names]

    async def describe(self) -> dict[str, Any]:
        """Return `{tools}` or `{error}` of each toolset, by name."""
        listings = await asyncio.gather(*(listing([toolset]) for toolset in self.loaded.values()))
        entries = {
            name: {"error": answer.faults[0]} if answer.faults else {"tools": list(answer.tools.values())}
            for name, answer in zip(self.loaded, listings, strict=True)
        }
        return entries | {name: {"error": why} for name, why in self.broken.items()}

    async def aclose(self) -> None:
        """End the MCP servers that were started; may be called on any event loop."""
        used = [server for server in self._servers if server.loop is not None]
        if not used:
            return
        loop = used[0].loop
        assert loop is not None
        # A connection can be closed only on its own event loop. The event loop of a `run_sync` thread stands still
        # between two runs, so it is run here, in another thread.
        closing = _close(used)
        if loop is asyncio.get_running_loop():
            await closing
        elif loop.is_running():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(closing, loop))
        else:
            await asyncio.to_thread(loop.run_until_complete, closing)

    def _server(self, name: str, configured: McpServer) -> Toolset:
        try:
            from axon_zmq.worker.registry.mcp_servers import ServerToolset
        except ImportError as error:
            raise ConfigurationError(f"MCP needs more packages ({error.name}): pip install 'axon-zmq[mcp]'") from error
        server = ServerToolset(name, configured)
        self._servers.append(server)
        toolset = server if configured.prefix is None else server.prefixed(configured.prefix)
        return toolset.approval_required() if configured.approval else toolset

    def _fault(self, name: str) -> str | None:
        if name in self.loaded:
            return None
        if (why := self.broken.get(name)) is not None:
            return f"toolset {name!r} could not be loaded: {why}"
        return f"no toolset {name[:64]!r} is registered; {suggestion(name, self.loaded, REGISTERED)}"


@dataclass
class NamedToolset(WrapperToolset[object]):
    """A toolset with the name that the operator gave it; pydantic-ai's errors contain this name."""

    name: str

    @property
    def id(self) -> str:
        """The name."""
        return self.name

    @property
    def label(self) -> str:
        """The name, as error messages show it."""
        return f"toolset {self.name!r}"

    @property
    def tool_name_conflict_hint(self) -> str:
        """Advice in pydantic-ai's error if two toolsets have a tool of the same name."""
        return "Leave one of the toolsets out, or have the operator set a prefix."

    async def get_tools(self, ctx: RunContext[object]) -> dict[str, ToolsetTool[object]]:
        """Return the tools of the wrapped toolset as tools of this one."""
        return {name: replace(tool, toolset=self) for name, tool in (await super().get_tools(ctx)).items()}


async def _close(servers: Sequence[ServerToolset]) -> None:
    await asyncio.gather(*(server.aclose() for server in servers), return_exceptions=True)


def _load(target: str, private: bool) -> Toolset:
    found = attribute(target, private)
    if callable(found) and not isinstance(found, AbstractToolset):
        found = found()
    if isinstance(found, list | tuple) and found and all(map(callable, found)):
        return FunctionToolset(list(found))
    if not isinstance(found, AbstractToolset):
        raise ConfigurationError(
            f"{target} is {type(found).__name__}: "
            "expected a pydantic_ai toolset, a list of functions, or a function that returns one"
        )
    return found


def attribute(target: str, private: bool) -> Any:
    """Return the object that `module:attribute` names.

    Args:
        target: The module and the attribute.
        private: Execute the module again instead of importing it.
    """
    module_name, _, name = target.partition(":")
    module = _private_copy(module_name) if private else importlib.import_module(module_name)
    return getattr(module, name)


def _private_copy(name: str) -> ModuleType:
    """Execute a module again, without entering the copy into `sys.modules`."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- lists of tools ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """The tools of one or several toolsets."""

    tools: dict[str, dict[str, Any]]
    """Entries of the `catalog`, by the name of the tool."""
    faults: list[str]
    """The toolsets that could not list their tools, each with the reason."""


async def listing(toolsets: Sequence[Toolset], agent: Agent[object, object] | None = None) -> Listing:
    """List the tools of toolsets, as pydantic-ai does in the first step of a run without `deps`.

    All toolsets are asked at the same time.

    Args:
        toolsets: The toolsets.
        agent: The agent that has them.
    """
    single = _without_combined(toolsets)
    context = _context(agent)
    answers = await asyncio.gather(*(_tools(toolset, context) for toolset in single))
    tools: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    for toolset, answer in zip(single, answers, strict=True):
        if isinstance(answer, str):
            faults.append(f"{toolset.label}: {answer}")
        else:
            tools |= answer
    return Listing(tools, faults)


async def _tools(toolset: Toolset, context: RunContext[object]) -> dict[str, dict[str, Any]] | str:
    """Return a toolset's entries in the `catalog`, or the reason why it could not list its tools."""
    try:
        async with asyncio.timeout(LISTING_TIMEOUT_S):
            own = await toolset.for_run(context)
            async with own:
                tools = await (await own.for_run_step(context)).get_tools(context)
        approval = _requires_approval(toolset)
        return {name: plain(_entry(tool, approval)) for name, tool in tools.items()}
    except TimeoutError:
        return f"did not answer within {LISTING_TIMEOUT_S:g} s"
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return _reason(error)


def _without_combined(toolsets: Sequence[Toolset]) -> list[Toolset]:
    """Replace each combined toolset by its parts, so that errors name the part at fault."""
    return [
        part
        for toolset in toolsets
        for part in (_without_combined(toolset.toolsets) if isinstance(toolset, CombinedToolset) else [toolset])
    ]


def _context(agent: Agent[object, object] | None) -> RunContext[object]:
    model = agent.model if agent is not None and isinstance(agent.model, Model) else offline_models.echo()
    return RunContext[object](deps=None, model=model, usage=RunUsage(), agent=agent)


def _requires_approval(toolset: Toolset) -> bool:
    while isinstance(toolset, WrapperToolset):
        if isinstance(toolset, ApprovalRequiredToolset):
            return True
        toolset = toolset.wrapped
    return False


def _entry(tool: ToolsetTool[object], approval: bool) -> dict[str, Any]:
    known = tool.tool_def
    entry: dict[str, Any] = {
        "name": known.name,
        "description": known.description,
        "parameters": known.parameters_json_schema,
    }
    if known.return_schema:
        entry["returns"] = known.return_schema
    if approval or known.kind == "unapproved":
        entry["approval"] = True
    if known.sequential:
        entry["sequential"] = True
    return entry


def _reason(error: BaseException) -> str:
    text = error.message if isinstance(error, AxonError) else f"{type(error).__name__}: {error}"
    redactor.refresh()
    return redactor.text(text)[:MAX_FAULT_CHARS]


# --- names -------------------------------------------------------------------------------------------


def unknown_tool(name: str, known: Collection[str], faults: Sequence[str] = ()) -> RequestError:
    """Return an `unknown_tool` error with similar names, and with the toolsets that could not list their tools."""
    more = f"; toolsets that could not list their tools: {'; '.join(faults)}" if faults else ""
    return RequestError(
        "unknown_tool", f"no tool {name[:64]!r} is registered; {suggestion(name, known, REGISTERED)}{more}"
    )
