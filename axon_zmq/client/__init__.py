"""The Python client: one core without I/O, an asynchronous and a blocking face, and tools of the client's own."""

from __future__ import annotations

from axon_zmq.client.async_client import AsyncClient, RunStream
from axon_zmq.client.deferred import deferred_results
from axon_zmq.client.sync_client import Client, SyncRunStream
from axon_zmq.client.tool_functions import Tool, ToolAnswer, ToolRetry

__all__ = [
    "AsyncClient",
    "Client",
    "RunStream",
    "SyncRunStream",
    "Tool",
    "ToolAnswer",
    "ToolRetry",
    "deferred_results",
]
