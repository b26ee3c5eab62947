"""The clients' TCP connections: which of them lead nowhere, because a host died or a cable was cut.

Nothing tells of that, no FIN. While nothing is under way TCP's keepalive finds it; while something is, there is no
keepalive, and TCP sends it again for up to 15 minutes. TCP_USER_TIMEOUT (ZMQ_TCP_MAXRT) is no way out: it also cuts
those who are there and only take nothing in. But the kernel counts what was sent in vain, and whoever is there answers
even where he has no room. So it is asked (Linux; elsewhere TCP's own times hold).
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final

from axon_zmq.protocol import limits

CHECK_INTERVAL_S: Final = 1.0
"""Seconds between two looks. One takes about 2 µs a connection."""
UNANSWERED_PACKETS: Final = 3
"""Packets in a row without an answer that are no accident. TCP doubles the time between two, up to 2 minutes: one who
had long taken nothing in when the cable was cut is found after minutes."""
_INFO: Final = struct.Struct("=8B13I")
"""Linux' `tcp_info`, to `tcpi_last_ack_recv`."""
_ABORT: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: what is not sent yet is dropped."""


class DeadPeerDetector:
    """The file descriptors of the frontend's connections, as ZeroMQ's monitor tells of them.

    ZeroMQ owns them and may close one at any time. No harm is done then: another TCP connection of this process is a
    client's as well, and what is no TCP connection is forgotten.

    Args:
        dead_host: Seconds without an answer after which a connection is cut.
    """

    def __init__(self, dead_host: float = limits.DEAD_HOST) -> None:
        self._dead_host = dead_host
        self._unanswered_since: dict[int, float | None] = {}
        self.check_at = 0.0 if sys.platform == "linux" else float("inf")

    def __repr__(self) -> str:
        suspects = sum(since is not None for since in self._unanswered_since.values())
        return f"<DeadPeerDetector {len(self._unanswered_since)} connections, {suspects} without an answer>"

    def opened(self, fd: int) -> None:
        """A connection was accepted."""
        self._unanswered_since[fd] = None

    def closed(self, fd: int) -> None:
        """A connection has ended."""
        self._unanswered_since.pop(fd, None)

    def check(self, now: float) -> int:
        """Cut the connections that lead nowhere, so that ZeroMQ notices; how many."""
        self.check_at = now + CHECK_INTERVAL_S
        dead = [fd for fd in list(self._unanswered_since) if self._is_dead(fd, now)]
        for fd in dead:
            self.closed(fd)
            _cut(fd)
        return len(dead)

    def _is_dead(self, fd: int, now: float) -> bool:
        try:
            info = _info(fd)
        except OSError:
            self.closed(fd)
            return False
        since, dead = evaluate(info, self._unanswered_since[fd], now, self._dead_host)
        self._unanswered_since[fd] = since
        return dead


def evaluate(info: bytes, since: float | None, now: float, dead_host: float) -> tuple[float | None, bool]:
    """What the kernel's word means.

    Args:
        info: `tcp_info`.
        since: Since when nothing was answered, by the look before; None where all was well.
        now: Seconds of a monotonic clock.
        dead_host: Seconds without an answer that are too many.

    Returns:
        Since when nothing was answered now, and whether that is too long.
    """
    _, _, resent, probes, *_, answered_ms = _INFO.unpack(info)
    unanswered = max(resent, probes)
    if not unanswered:
        return None, False
    if since is None or now - answered_ms / 1000 > since:
        return now, False
    return since, unanswered >= UNANSWERED_PACKETS and now - since >= dead_host


def _info(fd: int) -> bytes:
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
    try:
        return borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    finally:
        borrowed.detach()


def _cut(fd: int) -> None:
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
    try:
        borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself
    finally:
        borrowed.detach()
