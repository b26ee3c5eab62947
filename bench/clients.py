"""Raw DEALERs, so that what is measured is the daemon and not a client library."""

from __future__ import annotations

import secrets
import time
from itertools import count
from typing import Any

import zmq

from axon_zmq import wire
from bench.processes import PATIENCE

_BATCH = 256


class Crowd:
    """Some clients, each with one request at a time.

    Args:
        endpoint: The daemon's, or the naive loop's.
        size: How many clients.
    """

    def __init__(self, endpoint: str, size: int) -> None:
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._ids = count(1)
        self._dealers = [self._connect(endpoint) for _ in range(size)]

    def _connect(self, endpoint: str) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, f"bench-{secrets.token_hex(8)}".encode())
        dealer.setsockopt(zmq.RCVHWM, 0)  # it reads without end, as chumak does: the server never waits for it
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(endpoint)
        self._poller.register(dealer, zmq.POLLIN)
        return dealer

    def __len__(self) -> int:
        return len(self._dealers)

    def exchange(self, kind: bytes, body: dict[str, Any], each: int) -> int:
        """Each client makes `each` requests, one after the other; how many chunks came."""
        packed = wire.pack(body)
        left = dict.fromkeys(self._dealers, each)
        chunks = 0
        for dealer in self._dealers:
            self._send(dealer, kind, packed)
        while left:
            ready = self._poller.poll(int(PATIENCE * 1000))
            if not ready:
                raise RuntimeError(f"{len(left)} clients waited {PATIENCE:g} s for an answer")
            for dealer, _ in ready:
                came, ended = _take(dealer)
                chunks += came
                if ended:
                    left[dealer] -= 1
                    if left[dealer]:
                        self._send(dealer, kind, packed)
                    else:
                        del left[dealer]
        return chunks

    def latencies(self, kind: bytes, body: dict[str, Any], times: int, pause: float) -> list[float]:
        """The first client makes requests one after the other, with a pause before each.

        Milliseconds of each, from before its body is packed until the answer's is unpacked.
        """
        dealer = self._dealers[0]
        took: list[float] = []
        for _ in range(times):
            time.sleep(pause)
            start = time.perf_counter()
            self._send(dealer, kind, wire.pack(body))
            while True:
                kind_of, id, packed = dealer.recv_multipart()
                answer = wire.unpack(packed, "the body")
                if kind_of == b"complete":
                    break
                if kind_of == b"tool_call":
                    self._add(dealer, id, answer)
                else:
                    assert kind_of == b"alive", answer
            took.append((time.perf_counter() - start) * 1000)
        return took

    @staticmethod
    def _add(dealer: zmq.Socket[bytes], id: bytes, call: dict[str, Any]) -> None:
        """Do what `bench.agents.add` does, as a tool of the client's."""
        result = call["args"]["a"] + call["args"]["b"]
        dealer.send_multipart(
            [b"tool_result", id, wire.pack({"call_id": call["call_id"]}), wire.pack({"result": result})]
        )

    def _send(self, dealer: zmq.Socket[bytes], kind: bytes, packed: bytes) -> None:
        dealer.send_multipart([kind, b"%d" % next(self._ids), b"", packed])

    def close(self) -> None:
        """Close all."""
        self._context.destroy(linger=0)


def _take(dealer: zmq.Socket[bytes]) -> tuple[int, bool]:
    """Read up to a batch: how many chunks, and whether the request ended."""
    chunks = 0
    for _ in range(_BATCH):
        try:
            kind, _id, body = dealer.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            break
        if kind == b"chunk":
            chunks += 1
        elif kind == b"complete":
            return chunks, True
        elif kind == b"error":
            raise RuntimeError(f"the daemon answered {wire.unpack(body, 'the error')}")
    return chunks, False
