"""axon_zmq: pydantic-ai agents behind a ZeroMQ ROUTER, supervised.

Importing the package loads nothing heavy: the clients are loaded when they are first named, so that
the broker process stays small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axon_zmq.errors import (
    AxonError,
    ConfigurationError,
    ModelError,
    RequestError,
    RunEndedError,
    ToolError,
    UnavailableError,
)

if TYPE_CHECKING:
    from axon_zmq.client import AsyncClient as AsyncClient
    from axon_zmq.client import Client as Client
    from axon_zmq.client import Tool as Tool
    from axon_zmq.client import ToolAnswer as ToolAnswer
    from axon_zmq.client import ToolRetry as ToolRetry
    from axon_zmq.client import deferred_results as deferred_results

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "AxonError",
    "Client",
    "ConfigurationError",
    "ModelError",
    "RequestError",
    "RunEndedError",
    "Tool",
    "ToolAnswer",
    "ToolError",
    "ToolRetry",
    "UnavailableError",
    "__version__",
    "deferred_results",
]


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "Client", "Tool", "ToolAnswer", "ToolRetry", "deferred_results"):
        from axon_zmq import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
