"""Large bodies, digested a slice in each turn of the loop: nobody waits while one is read through.

What tells a repeated request from another one is a digest of its body, and for 10 MB that takes 15 ms. What the same
client sends meanwhile waits behind it, so each client's messages keep their order.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from axon_zmq import limits, wire
from axon_zmq.broker.events import FromClient

LARGE: Final = 256 * limits.KIB
"""Bytes of a body that is not digested at once; half a millisecond."""
SLICE: Final = 256 * limits.KIB
"""Bytes that are digested in a turn."""
MOST_BYTES: Final = 64 * limits.MIB
"""Of bodies that wait here until no more is received; the largest body goes on top."""
_OVERHEAD: Final = limits.KIB
"""Bytes that a message weighs beside its body: small ones are counted, too."""
_KINDS: Final = frozenset(kind.encode() for kind in wire.RUN_KINDS)


class Bodies:
    """Messages with large bodies, and those of the same clients behind them; first come, first digested.

    Args:
        max_body: Bytes of the largest that is not refused.
    """

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self.waiting: deque[FromClient] = deque()
        self._of: Counter[bytes] = Counter()
        """How many wait of each client."""
        self._bytes = 0
        self._digest = wire.digesting()
        self._read = 0
        """Bytes of the first one that are in it."""

    def __repr__(self) -> str:
        return f"<Bodies {len(self.waiting)} messages wait, {self._bytes} bytes>"

    @property
    def full(self) -> bool:
        """Whether so much waits that no more should be received."""
        return self._bytes >= MOST_BYTES

    def keep(self, message: FromClient) -> bool:
        """Take a message that is to wait; False where it may be judged at once."""
        if message.client not in self._of and not self._is_large(message):
            return False
        self.waiting.append(message)
        self._of[message.client] += 1
        self._bytes += _weight(message)
        return True

    def step(self) -> Iterator[FromClient]:
        """Digest a slice; the messages that may be judged now, with their digests."""
        while self.waiting:
            message = self.waiting[0]
            if self._is_large(message):
                body = message.frames[-1]
                self._digest.update(memoryview(body)[self._read : self._read + SLICE])
                self._read += SLICE
                if self._read < len(body):
                    return
                message = message._replace(digest=self._digest.digest())
                self._digest, self._read = wire.digesting(), 0
            self._forget_first()
            yield message
            if message.digest:
                return  # the next slice is for the next turn

    def _forget_first(self) -> None:
        message = self.waiting.popleft()
        self._bytes -= _weight(message)
        self._of[message.client] -= 1
        if not self._of[message.client]:
            del self._of[message.client]

    def _is_large(self, message: FromClient) -> bool:
        is_large = LARGE <= len(message.frames[-1]) <= self._max_body
        return is_large and wire.open_envelope(message.frames).frames[0] in _KINDS


def _weight(message: FromClient) -> int:
    return len(message.frames[-1]) + _OVERHEAD
