"""NATS: workers in a queue group, msgpack in, each piece a message to the inbox that asked; a stream ends with none."""

from __future__ import annotations

import asyncio
import sys

import msgpack
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from axon_zmq.process import lifeline
from bench.peers.service import NAME, STREAMS, UNARY, warm_up


async def _answer(bus: Client, asked: Msg) -> None:
    kind, body = asked.subject.removeprefix(f"{NAME}."), msgpack.unpackb(asked.data)
    if kind in UNARY:
        await bus.publish(asked.reply, (await UNARY[kind](body)).encode())
        return
    async for piece in STREAMS[kind](body):
        await bus.publish(asked.reply, piece.encode())
    await bus.publish(asked.reply, b"")


async def main(port: int) -> None:
    """Serve for ever."""
    bus = await nats.connect(f"nats://127.0.0.1:{port}", reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    answering: set[asyncio.Task[None]] = set()

    async def take(asked: Msg) -> None:
        task = asyncio.create_task(_answer(bus, asked))
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
