"""The kernel's view of a client's TCP connection, given by a file descriptor that ZeroMQ owns.

ZeroMQ may close a descriptor at any time, after which the kernel may reuse its number. Therefore every function here
either fails with `OSError` or acts on another client's connection in the worst case: all other TCP connections of this
process are also connections of clients.

Internal: may change in any release.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, NamedTuple

_INFO: Final = struct.Struct("=8B24I4Q")
"""Linux's `struct tcp_info`, up to and including `tcpi_bytes_received`."""
_ABORT: Final = struct.pack("ii", 1, 0)
"""Value of SO_LINGER (on, 0 seconds): closing the socket discards unsent data and sends RST."""
_DISCARD: Final = 1024 * 1024
"""Bytes that are discarded at a time when a connection is cut."""
_DISCARDS: Final = 64
"""How often at most."""
_FIONREAD: Final = 0x541B
"""Linux's ioctl for the number of bytes in the receive buffer."""


class TcpInfo(NamedTuple):
    """Counters of one connection."""

    resent: int
    """Consecutive retransmissions of data without an acknowledgement."""
    probes: int
    """Consecutive keepalives and zero-window probes without an acknowledgement."""
    answered_ms: int
    """Milliseconds since the last acknowledgement."""
    received: int
    """Bytes that have arrived since the connection was accepted, including those that nobody has read yet."""


def parse_info(data: bytes) -> TcpInfo:
    """Decode a `tcp_info`.

    Raises:
        OSError: It is shorter than expected, because the kernel is older than Linux 4.1.
    """
    if len(data) < _INFO.size:
        raise OSError(f"tcp_info has {len(data)} bytes, expected at least {_INFO.size}")
    values = _INFO.unpack_from(data)
    return TcpInfo(resent=values[2], probes=values[3], answered_ms=values[20], received=values[-1])


@contextmanager
def _borrowed(fd: int) -> Generator[socket.socket]:
    # The family does not matter for these calls; naming it saves the system calls that would find it out.
    handle = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
    try:
        yield handle
    finally:
        handle.detach()  # otherwise the garbage collector would close ZeroMQ's descriptor


def info(fd: int) -> TcpInfo:
    """Read the counters of a connection.

    Raises:
        OSError: The descriptor is closed or no TCP connection.
    """
    with _borrowed(fd) as handle:
        return parse_info(handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size))


def unread(fd: int) -> int:
    """Return how many bytes wait in the kernel's receive buffer.

    Raises:
        OSError: The descriptor is closed or no socket.
    """
    return int.from_bytes(fcntl.ioctl(fd, _FIONREAD, b"\0\0\0\0"), "little")


def peek(fd: int, size: int) -> bytes:
    """Return up to `size` bytes from the kernel's receive buffer and leave them there.

    Raises:
        OSError: Nothing waits there, or the descriptor is closed.
    """
    with _borrowed(fd) as handle:
        return handle.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def set_low_water(fd: int, size: int) -> None:
    """Let the connection be readable only once `size` bytes wait in the kernel's receive buffer; 1 is the default.

    Raises:
        OSError: The descriptor is closed or no socket.
    """
    with _borrowed(fd) as handle:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


def peer_address(fd: int) -> str:
    """Return the IP address of the other side; empty if the descriptor is closed or no TCP connection."""
    # Without a given family, because it decides about the form of the address.
    try:
        handle = socket.socket(fileno=fd)
    except OSError:
        return ""
    try:
        return str(handle.getpeername()[0]) if handle.family in (socket.AF_INET, socket.AF_INET6) else ""
    except OSError:
        return ""
    finally:
        handle.detach()


def abort(fd: int) -> None:
    """Shut a connection down. ZeroMQ notices its end and closes it; a connection that has already ended is ignored."""
    # shutdown, not close, because ZeroMQ owns the descriptor. Nothing is duplicated, so it also works when the process
    # has no free descriptor.
    with _borrowed(fd) as handle:
        try:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            handle.shutdown(socket.SHUT_RDWR)
            # What has arrived would still be read by ZeroMQ: up to 32 MiB more of an unfinished message.
            for _ in range(_DISCARDS):
                if not handle.recv(_DISCARD, socket.MSG_TRUNC | socket.MSG_DONTWAIT):
                    break
        except OSError:
            pass
