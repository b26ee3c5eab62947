"""Clients of gRPC, with its own library: HTTP/2 is not to be written by hand. It takes as long as the server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import grpc.aio

from axon_zmq.protocol.msgpack import pack
from bench.clients import Crowd, Request
from bench.peers.service import NAME


class Stubs(Crowd):
    """Clients on an event loop that only runs while the crowd listens.

    Args:
        port: The server's.
        size: How many clients.
        connections: How many channels they share.
    """

    def __init__(self, port: int, size: int, connections: int | None = None) -> None:
        super().__init__(size)
        self._loop = asyncio.new_event_loop()
        self._came: list[tuple[int, str, bool]] = []
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._channels = self._loop.run_until_complete(self._connect(f"127.0.0.1:{port}", connections or size))

    async def _connect(self, address: str, count: int) -> list[grpc.aio.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1)]  # else all share one connection
        return [grpc.aio.insecure_channel(address, options=options) for _ in range(count)]

    def _send(self, client: int, request: Request) -> None:
        self._tasks.add(self._loop.create_task(self._call(client, request)))

    async def _call(self, client: int, request: Request) -> None:
        channel, method = self._channels[client % len(self._channels)], f"/{NAME}/{request.kind}"
        try:
            if request.unary:
                answer = await channel.unary_unary(method, pack, bytes.decode)(request.body)
                self._came.append((client, answer, True))
            else:
                async for piece in channel.unary_stream(method, pack, bytes.decode)(request.body):
                    self._came.append((client, piece, False))
                    self._news.set()
                self._came.append((client, "", True))
        finally:
            self._news.set()

    def _heard(self, seconds: float) -> Iterator[tuple[int, str, bool]]:
        self._loop.run_until_complete(self._wait(seconds))
        came, self._came = self._came, []
        self._news.clear()
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.remove(task)
            task.result()
        yield from came

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def close(self) -> None:
        """Close all."""
        self._loop.run_until_complete(self._hang_up())
        self._loop.close()

    async def _hang_up(self) -> None:
        for channel in self._channels:
            await channel.close()
