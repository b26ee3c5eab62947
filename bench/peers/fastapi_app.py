"""FastAPI under uvicorn: a WebSocket for each client, JSON in, a text message for each piece, an empty one at the end.

A unary request is a message and its answer on that socket, or a POST of its own, as is usual and takes longer.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from axon_zmq.process import lifeline
from bench.peers.service import STREAMS, UNARY, warm_up


@asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[None]:
    await warm_up()
    print("ready", flush=True)
    yield


app = FastAPI(lifespan=_lifespan)


@app.post("/{kind}")
async def answer(kind: str, body: dict[str, Any]) -> dict[str, str]:
    """Answer once."""
    return {"text": await UNARY[kind](body)}


@app.websocket("/")
async def serve(client: WebSocket) -> None:
    """Answer one client's requests, one after the other."""
    await client.accept()
    try:
        while True:
            asked = await client.receive_json()
            kind, body = asked["kind"], asked["body"]
            if kind in UNARY:
                await client.send_text(await UNARY[kind](body))
                continue
            async for piece in STREAMS[kind](body):
                await client.send_text(piece)
            await client.send_text("")
    except WebSocketDisconnect:
        pass


def main(port: int) -> None:
    """Serve for ever, under uvloop, which `fastapi[standard]` installs.

    Each process has a listener of its own on the port (SO_REUSEPORT), and the kernel spreads the connections over
    them, since each is started and counted by itself. `uvicorn --workers` has them share one listener.
    """
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # said, or asyncio leaves Nagle's algorithm on: 40 ms a POST
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(2048)
    # A driver that waits for its turn asks nothing and reads nothing, and so answers no ping.
    config = uvicorn.Config(app, loop="uvloop", log_level="warning", ws_ping_interval=None, timeout_keep_alive=3600)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    lifeline.die_with_parent()
    main(int(sys.argv[1]))
