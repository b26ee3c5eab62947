"""Python clients of the daemon: a core without I/O, an asyncio client, a blocking client, and functions as tools.

Internal: may change in any release. Import the clients and their helpers from `axon_zmq`.
"""

from __future__ import annotations

from axon_zmq.client.async_client import AsyncClient as AsyncClient
from axon_zmq.client.async_client import RunStream as RunStream
from axon_zmq.client.deferred import deferred_results as deferred_results
from axon_zmq.client.sync_client import Client as Client
from axon_zmq.client.sync_client import SyncRunStream as SyncRunStream
from axon_zmq.client.tool_functions import Tool as Tool
from axon_zmq.client.tool_functions import ToolAnswer as ToolAnswer
from axon_zmq.client.tool_functions import ToolRetry as ToolRetry
