"""Dead-peer detection: finds client connections whose other host no longer answers.

A host that loses power or a cable that is cut sends no FIN or RST. While no data is in flight, TCP keepalive detects
this. While data is in flight, Linux sends no keepalives and retransmits for up to 15 minutes. TCP_USER_TIMEOUT
(ZMQ_TCP_MAXRT) would shorten that, but it also closes the connection of a client that is alive and does not read.

The kernel distinguishes the two cases: it counts packets without an acknowledgement, and a host that is alive
acknowledges packets even if its receive buffer is full. This module reads these counters on Linux. On other systems
only TCP's own timeouts apply.
"""

from __future__ import annotations

import sys
from typing import Final

from axon_zmq.broker import tcp
from axon_zmq.broker.tcp import TcpInfo
from axon_zmq.protocol import limits

CHECK_INTERVAL_S: Final = 1.0
"""Seconds between two checks of all connections. A check takes about 2 µs per connection."""
UNANSWERED_PACKETS: Final = 3
"""Minimum number of consecutive unacknowledged packets, so that a few lost packets do not close a connection. TCP
doubles the interval between two packets, up to 2 minutes: if a client had not read for a long time before its cable was
cut, it takes minutes until three packets are unacknowledged."""


class DeadPeerDetector:
    """Checks the frontend's TCP connections, given by their file descriptors.

    ZeroMQ's socket monitor reports the descriptors. ZeroMQ owns them and may close one at any time, after which the
    kernel may reuse its number. That is harmless: every other TCP connection of this process is also one of a client,
    and a descriptor that is not a TCP connection is dropped at the next check.

    Args:
        dead_host: Seconds without an acknowledgement after which a connection is closed.
    """

    def __init__(self, dead_host: float = limits.DEAD_HOST) -> None:
        self._dead_host = dead_host
        self._unanswered_since: dict[int, float | None] = {}
        """For each connection, the time since which packets have been unacknowledged; None: all are acknowledged."""
        self.check_at = 0.0 if sys.platform == "linux" else float("inf")
        """When the next check is due, in seconds of the monotonic clock."""

    def __repr__(self) -> str:
        suspects = sum(since is not None for since in self._unanswered_since.values())
        return f"<DeadPeerDetector {len(self._unanswered_since)} connections, {suspects} without an answer>"

    def opened(self, fd: int) -> None:
        """Add a connection that was accepted."""
        self._unanswered_since[fd] = None

    def closed(self, fd: int) -> None:
        """Remove a connection that has ended."""
        self._unanswered_since.pop(fd, None)

    def check(self, now: float) -> int:
        """Shut down all dead connections and return their number. ZeroMQ notices the end of each and closes it."""
        self.check_at = now + CHECK_INTERVAL_S
        dead = [fd for fd in list(self._unanswered_since) if self._is_dead(fd, now)]
        for fd in dead:
            self.closed(fd)
            tcp.abort(fd)
        return len(dead)

    def _is_dead(self, fd: int, now: float) -> bool:
        try:
            info = tcp.info(fd)
        except OSError:  # closed by ZeroMQ, and perhaps reused for something else
            self.closed(fd)
            return False
        since, dead = evaluate(info, self._unanswered_since[fd], now, self._dead_host)
        self._unanswered_since[fd] = since
        return dead


def evaluate(info: TcpInfo, since: float | None, now: float, dead_host: float) -> tuple[float | None, bool]:
    """Decide from the kernel's counters whether a connection is dead.

    Args:
        info: The connection's counters.
        since: Time since which packets were unacknowledged, as of the previous check; None if all were acknowledged.
        now: Seconds of a monotonic clock.
        dead_host: Seconds without an acknowledgement after which a connection is dead.

    Returns:
        The time since which packets have been unacknowledged (None: all are acknowledged), and whether the connection
        is dead.
    """
    # TCP sends zero-window probes while the client's receive buffer is full.
    unanswered = max(info.resent, info.probes)
    if not unanswered:
        return None, False
    # The time restarts at the first unacknowledged packet and after each acknowledgement. The age of the last
    # acknowledgement alone would not suffice: it is also high on a connection that was idle.
    if since is None or now - info.answered_ms / 1000 > since:
        return now, False
    return since, unanswered >= UNANSWERED_PACKETS and now - since >= dead_host
