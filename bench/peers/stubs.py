"""Clients of gRPC with its own library, because HTTP/2 is too complex to write here; it is as slow as the server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import grpc.aio

from axon_zmq.protocol.msgpack import pack
from bench.clients import Crowd, Request
from bench.peers.service import NAME


class Stubs(Crowd):
    """Clients on an event loop that only runs while they wait for replies.

    Args:
        port: Port of the server.
        size: Number of clients.
        connections: Number of channels that they share.
    """

    def __init__(self, port: int, size: int, connections: int | None = None) -> None:
        super().__init__(size)
        self._loop = asyncio.new_event_loop()
        self._received: list[tuple[int, str, bool]] = []
        self._has_new = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._channels = self._loop.run_until_complete(self._connect(f"127.0.0.1:{port}", connections or size))

    async def _connect(self, address: str, count: int) -> list[grpc.aio.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1)]  # Otherwise all channels share one connection.
        return [grpc.aio.insecure_channel(address, options=options) for _ in range(count)]

    def _send(self, client: int, request: Request) -> None:
        self._tasks.add(self._loop.create_task(self._call(client, request)))

    async def _call(self, client: int, request: Request) -> None:
        channel, method = self._channels[client % len(self._channels)], f"/{NAME}/{request.kind}"
        try:
            if request.unary:
                answer = await channel.unary_unary(method, pack, bytes.decode)(request.body)
                self._received.append((client, answer, True))
            else:
                async for piece in channel.unary_stream(method, pack, bytes.decode)(request.body):
                    self._received.append((client, piece, False))
                    self._has_new.set()
                self._received.append((client, "", True))
        finally:
            self._has_new.set()

    def _receive(self, seconds: float) -> Iterator[tuple[int, str, bool]]:
        self._loop.run_until_complete(self._wait(seconds))
        came, self._received = self._received, []
        self._has_new.clear()
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.remove(task)
            task.result()
        yield from came

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_new.wait()

    def close(self) -> None:
        """Close all channels."""
        self._loop.run_until_complete(self._close_channels())
        self._loop.close()

    async def _close_channels(self) -> None:
        for channel in self._channels:
            await channel.close()
