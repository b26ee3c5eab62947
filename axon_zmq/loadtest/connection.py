"""One client: a raw DEALER around the client's rules, which can be dropped and taken up again."""

from __future__ import annotations

import resource
import secrets
import time
from contextlib import suppress

import zmq

from axon_zmq.client.core import ClientCore
from axon_zmq.errors import ConfigurationError
from axon_zmq.net.sockets import EVENTS, POLLIN, receiver, recv_message

LINGER_MS = 500
"""How long the last `cancel`s may take to leave."""
STALLED_HWM = 10
"""Receive high-water mark of a reader that leaves its socket unread: further messages wait in the daemon."""
FILES_PER_CONNECTION = 4
"""File descriptors of one connection and its monitor."""
OTHER_FILES = 64
"""What the rest of the process may have open; libzmq ends a process that has too few."""


def allow(connections: int) -> None:
    """See that the process may have so many open.

    Raises:
        ConfigurationError: It may not.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections * FILES_PER_CONNECTION + OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"{connections} connections take {needed} file descriptors, of which this process may have {hard}: "
            "raise ulimit -n, or take fewer --clients"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Connection:
    """A DEALER of an identity of its own.

    Args:
        context: Of all.
        endpoint: The daemon's.
        stalls: Whether its socket is left unread while a reader has something to take.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, stalls: bool) -> None:
        self.core = ClientCore()
        self.waiting = 0
        """Messages that slow readers have not taken yet."""
        self._context = context
        self._endpoint = endpoint
        self._stalls = stalls
        self._was_unread = False
        self._identity = b"loadtest-" + secrets.token_hex(8).encode()
        self._reconnected_at = float("-inf")
        self._connect()
        self.core.connected(time.monotonic())
        self.flush()

    def __repr__(self) -> str:
        return f"<Connection {self._identity.decode()} {self.core!r}>"

    def _connect(self) -> None:
        self._dealer = self._context.socket(zmq.DEALER)
        self._recv = receiver(self._dealer)
        self._dealer.setsockopt(zmq.IDENTITY, self._identity)
        self._dealer.setsockopt(zmq.RCVHWM, STALLED_HWM if self._stalls else 0)
        self._dealer.setsockopt(zmq.SNDHWM, 0)  # never wait for a daemon that is away
        self._dealer.setsockopt(zmq.LINGER, LINGER_MS)
        self._monitor = self._dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._is_new = True
        self._dealer.connect(self._endpoint)
        self.fd = int(self._dealer.getsockopt(zmq.FD))
        """Readable at the latest when `has_news` becomes true; what makes it so again is `has_news` itself."""

    def drop(self) -> None:
        """Drop the connection with all messages in flight, connect again, and resume the open runs."""
        self._close(0)
        self._connect()
        self._resume(time.monotonic())

    def reconnected_since(self, then: float) -> bool:
        """Whether another connection has begun since, the daemon's restarts included."""
        self.look()
        return self._reconnected_at >= then

    def look(self) -> None:
        """See whether the connection is another one; then resume what is open."""
        with suppress(zmq.Again):
            while True:
                self._monitor.recv_multipart(zmq.NOBLOCK)
                if not self._is_new:
                    self._resume(time.monotonic())
                self._is_new = False

    def _resume(self, now: float) -> None:
        self._reconnected_at = now
        self.core.connected(now)
        self.flush()

    def is_read(self) -> bool:
        """Whether somebody reads the socket at all."""
        return not (self._stalls and self.waiting)

    def is_behind(self) -> bool:
        """Whether the stalling reader has left something unread, at this look or the one before.

        The one before too, since what comes next may still be on its way when the last message has been read.
        """
        before, self._was_unread = self._was_unread, self._stalls and (self.waiting > 0 or self.has_news())
        return before or self._was_unread

    def has_news(self) -> bool:
        """Whether a message has come."""
        return bool(int(self._dealer.getsockopt(EVENTS)) & POLLIN)

    def receive(self) -> list[bytes] | None:
        """The next message, if one has come."""
        try:
            return recv_message(self._recv)
        except zmq.Again:
            return None

    def flush(self) -> None:
        """Send what the rules want sent."""
        while self.core.outgoing:
            self._dealer.send_multipart(self.core.outgoing.popleft())

    def close(self) -> None:
        """Close; what was sent last still leaves."""
        self._close(LINGER_MS)

    def _close(self, linger: int) -> None:
        self._dealer.disable_monitor()
        self._monitor.close(0)
        self._dealer.close(linger)
