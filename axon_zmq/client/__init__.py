"""The Python client: one core without I/O, an asynchronous and a blocking face."""

from __future__ import annotations

from axon_zmq.client.aio import AsyncClient, RunStream
from axon_zmq.client.sync import Client, SyncRunStream

__all__ = ["AsyncClient", "Client", "RunStream", "SyncRunStream"]
