"""Send queues: messages for clients whose pipe is full, in bounded memory.

Terminal messages have a separate bound, so that a client that reads too slowly for its streams still gets the end of
each run. `PipeBytes` bounds the large messages that are already in ZeroMQ's pipes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

from axon_zmq.errors import RunEndedError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import error_body
from axon_zmq.protocol.kinds import TERMINAL_KINDS

IN_FLIGHT_BYTES_PER_CLIENT: Final = 16 * limits.MIB
"""Maximum bytes of large messages in ZeroMQ's pipe to one client; further large messages wait in the send queue. The
last message sent may exceed it. A bound in bytes is necessary because ZeroMQ bounds its pipes by the number of messages
only: 250 results of several MB would occupy gigabytes for a client that does not read. Messages just too small to be
counted can occupy about as much (250 times 64 KiB). With a bound of 4 MiB, the pipe ran empty, and clients that do read
were slowed down."""
IN_FLIGHT_BYTES_TOTAL: Final = 256 * limits.MIB
"""Maximum bytes of large messages in the pipes to all clients. If more than 16 clients have large messages in their
pipes, the bound of each is an equal share of this value. A client that has none in its pipe gets one in any case, up to
`IN_FLIGHT_BYTES_LIMIT`."""
IN_FLIGHT_BYTES_LIMIT: Final = 4 * IN_FLIGHT_BYTES_TOTAL
"""Bytes of large messages in all pipes above which no further one is sent, until ZeroMQ has released some. Without it,
100 clients that do not read would hold 100 results of 11 MB. Only clients that do not read make others wait for it."""
QUEUE_MESSAGES_PER_CLIENT: Final = 200_000
"""Maximum number of messages in the send queue of a blocked client; further terminal messages are dropped. Only a
client that floods the broker with bad requests can reach it, through the error replies. Even the smallest chunks that
fit into a send queue, together with the terminal messages of all runs, are fewer."""
QUEUE_BYTES_PER_CLIENT: Final = 16 * limits.MIB
"""Maximum bytes of non-terminal messages in one client's send queue. A client that exceeds it is blocked, and its runs
are ended as `slow_consumer`. Messages in ZeroMQ's pipe do not count."""
ANSWER_BYTES_PER_CLIENT: Final = 128 * limits.MIB
"""Maximum bytes of terminal messages in one client's send queue. It is higher because terminal messages are the results
of completed work, and because workers can end many runs with large results at once, much faster than even a client that
never pauses can read them."""
QUEUE_BYTES_TOTAL: Final = 256 * limits.MIB
"""Total bytes in all send queues above which clients are blocked: each client whose queue exceeds an equal share. Above
twice this value, a terminal message is queued only if its client stays within its share; otherwise a short error
replaces it. The send queues therefore never exceed three times this value."""
_NO_ROOM: Final = error_body(
    RunEndedError(
        "slow_consumer",
        "the client read too slowly: its send queue has no room for this result; read faster or use credit",
        {"by": "broker"},
    )
)
"""Replaces a terminal message for which the send queue has no room."""
_OVERHEAD: Final = 200
"""Bytes that a waiting message is estimated to occupy in addition to its body."""
_MIN_CLIENTS_TO_SWEEP: Final = 16
"""`PipeBytes` looks for clients to forget only if it has at least this many clients; see `PipeBytes._sweep`."""
_EXAMINED_AT_LIMIT: Final = 16
"""Clients that `PipeBytes` examines for released messages before it refuses a message because of the limit."""

MIN_RETRY_DELAY_S: Final = 0.001
MAX_RETRY_DELAY_S: Final = 0.05
"""Seconds until the next attempt to send to a client whose pipe was full. The delay doubles while the client reads
nothing. Polling is not possible: POLLOUT of a ROUTER does not refer to one peer."""

Message = tuple[bytes, bytes, bytes]
"""Kind, request id and body."""


