"""A worker without agents: it sends prepared chunks over the backend protocol, so that only the relay is measured.

The body of a request is `{streams, chunks, pause}`. When `streams` requests have arrived, their chunks are sent in
turn: `chunks` for each stream, with `pause` seconds between two chunks of a stream, or between two bursts of `burst`
chunks. All chunks are the same bytes, unless the request has `numbered`, for clients that check `seq`. A request with
`echo` is answered at once.

One process can act as several workers of a mode, each with its own DEALER.
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
"""Packed body of a chunk with one delta of a model."""
SLOTS = 16_384
"""Concurrency of each worker: higher than the number of requests in any measurement."""
TICK_S = 0.001
"""Seconds between two checks for due chunks; an asyncio loop with many timers wakes up about as often."""


Run = tuple[zmq.Socket[bytes], bytes, bytes]
"""An open request: the DEALER that received it, its client and its id."""


def serve(backend: str, mode: str, workers: int) -> None:
    """Answer requests until the process is killed."""
    context, poller = zmq.Context(), zmq.Poller()
    dealers = [_registered(context, backend, mode, number) for number in range(workers)]
    for dealer in dealers:
        poller.register(dealer, zmq.POLLIN)
    runs: list[Run] = []
    reported_at = time.monotonic()
    while True:
        # Without progress reports the broker would stop sending runs after 4 s, and later kill this process.
        if time.monotonic() - reported_at >= PROGRESS_INTERVAL_S:
            for dealer in dealers:
                dealer.send_multipart([CONTROL, b"progress", pack({"open": 0})])
            reported_at = time.monotonic()
        for dealer, _ in poller.poll(int(PROGRESS_INTERVAL_S * 1000)):
            client, kind, *rest = dealer.recv_multipart()
            if kind != mode.encode():
                continue
            id, _header, body, *_lease = rest
            request = unpack(body, "the body")
            if "echo" in request:
                _end((dealer, client, id), 1, request["echo"])
                continue
            runs.append((dealer, client, id))
            if len(runs) == request["streams"]:
                chunks = _chunks(request["chunks"], request.get("numbered", False))
                _stream(runs, _bursts(chunks, request.get("burst", 1)), request["pause"])
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
    """Send the chunks of all runs, spread over each pause, because real streams do not start at the same time."""
    targets = [(dealer.send, client, id) for dealer, client, id in runs]
    # The runs are split into groups, one for each tick of a pause.
    parts = max(1, min(len(runs), int(pause / TICK_S)))
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
    parser = argparse.ArgumentParser(prog="python -m bench.source", description="Run a worker without agents.")
    parser.add_argument("backend")
    parser.add_argument("--mode", default="run_stream")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    serve(options.backend, options.mode, options.workers)
