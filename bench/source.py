"""A worker without agents: it speaks the backend protocol and sends ready-made chunks, so that only the relay works.

A request's body is `{streams, chunks, pause}`: when so many requests have come, their chunks go out in
turn, so many each, with so many seconds between two rounds of them. All are the same, unless it says
`numbered`, for clients that look at `seq`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import zmq

from axon_zmq import limits, wire
from axon_zmq.supervise import lifeline

CHUNK = wire.pack({"seq": 300, "type": "text", "data": "0123 ", "step": 1, "part": 0})
"""What a delta of a model looks like on the wire."""


def serve(backend: str) -> None:
    """Answer requests for ever."""
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.connect(backend)
    ready = {"v": limits.BACKEND_PROTOCOL, "mode": "run_stream", "slots": 1024, "name": "source", "holds": []}
    dealer.send_multipart([wire.CONTROL, b"ready", wire.pack(ready)])
    runs: list[tuple[bytes, bytes]] = []
    while True:
        if not dealer.poll(int(limits.PROGRESS_INTERVAL * 1000)):
            dealer.send_multipart([wire.CONTROL, b"progress", wire.pack({"open": 0})])
            continue
        client, kind, *rest = dealer.recv_multipart()
        if kind == b"run_stream":
            id, _header, body, _lease = rest
            runs.append((client, id))
            asked = wire.unpack(body, "the body")
            if len(runs) == asked["streams"]:
                chunks = _chunks(asked["chunks"], asked.get("numbered", False))
                _stream(dealer, runs, chunks, asked["pause"])
                runs.clear()
                dealer.send_multipart([wire.CONTROL, b"progress", wire.pack({"open": 0})])


def _chunks(count: int, numbered: bool) -> list[bytes]:
    if not numbered:
        return [CHUNK] * count
    body = {"type": "text", "data": "0123 ", "step": 1, "part": 0}
    return [wire.pack({"seq": seq, **body}) for seq in range(1, count + 1)]


def _stream(dealer: zmq.Socket[Any], runs: list[tuple[bytes, bytes]], chunks: list[bytes], pause: float) -> None:
    send = dealer.send
    for chunk in chunks:
        for client, id in runs:
            send(client, zmq.SNDMORE)
            send(b"chunk", zmq.SNDMORE)
            send(id, zmq.SNDMORE)
            send(chunk)
        if pause:
            time.sleep(pause)
    for client, id in runs:
        end = wire.pack({"seq": len(chunks) + 1, "result": "", "usage": {}, "messages": []})
        dealer.send_multipart([client, b"complete", id, end])


if __name__ == "__main__":
    lifeline.hold()
    serve(*sys.argv[1:])