class Sent(Protocol):
    """A sent message whose memory ZeroMQ may still use: pyzmq's `MessageTracker`."""

    @property
    def done(self) -> bool:
        """Whether ZeroMQ has released the message."""
        ...


class PipeBytes:
    """Counts the bytes of large messages in each client's pipe.

    Args:
        per_client: Maximum bytes for one client.
        total: Maximum bytes for all clients; the bound of each client is at most an equal share of it.
        limit: Bytes in all pipes from which no further message is sent.
    """

    def __init__(
        self,
        per_client: int = IN_FLIGHT_BYTES_PER_CLIENT,
        total: int = IN_FLIGHT_BYTES_TOTAL,
        limit: int = IN_FLIGHT_BYTES_LIMIT,
    ) -> None:
        self._sent: dict[bytes, deque[tuple[Sent, int]]] = {}
        self._bytes = 0
        """Bytes of all messages in `_sent`; ZeroMQ may already have released some of them."""
        self._per_client = per_client
        self._total = total
        self._limit = limit
        self._sweep_at = _MIN_CLIENTS_TO_SWEEP

    def __repr__(self) -> str:
        return f"<PipeBytes {len(self._sent)} clients, {self._bytes} bytes>"

    def has_room(self, client: bytes) -> bool:
        """Whether one more large message may be sent to a client."""
        held = self._held(client)
        if held and held >= min(self._per_client, self._total // len(self._sent)):
            return False
        if self._bytes >= self._limit:
            self._examine_some()
        return self._bytes < self._limit

    def add(self, client: bytes, sent: Sent, size: int) -> None:
        """Record that a large message was sent."""
        if len(self._sent) >= self._sweep_at:
            self._sweep()
        self._sent.setdefault(client, deque()).append((sent, size))
        self._bytes += size

    def forget(self, client: bytes) -> None:
        """Forget a client that is gone: ZeroMQ has discarded the messages in its pipe."""
        self._bytes -= sum(size for _, size in self._sent.pop(client, ()))

    def _held(self, client: bytes) -> int:
        sent = self._sent.get(client)
        if sent is None:
            return 0
        while sent and sent[0][0].done:
            self._bytes -= sent.popleft()[1]
        if not sent:
            del self._sent[client]
        return sum(size for _, size in sent)

    def _sweep(self) -> None:
        """Forget clients for which ZeroMQ has released all messages.

        Such a client may have disconnected without a `forget`: the broker notices that only when it sends again.
        """
        for client in list(self._sent):
            self._held(client)
        self._sweep_at = max(_MIN_CLIENTS_TO_SWEEP, 2 * len(self._sent))

    def _examine_some(self) -> None:
        """Look for released messages of the clients that were examined longest ago.

        Only some clients at a time: while the limit is reached, the queues of all clients are retried frequently.
        """
        for client in list(islice(self._sent, _EXAMINED_AT_LIMIT)):
            if self._held(client):
                self._sent[client] = self._sent.pop(client)


class SendQueues:
    """A send queue for each client whose pipe is full.

    Args:
        per_client: Maximum bytes of non-terminal messages for one client; a client that exceeds it is blocked.
        answers: Maximum bytes of terminal messages for one client; a client that exceeds it is blocked.
        total: Bytes of all messages above which a client with more than an equal share is blocked.
    """

    def __init__(
        self,
        per_client: int = QUEUE_BYTES_PER_CLIENT,
        answers: int = ANSWER_BYTES_PER_CLIENT,
        total: int = QUEUE_BYTES_TOTAL,
    ) -> None:
        self.waiting: dict[bytes, deque[Message]] = {}
        """The queue of each client that has one, oldest message first."""
        self._bytes: dict[bytes, dict[bool, int]] = {}
        """Bytes in each client's queue: of non-terminal messages (False) and of terminal ones (True)."""
        self._all_bytes = 0
        self._blocked: set[bytes] = set()
        self._retries: dict[bytes, tuple[float, float]] = {}
        """For each client, when the next attempt to send is due, and the delay before it."""
        self._bounds = {False: per_client, True: answers}
        self._total = total

    def __repr__(self) -> str:
        return f"<SendQueues {len(self.waiting)} clients, {len(self._blocked)} blocked, {self._all_bytes} bytes>"

    def add(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> bool:
        """Append a message to a client's queue.

        A blocked client's queue accepts terminal messages only. If it has no room for a terminal message, a short
        `slow_consumer` error takes its place, so that the run still has an end.

        Returns:
            True if the client is blocked, so that its running runs must be ended.
        """
        is_terminal = kind in TERMINAL_KINDS
        if client in self._blocked and (not is_terminal or len(self.waiting[client]) >= QUEUE_MESSAGES_PER_CLIENT):
            return True
        if is_terminal and not self._has_room(client, len(body)):
            kind, body = kinds.ERROR, _NO_ROOM
        self.waiting.setdefault(client, deque()).append((kind, id, body))
        self._account(client, kind, len(body) + _OVERHEAD)
        if not self._is_over(client, is_terminal) and not self._is_over_its_share(client):
            return False
        self._blocked.add(client)
        return True

    def next_retry(self) -> float:
        """When the next attempt to send is due; infinity if no message waits."""
        # A client without an entry has just got its queue and is due at once.
        if len(self._retries) < len(self.waiting):
            return 0.0
        return min((due for due, _ in self._retries.values()), default=float("inf"))

    def flush_due(self, send: Callable[[bytes, bytes, bytes, bytes], bool], now: float) -> None:
        """Send the waiting messages of each client that is due, until its pipe is full again."""
        for client in list(self.waiting):
            due, delay = self._retries.get(client, (0.0, MIN_RETRY_DELAY_S))
            if due > now:
                continue
            before = len(self.waiting[client])
            self.flush(client, send)
            if client in self.waiting:
                # A client that reads is retried every millisecond, so that it is never blocked for being slow.
                took_some = len(self.waiting[client]) < before
                delay = MIN_RETRY_DELAY_S if took_some else min(MAX_RETRY_DELAY_S, 2 * delay)
                self._retries[client] = (now + delay, delay)

    def flush(self, client: bytes, send: Callable[[bytes, bytes, bytes, bytes], bool]) -> None:
        """Send a client's waiting messages, oldest first, until its pipe is full again."""
        messages = self.waiting[client]
        while messages:
            kind, id, body = messages[0]
            if not send(client, kind, id, body):
                return
            if self.waiting.get(client) is not messages:
                return  # `send` found the client gone, and its queue was dropped
            messages.popleft()
            self._account(client, kind, -len(body) - _OVERHEAD)
        self.forget(client)

    def forget(self, client: bytes) -> None:
        """Remove a client's queue: the client is gone, or all messages were sent."""
        self.waiting.pop(client, None)
        self._retries.pop(client, None)
        self._all_bytes -= self._held(client)
        self._bytes.pop(client, None)
        self._blocked.discard(client)

    def _has_room(self, client: bytes, size: int) -> bool:
        """Whether a terminal message may be queued as it is: see `QUEUE_BYTES_TOTAL`."""
        if client in self.waiting and self._is_over(client, True):
            return False
        if self._all_bytes + size <= 2 * self._total:
            return True
        # Clients within their share hold at most `total` bytes together, so all queues stay below three times `total`.
        return self._held(client) + size <= self._share()

    def _is_over(self, client: bytes, is_terminal: bool) -> bool:
        return self._bytes[client][is_terminal] > self._bounds[is_terminal]

    def _is_over_its_share(self, client: bytes) -> bool:
        return self._all_bytes > self._total and self._held(client) > self._share()

    def _share(self) -> int:
        return self._total // max(1, len(self.waiting))

    def _held(self, client: bytes) -> int:
        return sum(self._bytes.get(client, {}).values())

    def _account(self, client: bytes, kind: bytes, bytes: int) -> None:
        self._bytes.setdefault(client, {False: 0, True: 0})[kind in TERMINAL_KINDS] += bytes
        self._all_bytes += bytes
