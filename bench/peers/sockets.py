"""Clients of WebSocket, HTTP and NATS on plain sockets: client libraries in Python are slower than the servers."""

from __future__ import annotations

import json
import math
import secrets
import select
import socket
from abc import abstractmethod
from collections.abc import Iterator

from axon_zmq.protocol.msgpack import pack
from bench.clients import Crowd, Request
from bench.peers.service import NAME
from bench.processes import WAIT_TIMEOUT_S

_READ = 1 << 18
"""Maximum number of bytes read from a socket at a time."""


class Line:
    """One connection, and its received bytes that are not yet a whole message."""

    def __init__(self, connected: socket.socket, number: int) -> None:
        self.socket = connected
        self.number = number
        self.token = secrets.token_hex(8)
        self.buffer = bytearray()

    def read(self) -> None:
        """Append the available bytes to the buffer, or wait for some."""
        data = self.socket.recv(_READ)
        if not data:
            raise RuntimeError("the server closed a connection")
        self.buffer += data

    def read_until(self, mark: bytes) -> None:
        """Read and drop everything up to a mark and the mark itself."""
        while mark not in self.buffer:
            self.read()
        del self.buffer[: self.buffer.index(mark) + len(mark)]


def _connect(port: int) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port), WAIT_TIMEOUT_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


class Sockets(Crowd):
    """Clients on plain sockets; a stream ends with an empty message.

    Args:
        port: Port of the server.
        size: Number of clients.
        connections: Number of sockets that they share, if the protocol allows it.
    """

    def __init__(self, port: int, size: int, connections: int | None = None) -> None:
        super().__init__(size)
        self._unary = False
        self._epoll = select.epoll()
        self._lines = [Line(_connect(port), number) for number in range(connections or size)]
        self._by_file = {line.socket.fileno(): line for line in self._lines}
        for file, line in self._by_file.items():
            self._greet(line)
            self._epoll.register(file, select.EPOLLIN)

    def _send(self, client: int, request: Request) -> None:
        self._unary = request.unary
        self._line(client).socket.sendall(self._packed(client, request))

    def _line(self, client: int) -> Line:
        return self._lines[client % len(self._lines)]

    def _receive(self, seconds: float) -> Iterator[tuple[int, str, bool]]:
        for file, _ in self._epoll.poll(math.ceil(seconds * 1000) / 1000):
            line = self._by_file[file]
            line.read()
            for client, piece in self.taken(line):
                yield client, piece, self._unary or not piece

    def close(self) -> None:
        """Close all connections."""
        self._epoll.close()
        for line in self._lines:
            line.socket.close()

    @abstractmethod
    def _greet(self, line: Line) -> None:
        """Perform the handshake of the protocol."""

    @abstractmethod
    def _packed(self, client: int, request: Request) -> bytes:
        """Return a request as bytes."""

    @abstractmethod
    def taken(self, line: Line) -> Iterator[tuple[int, str]]:
        """Remove the whole messages from the buffer of a line; yields client and text of each."""


class WebSockets(Sockets):
    """Clients with one WebSocket each."""

    def _greet(self, line: Line) -> None:
        line.socket.sendall(
            b"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: YmVuY2ggYmVuY2ggYmVuYw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        line.read_until(b"\r\n\r\n")

    def _packed(self, client: int, request: Request) -> bytes:  # noqa: ARG002  identified by its connection
        payload = json.dumps({"kind": request.kind, "body": request.body}).encode()
        size = len(payload)
        head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
        # Clients must mask their frames (RFC 6455); a mask of zeros leaves the payload as it is.
        return head + bytes(4) + payload

    def taken(self, line: Line) -> Iterator[tuple[int, str]]:
        buffer, at = line.buffer, 0
        while len(buffer) >= at + 2:
            size, head = buffer[at + 1], 2
            if size == 126:
                size, head = int.from_bytes(buffer[at + 2 : at + 4], "big"), 4
            if len(buffer) < at + head + size:
                break
            yield line.number, buffer[at + head : at + head + size].decode()
            at += head + size
        del buffer[:at]


class Posts(Sockets):
    """Clients that send each request as a POST on their own persistent connection."""

    def _greet(self, line: Line) -> None:
        pass

    def _packed(self, client: int, request: Request) -> bytes:  # noqa: ARG002  identified by its connection
        payload = json.dumps(request.body).encode()
        head = f"POST /{request.kind} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload

    def taken(self, line: Line) -> Iterator[tuple[int, str]]:
        head, end, body = line.buffer.partition(b"\r\n\r\n")
        if end and len(body) == int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            line.buffer.clear()
            yield line.number, json.loads(body)["text"]


class Nats(Sockets):
    """Clients of a nats-server, each with its own inbox; clients may share a connection."""

    def _greet(self, line: Line) -> None:
        line.read_until(b"\r\n")  # INFO
        line.socket.sendall(f'CONNECT {{"verbose":false}}\r\nSUB _INBOX.{line.token}.* 1\r\nPING\r\n'.encode())
        line.read_until(b"PONG\r\n")

    def _packed(self, client: int, request: Request) -> bytes:
        payload = pack(request.body)
        inbox = f"_INBOX.{self._line(client).token}.{client}"
        return f"PUB {NAME}.{request.kind} {inbox} {len(payload)}\r\n".encode() + payload + b"\r\n"

    def taken(self, line: Line) -> Iterator[tuple[int, str]]:
        buffer, at = line.buffer, 0
        while (end := buffer.find(b"\r\n", at)) >= 0:
            start = end + 2
            if buffer.startswith(b"MSG", at):
                _msg, subject, _sid, size = buffer[at:end].split()
                stop = start + int(size)
                if len(buffer) < stop + 2:
                    break
                yield int(subject[subject.rindex(b".") + 1 :]), buffer[start:stop].decode()
                start = stop + 2
            elif buffer.startswith(b"PING", at):
                line.socket.sendall(b"PONG\r\n")
            at = start
        del buffer[:at]
