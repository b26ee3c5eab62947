"""Workers behind a plain ZeroMQ proxy, as in pyzmq's examples: asyncio sockets, whole messages, msgpack."""

from __future__ import annotations

import asyncio
import sys

import msgpack
import zmq
import zmq.asyncio

from axon_zmq.process import lifeline
from bench.peers.service import STREAMS, UNARY, warm_up


async def _answer(dealer: zmq.asyncio.Socket, client: bytes, kind: str, id: bytes, packed: bytes) -> None:
    body = msgpack.unpackb(packed)
    result = ""
    if kind in STREAMS:
        async for piece in STREAMS[kind](body):
            await dealer.send_multipart([client, b"chunk", id, msgpack.packb({"data": piece})])
    else:
        result = await UNARY[kind](body)
    await dealer.send_multipart([client, b"complete", id, msgpack.packb({"result": result})])


async def main(backend: str) -> None:
    """Serve until the process is killed."""
    dealer = zmq.asyncio.Context().socket(zmq.DEALER)
    dealer.connect(backend)
    await warm_up()
    print("ready", flush=True)
    answering: set[asyncio.Task[None]] = set()
    while True:
        client, kind, id, _header, body = await dealer.recv_multipart()
        task = asyncio.create_task(_answer(dealer, client, kind.decode(), id, body))
        answering.add(task)
        task.add_done_callback(answering.discard)


if __name__ == "__main__":
    lifeline.die_with_parent()
    asyncio.run(main(sys.argv[1]))
