"""What waits for clients whose pipe is full: bounded, with a reserved place for what ends a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from axon_zmq.errors import RunEndedError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import error_body
from axon_zmq.protocol.kinds import TERMINAL_KINDS

IN_FLIGHT_BYTES_PER_CLIENT: Final = 16 * limits.MIB
"""Bytes of large messages in ZeroMQ's pipe to one client; one more goes all the same where there is none. The pipe
is bounded in messages alone: 250 answers of many MB would be gigabytes for a client that does not read. So many bytes
it holds of the largest that are not counted; with 4 MiB it ran empty, and those who read got slower."""
IN_FLIGHT_BYTES_TOTAL: Final = 256 * limits.MIB
"""What clients that have large messages in their pipes share, where there are more than 16 of them."""
QUEUE_MESSAGES_PER_CLIENT: Final = 200_000
"""Messages that may wait for a client that was blocked; more than a send queue of the smallest chunks and all
its runs' terminals, so only what answers a flood of bad messages is ever over it, and dropped."""
QUEUE_BYTES_PER_CLIENT: Final = 16 * limits.MIB
"""What waits of its streams in the broker for one client, beyond ZeroMQ's own pipe, before it is a slow consumer."""
ANSWER_BYTES_PER_CLIENT: Final = 128 * limits.MIB
"""The same of what ends its runs: work that is done. Workers end many large runs at once, and much faster than one
who reads all the time can take them in."""
QUEUE_BYTES_TOTAL: Final = 256 * limits.MIB
"""Both over all clients; past it the slow one is who holds more than an equal share. Over twice as much, and who holds
less than a share has its answers kept all the same: three times as much is the most that ever waits."""
_TOO_SLOW: Final = error_body(
    RunEndedError("slow_consumer", "the client read too slowly for its answer", {"by": "broker"})
)
"""In place of an answer for which there is no more room."""
_OVERHEAD: Final = 200
"""Bytes that a waiting message takes beside its body."""
_MIN_CLIENTS_TO_SWEEP: Final = 16
"""Clients with large messages that are not worth a look whether all were taken."""

MIN_RETRY_DELAY_S: Final = 0.001
MAX_RETRY_DELAY_S: Final = 0.05
"""Seconds until a client whose pipe was full is tried again, each time twice as long: a ROUTER cannot be polled for
one peer."""

Message = tuple[bytes, bytes, bytes]
"""kind, id, body"""


class Sent(Protocol):
    """A message that ZeroMQ may still hold: pyzmq's `MessageTracker`."""

    @property
    def done(self) -> bool:
        """Whether it has let go of it."""
        ...


