"""Hashes large request bodies in slices, one per turn of the broker's loop, so that other clients are not delayed.

The broker needs the digest of each request body to recognize a repeated request. Hashing 10 MB takes 15 ms, during
which no other message would be relayed. Messages from the same client that arrive in the meantime wait behind the large
one, so the order of each client's messages is kept. Clients take turns: one large body each, together with the messages
that waited behind it.
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
"""Bytes that are hashed per turn, which takes half a millisecond. Smaller bodies are hashed at once, by the core."""
MAX_WAITING_BYTES: Final = 32 * limits.MIB
"""Total size of waiting messages at which the broker stops receiving from clients. The last message received may exceed
it."""
_OVERHEAD: Final = limits.KIB
"""Bytes that a waiting message is estimated to occupy in addition to its frames, so that small messages count, too."""


class _Deferred(NamedTuple):
    message: FromClient
    size: int
    is_large: bool


class BodyHasher:
    """Messages with large bodies, and later messages from the same clients, until their turn.

    Args:
        max_body: Largest accepted body, in bytes. A larger one is refused by the core, so it is never hashed.
    """

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self._clients: OrderedDict[bytes, deque[_Deferred]] = OrderedDict()
        """Waiting messages of each client; the first client has its turn. A client's queue starts with a large message,
        except that the first client's large message may already have been returned."""
        self._bytes = 0
        self._digest = new_digest()
        self._read = 0
        """How many bytes of the first client's first message have been hashed."""

    def __repr__(self) -> str:
        return f"<BodyHasher of {len(self._clients)} clients, {self._bytes} bytes>"

    @property
    def waiting(self) -> bool:
        """Whether any message waits."""
        return bool(self._clients)

    @property
    def size(self) -> int:
        """Estimated bytes of memory that the waiting messages occupy."""
        return self._bytes

    @property
    def full(self) -> bool:
        """Whether so many bytes wait that the broker must not receive more from clients."""
        return self._bytes >= MAX_WAITING_BYTES

    def defer(self, message: FromClient) -> bool:
        """Queue a message if it is large or if its client already has messages waiting here.

        Returns:
            True if the message was queued; False if the caller must process it now.
        """
        is_large = self._is_large(message)
        if not is_large and message.client not in self._clients:
            return False
        deferred = _Deferred(message, size(message), is_large)
        self._clients.setdefault(message.client, deque()).append(deferred)
        self._bytes += deferred.size
        return True

    def step(self, max_messages: int) -> Iterator[FromClient]:
        """Hash at most one slice, and yield the messages that can be processed now.

        Args:
            max_messages: Maximum number of messages to yield.

        Yields:
            Messages in each client's order; the large ones with their digest.
        """
        may_read = True
        for _ in range(max_messages):
            if not self._clients:
                return
            message, _, is_large = next(iter(self._clients.values()))[0]
            if is_large:
                if not may_read:
                    return  # one slice per turn
                may_read = False
                if not self._read_slice(message.frames[-1]):
                    return
                message = message._replace(digest=self._digest.digest())
                self._digest, self._read = new_digest(), 0
            self._forget_first()
            yield message
        # A client that sends more than `max_messages` messages behind its large one must not keep its turn.
        if self._clients:
            self._clients.move_to_end(next(iter(self._clients)))

    def _read_slice(self, body: bytes) -> bool:
        """Hash one more slice; return whether the whole body has been hashed."""
        self._digest.update(memoryview(body)[self._read : self._read + SLICE_BYTES])
        self._read += SLICE_BYTES
        return self._read >= len(body)

    def _forget_first(self) -> None:
        client, waiting = next(iter(self._clients.items()))
        self._bytes -= waiting.popleft().size
        if not waiting:
            del self._clients[client]
        elif waiting[0].is_large:  # one large body per turn: the other clients come first
            self._clients.move_to_end(client)

    def _is_large(self, message: FromClient) -> bool:
        is_large = SLICE_BYTES < len(message.frames[-1]) <= self._max_body
        return is_large and open_envelope(message.frames).frames[0] in REQUEST_KINDS


def size(message: FromClient) -> int:
    """Estimated bytes of memory that a message occupies while it waits."""
    return sum(map(len, message.frames)) + _OVERHEAD
