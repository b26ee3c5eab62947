"""One client connection: a raw DEALER socket with a `ClientCore`, which can be dropped and resumed."""

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
"""How long a closed socket may still send queued messages, such as the last `cancel`s."""
STALLED_HWM = 10
"""Receive high-water mark of a stalled reader's socket, so that further messages wait in the daemon."""
FILES_PER_CONNECTION = 4
"""File descriptors of one connection, including its socket monitor."""
OTHER_FILES = 64
"""File descriptors for the rest of the process. libzmq aborts a process that runs out of them."""


def check_open_files(connections: int) -> None:
    """Raise the soft limit of open files to the hard limit, and check that it suffices for this number of connections.

    Raises:
        ConfigurationError: The hard limit is too low.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections * FILES_PER_CONNECTION + OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"{connections} connections need {needed} file descriptors, but the limit is {hard}: "
            "raise ulimit -n, or use fewer --clients"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Connection:
    """A DEALER socket with its own routing id.

    Args:
        context: ZeroMQ context of all connections.
        endpoint: Frontend of the daemon.
        stalls: Whether the socket is not read while a slow reader has messages left to read.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, stalls: bool) -> None:
        self.core = ClientCore()
        self.waiting = 0
        """Number of received messages that slow readers have not read yet."""
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
        self._dealer.setsockopt(zmq.SNDHWM, 0)  # unlimited: a send never blocks while the daemon is down
        self._dealer.setsockopt(zmq.LINGER, LINGER_MS)
        self._monitor = self._dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._is_new = True
        self._dealer.connect(self._endpoint)
        self.fd = int(self._dealer.getsockopt(zmq.FD))
        """Edge-triggered descriptor for `select`: it becomes readable again only after `has_message` was called."""

    def drop(self) -> None:
        """Drop the connection and all messages in flight, connect again, and resume the open runs."""
        self._close(0)
        self._connect()
        self._resume(time.monotonic())

    def reconnected_since(self, then: float) -> bool:
        """Return whether the socket has reconnected since a time, for any reason, such as a restart of the daemon."""
        self.check_connection()
        return self._reconnected_at >= then

    def check_connection(self) -> None:
        """Read the socket monitor; if the socket has connected again, resume the open runs."""
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
        """Return whether the socket is being read; a stalled reader leaves it unread."""
        return not (self._stalls and self.waiting)

    def is_behind(self) -> bool:
        """Return whether a stalled reader had unread messages in this check or in the previous one.

        The previous one counts too: after the last message was read, the next one may still be in flight.
        """
        previous, self._was_unread = self._was_unread, self._stalls and (self.waiting > 0 or self.has_message())
        return previous or self._was_unread

    def has_message(self) -> bool:
        """Return whether a message can be received."""
        return bool(int(self._dealer.getsockopt(EVENTS)) & POLLIN)

    def receive(self) -> list[bytes] | None:
        """Return the next message; None if there is none."""
        try:
            return recv_message(self._recv)
        except zmq.Again:
            return None

    def flush(self) -> None:
        """Send all outgoing messages of the core."""
        while self.core.outgoing:
            self._dealer.send_multipart(self.core.outgoing.popleft())

    def close(self) -> None:
        """Close the socket after queued messages were sent."""
        self._close(LINGER_MS)

    def _close(self, linger: int) -> None:
        self._dealer.disable_monitor()
        self._monitor.close(0)
        self._dealer.close(linger)
