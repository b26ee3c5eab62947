"""gRPC with `grpc.aio`: generic handlers with msgpack requests and text replies, so no generated code is needed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import msgpack

from axon_zmq.process import lifeline
from bench.peers.service import NAME, STREAMS, UNARY, warm_up


def _unary(answer: Callable[[dict[str, Any]], Awaitable[str]]) -> Any:
    async def handle(body: dict[str, Any], _context: Any) -> bytes:
        return (await answer(body)).encode()

    return grpc.unary_unary_rpc_method_handler(handle, msgpack.unpackb)


def _stream(answer: Callable[[dict[str, Any]], AsyncIterator[str]]) -> Any:
    async def handle(body: dict[str, Any], _context: Any) -> AsyncIterator[bytes]:
        async for piece in answer(body):
            yield piece.encode()

    return grpc.unary_stream_rpc_method_handler(handle, msgpack.unpackb)


async def main(port: int) -> None:
    """Serve until the process is killed."""
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 100_000)])
    unary = {kind: _unary(answer) for kind, answer in UNARY.items()}
    streams = {kind: _stream(answer) for kind, answer in STREAMS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, {**unary, **streams}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await warm_up()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    lifeline.die_with_parent()
    asyncio.run(main(int(sys.argv[1])))