class InFlight:
    """The large messages that ZeroMQ holds for each client, in bytes.

    Args:
        per_client: Bytes from which no more is sent to a client for now.
        total: What clients share, where their number makes that less.
    """

    def __init__(self, per_client: int = IN_FLIGHT_BYTES_PER_CLIENT, total: int = IN_FLIGHT_BYTES_TOTAL) -> None:
        self._sent: dict[bytes, deque[tuple[Sent, int]]] = {}
        self._per_client = per_client
        self._total = total
        self._sweep_at = _MIN_CLIENTS_TO_SWEEP

    def __repr__(self) -> str:
        return f"<InFlight {len(self._sent)} clients>"

    def has_room(self, client: bytes) -> bool:
        """Whether one more large message may be sent to a client; always, where there is none."""
        held = self._held(client)
        return not held or held < min(self._per_client, self._total // len(self._sent))

    def add(self, client: bytes, sent: Sent, size: int) -> None:
        """A large message was sent."""
        if len(self._sent) >= self._sweep_at:
            self._sweep()
        self._sent.setdefault(client, deque()).append((sent, size))

    def forget(self, client: bytes) -> None:
        """A client is gone, and what was in its pipe."""
        self._sent.pop(client, None)

    def _held(self, client: bytes) -> int:
        sent = self._sent.get(client)
        if sent is None:
            return 0
        while sent and sent[0][0].done:
            sent.popleft()
        if not sent:
            del self._sent[client]
        return sum(size for _, size in sent)

    def _sweep(self) -> None:
        """Forget who has taken everything: he may have left since, and nobody would say so."""
        for client in list(self._sent):
            self._held(client)
        self._sweep_at = max(_MIN_CLIENTS_TO_SWEEP, 2 * len(self._sent))


class SendQueues:
    """One queue for each client that does not read.

    Args:
        per_client: Bytes of its streams that may wait for one client before it is blocked.
        answers: The same of what ends runs, in the place that is reserved for it.
        total: Both, over all clients. PreviousState it, who holds more than an equal share is blocked.
    """

    def __init__(
        self,
        per_client: int = QUEUE_BYTES_PER_CLIENT,
        answers: int = ANSWER_BYTES_PER_CLIENT,
        total: int = QUEUE_BYTES_TOTAL,
    ) -> None:
        self.waiting: dict[bytes, deque[Message]] = {}
        self._bytes: dict[bytes, dict[bool, int]] = {}
        """What waits for a client: of its streams (False), and of what ends runs (True)."""
        self._all_bytes = 0
        self._blocked: set[bytes] = set()
        self._retries: dict[bytes, tuple[float, float]] = {}
        """When a client is tried again, and how long that was put off."""
        self._bounds = {False: per_client, True: answers}
        self._total = total

    def __repr__(self) -> str:
        return f"<SendQueues {len(self.waiting)} clients, {len(self._blocked)} blocked, {self._all_bytes} bytes>"

    def add(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> bool:
        """Keep a message behind the others; whether the client's running requests must be ended.

        While a client is blocked only terminals are kept. Of those for which there is no place, whether it
        is blocked or not, only that the client was too slow is kept.
        """
        ends = kind in TERMINAL_KINDS
        if client in self._blocked and (not ends or len(self.waiting[client]) >= QUEUE_MESSAGES_PER_CLIENT):
            return True
        if ends and not self._has_place(client, len(body)):
            kind, body = kinds.ERROR, _TOO_SLOW
        self.waiting.setdefault(client, deque()).append((kind, id, body))
        self._account(client, kind, len(body) + _OVERHEAD)
        if not self._is_over(client, ends) and not self._is_over_its_share(client):
            return False
        self._blocked.add(client)
        return True

    def next_retry(self) -> float:
        """When somebody is due to be tried again; infinity where nothing waits."""
        if len(self._retries) < len(self.waiting):
            return 0.0
        return min((due for due, _ in self._retries.values()), default=float("inf"))

    def flush_due(self, send: Callable[[bytes, bytes, bytes, bytes], bool], now: float) -> None:
        """Send what waits for each client that is due, as far as their pipes take it."""
        for client in list(self.waiting):
            due, delay = self._retries.get(client, (0.0, MIN_RETRY_DELAY_S))
            if due > now:
                continue
            before = len(self.waiting[client])
            self.flush(client, send)
            if client in self.waiting:
                took_some = len(self.waiting[client]) < before
                delay = MIN_RETRY_DELAY_S if took_some else min(MAX_RETRY_DELAY_S, 2 * delay)
                self._retries[client] = (now + delay, delay)

    def flush(self, client: bytes, send: Callable[[bytes, bytes, bytes, bytes], bool]) -> None:
        """Send what waits for a client, oldest first, until its pipe is full again."""
        messages = self.waiting[client]
        while messages:
            kind, id, body = messages[0]
            if not send(client, kind, id, body):
                return
            if self.waiting.get(client) is not messages:
                return  # the client is gone, and its send queue with it
            messages.popleft()
            self._account(client, kind, -len(body) - _OVERHEAD)
        self.forget(client)

    def forget(self, client: bytes) -> None:
        """Drop what waits for a client: it is gone, or everything was sent."""
        self.waiting.pop(client, None)
        self._retries.pop(client, None)
        self._all_bytes -= self._held(client)
        self._bytes.pop(client, None)
        self._blocked.discard(client)

    def _has_place(self, client: bytes, size: int) -> bool:
        """Whether one more answer is kept whole: in all at most three times the bound ever waits."""
        if client in self.waiting and self._is_over(client, True):
            return False
        if self._all_bytes + size <= 2 * self._total:
            return True
        return self._held(client) + size <= self._share()

    def _is_over(self, client: bytes, ends: bool) -> bool:
        return self._bytes[client][ends] > self._bounds[ends]

    def _is_over_its_share(self, client: bytes) -> bool:
        return self._all_bytes > self._total and self._held(client) > self._share()

    def _share(self) -> int:
        return self._total // max(1, len(self.waiting))

    def _held(self, client: bytes) -> int:
        return sum(self._bytes.get(client, {}).values())

    def _account(self, client: bytes, kind: bytes, bytes: int) -> None:
        self._bytes.setdefault(client, {False: 0, True: 0})[kind in TERMINAL_KINDS] += bytes
        self._all_bytes += bytes
