"""A client of ZeroMQ's protocol (ZMTP 3.0) on a plain TCP socket, which can send what no library sends."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, Self

from attack.wire import GREETING, MORE, header, ready
from axon_zmq.protocol.msgpack import unpack


def prop(name: bytes, value: bytes = b"") -> bytes:
    """A property of a handshake."""
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


def frame(data: bytes, *, more: bool = False) -> bytes:
    """A frame as it is on the wire."""
    return header(len(data), MORE if more else 0) + data


def message(*frames: bytes) -> bytes:
    """A whole message as it is on the wire."""
    return b"".join(frame(each, more=True) for each in frames[:-1]) + frame(frames[-1])


class RawClient:
    """One TCP connection to an endpoint.

    Args:
        endpoint: The daemon's endpoint.
        routing_id: The routing id; empty: ZeroMQ assigns one. None: the handshake is not completed.
    """

    def __init__(self, endpoint: str, routing_id: bytes | None = b"") -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.settimeout(30)
        self.sent = 0
        try:
            self.socket.sendall(GREETING)
            self._read(64)
            if routing_id is not None:
                self.socket.sendall(ready(routing_id))
                self.receive()  # the daemon's READY
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                raise ConnectionResetError("closed by the daemon")
            data += chunk
        return data

    def send(self, data: bytes) -> bool:
        """Send bytes; whether the connection is still open."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        self.sent += len(data)
        return True

    def receive(self) -> bytes:
        """The content of the next frame."""
        flags, size = self._read(2)
        if flags & 2:
            size = int.from_bytes(bytes([size]) + self._read(7), "big")
        return self._read(size)

    def receive_message(self) -> list[bytes]:
        """The next message: kind, id and body."""
        return [self.receive() for _ in range(3)]

    def ping(self) -> bool:
        """Send a `ping`; whether a `pong` arrives."""
        return bool(self.pong())

    def pong(self) -> dict[str, Any]:
        """Send a `ping`; the body of its `pong`, or an empty one if the connection is closed."""
        if not self.send(message(b"ping", b"1")):
            return {}
        try:
            kind, _, body = self.receive_message()
        except OSError:
            return {}
        assert kind == b"pong"
        return unpack(body, "the pong")

    def is_closed(self, seconds: float = 30.0) -> bool:
        """Whether the daemon closes the connection within some seconds."""
        self.socket.settimeout(0.05)
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            try:
                if not self.socket.recv(65536):
                    return True
            except TimeoutError:
                continue
            except OSError:
                return True
        return False

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()
