"""Public API of axon_zmq: clients of the daemon, their events, tools and errors.

axon_zmq runs pydantic-ai agents in supervised worker processes behind a ZeroMQ ROUTER socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from axon_zmq.client.async_client import AsyncClient, RunStream
    from axon_zmq.client.deferred import deferred_results
    from axon_zmq.client.options import CallOptions, RunOptions
    from axon_zmq.client.sync_client import Client, SyncRunStream
    from axon_zmq.client.tool_functions import Tool, ToolAnswer, ToolRetry
    from axon_zmq.errors import (
        AxonError,
        ConfigurationError,
        ModelError,
        RequestError,
        RunEndedError,
        ToolError,
        UnavailableError,
    )
    from axon_zmq.events import Accepted, Chunk, Complete, Event, Log, Refused, ToolCall, ToolCancelled

__version__ = "0.1.0"
__all__ = [
    "Accepted",
    "AsyncClient",
    "AxonError",
    "CallOptions",
    "Chunk",
    "Client",
    "Complete",
    "ConfigurationError",
    "Event",
    "Log",
    "ModelError",
    "Refused",
    "RequestError",
    "RunEndedError",
    "RunOptions",
    "RunStream",
    "SyncRunStream",
    "Tool",
    "ToolAnswer",
    "ToolCall",
    "ToolCancelled",
    "ToolError",
    "ToolRetry",
    "UnavailableError",
    "__version__",
    "deferred_results",
]

# Each name is imported when it is first used: importing the package alone loads neither zmq nor pydantic, so the broker
# process, which must import it, stays small.
_MODULES: Final[Mapping[str, str]] = {
    "Accepted": "events",
    "AsyncClient": "client.async_client",
    "AxonError": "errors",
    "CallOptions": "client.options",
    "Chunk": "events",
    "Client": "client.sync_client",
    "Complete": "events",
    "ConfigurationError": "errors",
    "Event": "events",
    "Log": "events",
    "ModelError": "errors",
    "Refused": "events",
    "RequestError": "errors",
    "RunEndedError": "errors",
    "RunOptions": "client.options",
    "RunStream": "client.async_client",
    "SyncRunStream": "client.sync_client",
    "Tool": "client.tool_functions",
    "ToolAnswer": "client.tool_functions",
    "ToolCall": "events",
    "ToolCancelled": "events",
    "ToolError": "errors",
    "ToolRetry": "client.tool_functions",
    "UnavailableError": "errors",
    "deferred_results": "client.deferred",
}
"""Module of each public name, relative to this package."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562) and keep it in this module."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
