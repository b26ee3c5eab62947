"""FastAPI under uvicorn, with a WebSocket for each client.

Requests are JSON. A stream is one text message for each piece, followed by an empty one. A unary request is a message
and its answer on the WebSocket, or a separate POST, which is more usual and takes longer.
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
    """Answer a unary request."""
    return {"text": await UNARY[kind](body)}


@app.websocket("/")
async def serve(client: WebSocket) -> None:
    """Answer the requests of one client, one after the other."""
    await client.accept()
    try:
        while True:
            request = await client.receive_json()
            kind, body = request["kind"], request["body"]
            if kind in UNARY:
                await client.send_text(await UNARY[kind](body))
                continue
            async for piece in STREAMS[kind](body):
                await client.send_text(piece)
            await client.send_text("")
    except WebSocketDisconnect:
        pass


def main(port: int) -> None:
    """Serve until the process is killed, with uvloop, which `fastapi[standard]` installs.

    Each process has its own listener on the port (SO_REUSEPORT), and the kernel distributes the connections, because
    the benchmark starts and measures each process separately. With `uvicorn --workers` they would share one listener.
    """
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # Without `proto`, asyncio leaves Nagle on: 40 ms a POST.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(2048)
    # Pings and the keep-alive timeout are off, because a driver that waits for its turn does not read its sockets.
    config = uvicorn.Config(app, loop="uvloop", log_level="warning", ws_ping_interval=None, timeout_keep_alive=3600)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    lifeline.die_with_parent()
    main(int(sys.argv[1]))
