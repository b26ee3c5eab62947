"""NATS: workers in a queue group.

Requests are msgpack. Each piece is a message to the reply subject; an empty message ends a stream.
"""

from __future__ import annotations

import asyncio
import sys

import msgpack
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from axon_zmq.process import lifeline
from bench.peers.service import NAME, STREAMS, UNARY, warm_up


async def _answer(bus: Client, request: Msg) -> None:
    kind, body = request.subject.removeprefix(f"{NAME}."), msgpack.unpackb(request.data)
    if kind in UNARY:
        await bus.publish(request.reply, (await UNARY[kind](body)).encode())
        return
    async for piece in STREAMS[kind](body):
        await bus.publish(request.reply, piece.encode())
    await bus.publish(request.reply, b"")


async def main(port: int) -> None:
    """Serve until the process is killed."""
    bus = await nats.connect(f"nats://127.0.0.1:{port}", reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    answering: set[asyncio.Task[None]] = set()

    async def take(request: Msg) -> None:
        task = asyncio.create_task(_answer(bus, request))
        answering.add(task)
        task.add_done_callback(answering.discard)

    await bus.subscribe(f"{NAME}.*", queue="workers", cb=take)
    await bus.flush()
    await warm_up()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    lifeline.die_with_parent()
    asyncio.run(main(int(sys.argv[1])))
