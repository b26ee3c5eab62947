"""Raw DEALERs, so that what is measured is the daemon and not a client library."""

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
"""What the daemon calls a request, where the name is another; those without an agent go to `bench.source`."""


class Dealers(Crowd):
    """Clients of the daemon, or of what relays the same frames.

    Args:
        endpoint: The daemon's, the naive loop's or the C proxy's.
        size: How many clients.
        connections: How many sockets they share.
        kinds: What the server calls the requests.
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
        dealer.setsockopt(zmq.RCVHWM, 0)  # it reads without end, as chumak does: the server never waits for it
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

    def _heard(self, seconds: float) -> Iterator[tuple[int, str, bool]]:
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
                    raise RuntimeError(f"the daemon answered {kind.decode()}: {body}")

    @staticmethod
    def _add(dealer: zmq.Socket[bytes], id: bytes, call: dict[str, Any]) -> None:
        """Do what `bench.agents.add` does, as a tool of the client's."""
        result = call["args"]["a"] + call["args"]["b"]
        dealer.send_multipart([b"tool_result", id, pack({"call_id": call["call_id"]}), pack({"result": result})])

    def close(self) -> None:
        """Close all."""
        self._context.destroy(linger=0)
