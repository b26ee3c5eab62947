"""Large bodies, digested a slice in each turn of the loop: nobody waits while one is read through.

What tells a repeated request from another one is a digest of its body, and for 10 MB that takes 15 ms. What the same
client sends meanwhile waits behind it, so each client's messages keep their order. The clients take turns, a large body
each with all that came behind it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from axon_zmq.broker.core.events import FromClient
from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import new_digest, open_envelope
from axon_zmq.protocol.kinds import REQUEST_KINDS

SLICE_BYTES: Final = 256 * limits.KIB
"""Bytes that are digested in a turn, half a millisecond; a body that is no larger is digested at once."""
MAX_WAITING_BYTES: Final = 32 * limits.MIB
"""Of messages that wait here until no more is received; the largest goes on top."""
_OVERHEAD: Final = limits.KIB
"""Bytes that a message weighs beside its frames: small ones are counted, too."""


class _Deferred(NamedTuple):
    message: FromClient
    size: int
    is_large: bool


class BodyHasher:
    """Messages with large bodies, and those of the same clients behind them.

    Args:
        max_body: Bytes of the largest that is not refused.
    """

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._clients: OrderedDict[bytes, deque[_Deferred]] = OrderedDict()
        """What waits of each, a large one first; but the client whose turn it is may be past its large one."""
        self._bytes = 0
        self._digest = new_digest()
        self._read = 0
        """Bytes of the very first one that are in the digest."""

    def __repr__(self) -> str:
        return f"<BodyHasher of {len(self._clients)} clients, {self._bytes} bytes>"

    @property
    def waiting(self) -> bool:
        """Whether there is something to do."""
        return bool(self._clients)

    @property
    def full(self) -> bool:
        """Whether so much waits that no more should be received."""
        return self._bytes >= MAX_WAITING_BYTES

    def defer(self, message: FromClient) -> bool:
        """Take a message that is to wait; False where it may be judged at once."""
        is_large = self._is_large(message)
        if not is_large and message.client not in self._clients:
            return False
        deferred = _Deferred(message, size(message), is_large)
        self._clients.setdefault(message.client, deque()).append(deferred)
        self._bytes += deferred.size
        return True

    def step(self, most: int) -> Iterator[FromClient]:
        """Digest a slice; the messages that may be judged now, `most` of them, with their digests."""
        may_read = True
        for _ in range(most):
            if not self._clients:
                return
            message, _, is_large = next(iter(self._clients.values()))[0]
            if is_large:
                if not may_read:
                    return  # the next slice is for the next turn
                may_read = False
                if not self._read_slice(message.frames[-1]):
                    return
                message = message._replace(digest=self._digest.digest())
                self._digest, self._read = new_digest(), 0
            self._forget_first()
            yield message
        if self._clients:  # whoever sends more than that at a time does not keep its turn
            self._clients.move_to_end(next(iter(self._clients)))

    def _read_slice(self, body: bytes) -> bool:
        """Whether it has been read to its end."""
        self._digest.update(memoryview(body)[self._read : self._read + SLICE_BYTES])
        self._read += SLICE_BYTES
        return self._read >= len(body)

    def _forget_first(self) -> None:
        client, waiting = next(iter(self._clients.items()))
        self._bytes -= waiting.popleft().size
        if not waiting:
            del self._clients[client]
        elif waiting[0].is_large:
            self._clients.move_to_end(client)

    def _is_large(self, message: FromClient) -> bool:
        is_large = SLICE_BYTES < len(message.frames[-1]) <= self._max_body
        return is_large and open_envelope(message.frames).frames[0] in REQUEST_KINDS


def size(message: FromClient) -> int:
    """Bytes that a message takes while it waits."""
    return sum(map(len, message.frames)) + _OVERHEAD
