"""Raw DEALER clients: the benchmark measures the daemon, not a client library."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import zmq

from axon_zmq.protocol.msgpack import pack, unpack
from bench.clients import Crowd, Request

_BATCH = 256
KINDS = {"echo": "run_stream", "paced": "run_stream", "stream": "run_stream"}
"""Kinds of the daemon for the requests that have another name; `echo` and `paced` are answered by `bench.source`."""


class Dealers(Crowd):
    """Clients of the daemon, or of another relay of the same frames.

    Args:
        endpoint: Endpoint of the daemon, the naive loop or the C proxy.
        size: Number of clients.
        connections: Number of sockets that they share; by default one for each client.
        kinds: The server's kinds for the requests that have another name there.
    """

    def __init__(
        self, endpoint: str, size: int, connections: int | None = None, kinds: Mapping[str, str] = KINDS
    ) -> None:
        super().__init__(size)
        self._kinds = kinds
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._ids = count(1)
        self._unary = False
        self._clients: dict[bytes, int] = {}
        self._dealers = [self._connect(endpoint) for _ in range(connections or size)]

    def _connect(self, endpoint: str) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, f"bench-{secrets.token_hex(8)}".encode())
        dealer.setsockopt(zmq.RCVHWM, 0)  # Unbounded, as in chumak: the server never waits for a client.
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(endpoint)
        self._poller.register(dealer, zmq.POLLIN)
        return dealer

    def _send(self, client: int, request: Request) -> None:
        id = b"%d" % next(self._ids)
        self._clients[id] = client
        self._unary = request.unary
        kind = self._kinds.get(request.kind, request.kind).encode()
        self._dealers[client % len(self._dealers)].send_multipart([kind, id, b"", pack(request.body)])

    def _receive(self, seconds: float) -> Iterator[tuple[int, str, bool]]:
        for dealer, _ in self._poller.poll(math.ceil(seconds * 1000)):
            for _ in range(_BATCH):
                try:
                    kind, id, packed = dealer.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                body = unpack(packed, "the body")
                if kind == b"chunk":
                    yield self._clients[id], body["data"], False
                elif kind == b"complete":
                    client = self._clients.pop(id)
                    yield client, body["result"] if self._unary else "", True
                elif kind == b"tool_call":
                    self._add(dealer, id, body)
                elif kind != b"alive":
                    raise RuntimeError(f"unexpected {kind.decode()} from the daemon: {body}")

    @staticmethod
    def _add(dealer: zmq.Socket[bytes], id: bytes, call: dict[str, Any]) -> None:
        """Execute the tool `add` in the client, as `bench.agents.add` does in Python."""
        result = call["args"]["a"] + call["args"]["b"]
        dealer.send_multipart([b"tool_result", id, pack({"call_id": call["call_id"]}), pack({"result": result})])

    def close(self) -> None:
        """Close all connections."""
        self._context.destroy(linger=0)
