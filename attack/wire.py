"""Raw connections: ZMTP 3.0 over a TCP socket, so that a scene can send what no ZeroMQ library sends.

https://rfc.zeromq.org/spec/23 describes greeting, commands and frames.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final, Self
from urllib.parse import urlsplit

GREETING: Final = b"\xff" + b"\x00" * 8 + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\x00") + b"\x00" * 32
CONNECT_TIMEOUT_S: Final = 5.0
SEND_TIMEOUT_S: Final = 20.0
"""Seconds that one send or the reply of a handshake may take; then the scene gives up this connection."""
MORE, LONG, COMMAND = 1, 2, 4
"""Flags of a frame."""


def header(size: int, flags: int = 0) -> bytes:
    """Return the header of a frame; frames of over 255 bytes have the long form."""
    return bytes((flags, size)) if size < 256 else bytes((flags | LONG,)) + size.to_bytes(8, "big")


def ready(routing_id: bytes = b"", **properties: bytes) -> bytes:
    """Return the READY command of a DEALER."""
    body = b"\x05READY"
    for name, value in {"Socket-Type": b"DEALER", "Identity": routing_id, **properties}.items():
        body += bytes((len(name),)) + name.encode() + len(value).to_bytes(4, "big") + value
    return header(len(body), COMMAND) + body


class Raw:
    """One TCP connection to a daemon.

    Args:
        endpoint: `tcp://127.0.0.1:PORT`; any other host is refused.

    Raises:
        ValueError: The endpoint is not on 127.0.0.1.
        OSError: The connection failed.
    """

    def __init__(self, endpoint: str) -> None:
        place = urlsplit(endpoint)
        if place.scheme != "tcp" or place.hostname != "127.0.0.1" or place.port is None:
            raise ValueError(f"refusing to attack {endpoint!r}: expected tcp://127.0.0.1:PORT")
        self.sock = socket.create_connection((place.hostname, place.port), CONNECT_TIMEOUT_S)
        self.sock.settimeout(SEND_TIMEOUT_S)
        self.sent = 0
        """Bytes that were sent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def greet(self, routing_id: bytes = b"", **properties: bytes) -> bool:
        """Complete the handshake; returns whether the daemon answered it."""
        return self.send(GREETING) and len(self.receive(64)) == 64 and self.send(ready(routing_id, **properties))

    def send(self, data: bytes) -> bool:
        """Send bytes; returns False if the daemon has closed the connection or does not read."""
        try:
            self.sock.sendall(data)
        except OSError:
            return False
        self.sent += len(data)
        return True

    def message(self, *frames: bytes) -> bool:
        """Send one whole message."""
        *first, last = frames
        parts = [header(len(frame), MORE) + frame for frame in first]
        return self.send(b"".join([*parts, header(len(last)) + last]))

    def receive(self, size: int) -> bytes:
        """Receive up to `size` bytes: less if the daemon closes the connection or sends no more."""
        data = b""
        with contextlib.suppress(OSError):
            while len(data) < size and (part := self.sock.recv(size - len(data))):
                data += part
        return data

    @property
    def is_open(self) -> bool:
        """Whether the daemon has not closed the connection."""
        self.sock.setblocking(False)
        try:
            while self.sock.recv(65536):
                pass
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self.sock.settimeout(SEND_TIMEOUT_S)

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.sock.close()
