"""A worker without agents: it speaks the backend protocol and sends ready-made chunks, so that only the relay works.

A request's body is `{streams, chunks, pause}`: when so many requests have come, their chunks go out in
turn, so many each, with so many seconds between two of a stream, or between `burst` of them and the next. All
are the same, unless it says `numbered`, for clients that look at `seq`. `{echo}` is answered at once.

One process may be several workers of a mode, each with a DEALER of its own.
"""

from __future__ import annotations

import argparse
import time

import zmq

from axon_zmq.process import lifeline
from axon_zmq.protocol.backend import VERSION
from axon_zmq.protocol.kinds import CONTROL
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.worker.core.worker import PROGRESS_INTERVAL_S

DELTA = "0123 "
CHUNK = pack({"seq": 300, "type": "text", "data": DELTA, "step": 1, "part": 0})
"""What a delta of a model looks like on the wire."""
SLOTS = 16_384
"""Requests that each worker takes at a time: all that are asked here."""
TICK = 0.001
"""Seconds between two looks at what is due, as an asyncio loop with many timers takes them."""


Run = tuple[zmq.Socket[bytes], bytes, bytes]
"""A request under way: the DEALER that it came to, its client and its id."""


def serve(backend: str, mode: str, workers: int) -> None:
    """Answer requests for ever."""
    context, poller = zmq.Context(), zmq.Poller()
    dealers = [_registered(context, backend, mode, number) for number in range(workers)]
    for dealer in dealers:
        poller.register(dealer, zmq.POLLIN)
    runs: list[Run] = []
    told = time.monotonic()
    while True:
        if time.monotonic() - told >= PROGRESS_INTERVAL_S:
            for dealer in dealers:
                dealer.send_multipart([CONTROL, b"progress", pack({"open": 0})])
            told = time.monotonic()
        for dealer, _ in poller.poll(int(PROGRESS_INTERVAL_S * 1000)):
            client, kind, *rest = dealer.recv_multipart()
            if kind != mode.encode():
                continue
            id, _header, body, *_lease = rest
            asked = unpack(body, "the body")
            if "echo" in asked:
                _end((dealer, client, id), 1, asked["echo"])
                continue
            runs.append((dealer, client, id))
            if len(runs) == asked["streams"]:
                chunks = _chunks(asked["chunks"], asked.get("numbered", False))
                _stream(runs, _bursts(chunks, asked.get("burst", 1)), asked["pause"])
                runs.clear()


def _registered(context: zmq.Context[zmq.Socket[bytes]], backend: str, mode: str, number: int) -> zmq.Socket[bytes]:
    dealer = context.socket(zmq.DEALER)
    dealer.connect(backend)
    ready = {"v": VERSION, "mode": mode, "slots": SLOTS, "name": f"source-{number}", "holds": []}
    dealer.send_multipart([CONTROL, b"ready", pack(ready)])
    return dealer


def _chunks(count: int, numbered: bool) -> list[bytes]:
    if not numbered:
        return [CHUNK] * count
    body = {"type": "text", "data": DELTA, "step": 1, "part": 0}
    return [pack({"seq": seq, **body}) for seq in range(1, count + 1)]


def _bursts(chunks: list[bytes], size: int) -> list[list[bytes]]:
    return [chunks[at : at + size] for at in range(0, len(chunks), size)]


def _stream(runs: list[Run], bursts: list[list[bytes]], pause: float) -> None:
    """Each run is due at its own time within a pause: real streams do not begin together."""
    targets = [(dealer.send, client, id) for dealer, client, id in runs]
    parts = max(1, min(len(runs), int(pause / TICK)))
    start = time.perf_counter()
    for number, chunks in enumerate(bursts):
        for part in range(parts):
            if pause:
                time.sleep(max(0.0, start + (number + part / parts) * pause - time.perf_counter()))
            for send, client, id in targets[part::parts]:
                for chunk in chunks:
                    send(client, zmq.SNDMORE)
                    send(b"chunk", zmq.SNDMORE)
                    send(id, zmq.SNDMORE)
                    send(chunk)
    for run in runs:
        _end(run, sum(map(len, bursts)) + 1, "")


def _end(run: Run, seq: int, result: str) -> None:
    dealer, client, id = run
    body = pack({"seq": seq, "result": result, "usage": {}, "messages": []})
    dealer.send_multipart([client, b"complete", id, body])


if __name__ == "__main__":
    lifeline.die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m bench.source", description="A worker without agents.")
    parser.add_argument("backend")
    parser.add_argument("--mode", default="run_stream")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    serve(options.backend, options.mode, options.workers)
