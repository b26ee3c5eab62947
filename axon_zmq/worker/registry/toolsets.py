"""The toolsets that a worker knows by name, and what tools a toolset has."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
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
from axon_zmq.protocol.plain import plain
from axon_zmq.protocol.requests import invalid
from axon_zmq.settings import McpServer
from axon_zmq.worker.registry import offline_models

if TYPE_CHECKING:
    from axon_zmq.worker.registry.mcp_servers import ServerToolset

log = logging.getLogger(__name__)

LISTING_TIMEOUT_S: Final = 5.0
"""Seconds that one toolset may take to tell its tools in a `catalog`."""
MAX_FAULT_CHARS: Final = 500
"""Characters of what a toolset says that is wrong with it."""
MAX_NAMES_SHOWN: Final = 20
"""Names in a message."""

Toolset = AbstractToolset[object]


class Toolsets:
    """The registered toolsets of one event loop; one that cannot be loaded takes nothing else down.

    Args:
        configured: `module:attribute`, or an MCP server, by name. The attribute is a toolset, a list of
            functions, or a function without arguments that makes one of these.
        private: Run the modules anew instead of importing them.
    """

    def __init__(self, configured: Mapping[str, str | McpServer], *, private: bool = False) -> None:
        self.broken: dict[str, str] = {}
        """Why those that could not be loaded could not."""
        self.loaded: dict[str, Toolset] = {}
        self.servers = frozenset(name for name, source in configured.items() if isinstance(source, McpServer))
        """Those that are processes or machines of their own."""
        self._servers: list[ServerToolset] = []
        for name, source in configured.items():
            try:
                made = self._server(name, source) if isinstance(source, McpServer) else _load(source, private)
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                self.broken[name] = str(error) if isinstance(error, ConfigurationError) else _said(error)
                log.error("toolset %r cannot be loaded: %s", name, self.broken[name])
            else:
                self.loaded[name] = Named(made, name)

    def __repr__(self) -> str:
        return f"<Toolsets {', '.join(self.loaded) or 'none'}; broken: {', '.join(self.broken) or 'none'}>"

    def named(self, names: Sequence[str]) -> list[Toolset]:
        """The toolsets that an agent as data names.

        Raises:
            RequestError: `invalid_request`, naming the one that is unknown, broken or there twice.
        """
        for index, name in enumerate(names):
            if (fault := self._fault(name)) or name in names[:index]:
                raise invalid([(f"/agent/toolsets/{index}", fault or f"{name!r} is there twice")])
        return [self.loaded[name] for name in names]

    async def describe(self) -> dict[str, Any]:
        """Each toolset's `{tools}`, or `{error}`, by name."""
        listings = await asyncio.gather(*(listing([toolset]) for toolset in self.loaded.values()))
        told = {
            name: {"error": answer.faults[0]} if answer.faults else {"tools": list(answer.tools.values())}
            for name, answer in zip(self.loaded, listings, strict=True)
        }
        return told | {name: {"error": why} for name, why in self.broken.items()}

    async def aclose(self) -> None:
        """End the MCP servers that were started; from any loop."""
        used = [server for server in self._servers if server.loop is not None]
        if not used:
            return
        loop = used[0].loop
        assert loop is not None
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
        return f"no toolset {name[:64]!r} is registered; {did_you_mean(name, self.loaded)}"


@dataclass
class Named(WrapperToolset[object]):
    """A toolset that is known by the operator's name for it, also in pydantic-ai's errors."""

    name: str

    @property
    def id(self) -> str:
        """The name."""
        return self.name

    @property
    def label(self) -> str:
        """For messages."""
        return f"toolset {self.name!r}"

    @property
    def tool_name_conflict_hint(self) -> str:
        """What mends two tools of one name."""
        return "Leave one of the toolsets out, or have the operator set a prefix."

    async def get_tools(self, ctx: RunContext[object]) -> dict[str, ToolsetTool[object]]:
        """The tools, as this toolset's."""
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
            f"{target} is {type(found).__name__}, "
            "not a pydantic_ai toolset, a list of functions, or a function that makes one"
        )
    return found


def attribute(target: str, private: bool) -> Any:
    """What `module:attribute` names.

    Args:
        target: The module and the attribute.
        private: Run the module anew instead of importing it.
    """
    module_name, _, name = target.partition(":")
    module = _private_copy(module_name) if private else importlib.import_module(module_name)
    return getattr(module, name)


def _private_copy(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what tools there are ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """What tools there are."""

    tools: dict[str, dict[str, Any]]
    """As a `catalog` tells them, by name."""
    faults: list[str]
    """The toolsets that could not tell, each with the reason."""


async def listing(asked: Sequence[Toolset], agent: Agent[object, object] | None = None) -> Listing:
    """Ask toolsets for their tools, all at once, as at the first step of a run without `deps`.

    Args:
        asked: Any toolsets.
        agent: The agent that has them.
    """
    single = _singly(asked)
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
    """A toolset's entries, or why there are none."""
    try:
        async with asyncio.timeout(LISTING_TIMEOUT_S):
            own = await toolset.for_run(context)
            async with own:
                tools = await (await own.for_run_step(context)).get_tools(context)
        approval = _asks_approval(toolset)
        return {name: plain(_entry(tool, approval)) for name, tool in tools.items()}
    except TimeoutError:
        return f"did not answer within {LISTING_TIMEOUT_S:g} s"
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return _said(error)


def _singly(toolsets: Sequence[Toolset]) -> list[Toolset]:
    """Toolsets without those that only combine others."""
    return [
        part
        for toolset in toolsets
        for part in (_singly(toolset.toolsets) if isinstance(toolset, CombinedToolset) else [toolset])
    ]


def _context(agent: Agent[object, object] | None) -> RunContext[object]:
    model = agent.model if agent is not None and isinstance(agent.model, Model) else offline_models.echo()
    return RunContext[object](deps=None, model=model, usage=RunUsage(), agent=agent)


def _asks_approval(toolset: Toolset) -> bool:
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


def _said(error: BaseException) -> str:
    text = error.message if isinstance(error, AxonError) else f"{type(error).__name__}: {error}"
    return text[:MAX_FAULT_CHARS]


# --- names -------------------------------------------------------------------------------------------


def unknown_tool(name: str, known: Collection[str], faults: Sequence[str] = ()) -> RequestError:
    """`unknown_tool`, with the name that is meant, and the toolsets that could not be asked."""
    more = f"; not asked were {'; '.join(faults)}" if faults else ""
    return RequestError("unknown_tool", f"no tool {name[:64]!r} is registered; {did_you_mean(name, known)}{more}")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The name that is meant, or some of those that there are."""
    if near := get_close_matches(name, known, n=1):
        return f"did you mean {near[0]!r}?"
    some = ", ".join(islice(known, MAX_NAMES_SHOWN))
    return f"known are {some}{', …' if len(known) > MAX_NAMES_SHOWN else ''}" if known else "there is none"
