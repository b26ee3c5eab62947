"""A worker without agents: it speaks the backend protocol and sends ready-made chunks, so that only the relay works.

A request's body is `{streams, chunks, pause}`: when so many requests have come, their chunks go out in
turn, so many each, with so many seconds between two of a stream. All are the same, unless it says
`numbered`, for clients that look at `seq`. `{echo}` is answered at once.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import zmq

from axon_zmq import limits, wire
from axon_zmq.supervise import lifeline

DELTA = "0123 "
CHUNK = wire.pack({"seq": 300, "type": "text", "data": DELTA, "step": 1, "part": 0})
"""What a delta of a model looks like on the wire."""
_TICK = 0.001
"""Seconds between two looks at what is due, as an asyncio loop with many timers takes them."""


def serve(backend: str) -> None:
    """Answer requests for ever."""
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.connect(backend)
    ready = {"v": limits.BACKEND_PROTOCOL, "mode": "run_stream", "slots": 1024, "name": "source", "holds": []}
    dealer.send_multipart([wire.CONTROL, b"ready", wire.pack(ready)])
    runs: list[tuple[bytes, bytes]] = []
    told = time.monotonic()
    while True:
        if time.monotonic() - told >= limits.PROGRESS_INTERVAL:
            dealer.send_multipart([wire.CONTROL, b"progress", wire.pack({"open": 0})])
            told = time.monotonic()
        if not dealer.poll(int(limits.PROGRESS_INTERVAL * 1000)):
            continue
        client, kind, *rest = dealer.recv_multipart()
        if kind == b"run_stream":
            id, _header, body, *_lease = rest
            asked = wire.unpack(body, "the body")
            if "echo" in asked:
                _end(dealer, client, id, 1, asked["echo"])
                continue
            runs.append((client, id))
            if len(runs) == asked["streams"]:
                _stream(dealer, runs, _chunks(asked["chunks"], asked.get("numbered", False)), asked["pause"])
                runs.clear()


def _chunks(count: int, numbered: bool) -> list[bytes]:
    if not numbered:
        return [CHUNK] * count
    body = {"type": "text", "data": DELTA, "step": 1, "part": 0}
    return [wire.pack({"seq": seq, **body}) for seq in range(1, count + 1)]


def _stream(dealer: zmq.Socket[Any], runs: list[tuple[bytes, bytes]], chunks: list[bytes], pause: float) -> None:
    """Each run is due at its own time within a pause: real streams do not begin together."""
    send = dealer.send
    parts = max(1, min(len(runs), int(pause / _TICK)))
    start = time.perf_counter()
    for number, chunk in enumerate(chunks):
        for part in range(parts):
            if pause:
                time.sleep(max(0.0, start + (number + part / parts) * pause - time.perf_counter()))
            for client, id in runs[part::parts]:
                send(client, zmq.SNDMORE)
                send(b"chunk", zmq.SNDMORE)
                send(id, zmq.SNDMORE)
                send(chunk)
    for client, id in runs:
        _end(dealer, client, id, len(chunks) + 1, "")


def _end(dealer: zmq.Socket[Any], client: bytes, id: bytes, seq: int, result: str) -> None:
    body = wire.pack({"seq": seq, "result": result, "usage": {}, "messages": []})
    dealer.send_multipart([client, b"complete", id, body])


if __name__ == "__main__":
    lifeline.hold()
    serve(*sys.argv[1:])
