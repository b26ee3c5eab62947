"""A broker's server that a test or a measurement advances step by step, in its own process."""

from __future__ import annotations

import zmq

from axon_zmq.broker.hashing import BodyHasher
from axon_zmq.broker.server import RECEIVE_BATCH, Server


class SteppedServer(Server):
    """A server without a loop: callgrind counts the relay path alone, and a test decides what happens first."""

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        """The context of the sockets: peers in it can use `inproc:` endpoints."""
        return self._context

    @property
    def hasher(self) -> BodyHasher:
        """Messages with large bodies that wait for their digest."""
        return self._hasher

    def read_workers(self) -> bool:
        """Handle at most one batch of messages of workers; whether the socket was read empty."""
        return self._drain_backend(RECEIVE_BATCH)

    def read_clients(self) -> None:
        """Handle at most one batch of messages of clients."""
        self._drain_frontend()

    def stop(self) -> None:
        """Ask it to stop, as SIGTERM does."""
        self._stop_requested = True

    def turn(self) -> None:
        """One turn of the loop, in which clients' messages are read."""
        self._turn({self._front})

    def close(self) -> None:
        """Close the sockets and the journal."""
        self._close()
