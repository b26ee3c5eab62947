"""Large bodies, digested a slice in each turn of the loop: nobody waits while one is read through.

What tells a repeated request from another one is a digest of its body, and for 10 MB that takes 15 ms. What the same
client sends meanwhile waits behind it, so each client's messages keep their order; the clients take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from axon_zmq import limits, wire
from axon_zmq.broker.events import FromClient
from axon_zmq.broker.queues import FairQueue

SLICE: Final = 256 * limits.KIB
"""Bytes that are digested in a turn, half a millisecond; a body that is no larger is digested at once."""
MOST_BYTES: Final = 32 * limits.MIB
"""Of messages that wait here until no more is received; the largest goes on top."""
_OVERHEAD: Final = limits.KIB
"""Bytes that a message weighs beside its frames: small ones are counted, too."""
_KINDS: Final = frozenset(kind.encode() for kind in (*wire.RUN_KINDS, "describe"))
"""What opens a request."""


class _Kept(NamedTuple):
    message: FromClient
    size: int
    is_large: bool

    @property
    def client(self) -> bytes:
        return self.message.client


class Bodies:
    """Messages with large bodies, and those of the same clients behind them.

    Args:
        max_body: Bytes of the largest that is not refused.
    """

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._queue: FairQueue[_Kept] = FairQueue()
        self._first: _Kept | None = None
        """The one that is being digested."""
        self._digest = wire.digesting()
        self._read = 0
        """Bytes of it that are in the digest."""

    def __repr__(self) -> str:
        return f"<Bodies {self._queue!r}, {self._first and self._first.size} bytes under way>"

    @property
    def waiting(self) -> bool:
        """Whether there is something to do."""
        return self._first is not None or self._queue.count > 0

    @property
    def full(self) -> bool:
        """Whether so much waits that no more should be received."""
        return self._queue.bytes + (self._first.size if self._first else 0) >= MOST_BYTES

    def keep(self, message: FromClient, arrived: float) -> bool:
        """Take a message that is to wait; False where it may be judged at once.

        Args:
            message: It.
            arrived: Seconds of the monotonic clock: its `timeout_ms` counts from here.
        """
        is_large = self._is_large(message)
        if not is_large and not self._waits(message.client):
            return False
        self._queue.push(_Kept(message._replace(arrived=arrived), size(message), is_large))
        return True

    def step(self, most: int) -> Iterator[FromClient]:
        """Digest a slice; the messages that may be judged now, `most` of them, with their digests."""
        for _ in range(most):
            if self._first is None:
                if not self._queue.count:
                    return
                self._first = self._queue.pop()
            kept = self._first
            if not kept.is_large:
                self._first = None
                yield kept.message
                continue
            body = kept.message.frames[-1]
            self._digest.update(memoryview(body)[self._read : self._read + SLICE])
            self._read += SLICE
            if self._read >= len(body):
                digest = self._digest.digest()
                self._digest, self._read, self._first = wire.digesting(), 0, None
                yield kept.message._replace(digest=digest)
            return  # the next slice is for the next turn

    def _waits(self, client: bytes) -> bool:
        return (self._first is not None and self._first.client == client) or self._queue.of_client(client) > 0

    def _is_large(self, message: FromClient) -> bool:
        is_large = SLICE < len(message.frames[-1]) <= self._max_body
        return is_large and wire.open_envelope(message.frames).frames[0] in _KINDS


def size(message: FromClient) -> int:
    """Bytes that a message takes while it waits."""
    return sum(map(len, message.frames)) + _OVERHEAD
