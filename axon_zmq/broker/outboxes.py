"""What waits for clients whose pipe is full: bounded, with a reserved place for what ends a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from axon_zmq import limits, wire

_MAY_BE_DROPPED: Final = frozenset((b"chunk", b"log"))
"""Kinds that a slow consumer loses; the terminal that says so is never dropped."""

Message = tuple[bytes, bytes, bytes]
"""kind, id, body"""


class Outboxes:
    """One queue for each client that does not read.

    Args:
        per_client: Bytes that may wait for one client before it is blocked.
        in_all: The same over all clients.
    """

    def __init__(self, per_client: int = limits.CLIENT_OUTBOX_BYTES, in_all: int = limits.ALL_OUTBOX_BYTES) -> None:
        self.waiting: dict[bytes, deque[Message]] = {}
        self._bytes: dict[bytes, int] = {}
        self._all_bytes = 0
        self._blocked: set[bytes] = set()
        self._per_client = per_client
        self._in_all = in_all

    def __repr__(self) -> str:
        return f"<Outboxes {len(self.waiting)} clients, {len(self._blocked)} blocked, {self._all_bytes} bytes>"

    def add(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> bool:
        """Keep a message behind the others; whether the client has just become blocked.

        While a client is blocked its chunks are dropped: its runs are being ended as `slow_consumer`,
        and terminals, which need a place each, are all that is kept.
        """
        if client in self._blocked and kind in _MAY_BE_DROPPED:
            return False
        self.waiting.setdefault(client, deque()).append((kind, id, body))
        self._account(client, len(body))
        if client in self._blocked or not self._over(client):
            return False
        self._blocked.add(client)
        return True

    def flush(self, client: bytes, send: Callable[[bytes, bytes, bytes, bytes], bool]) -> None:
        """Send what waits for a client, oldest first, until its pipe is full again."""
        messages = self.waiting[client]
        while messages:
            kind, id, body = messages[0]
            if not send(client, kind, id, body):
                return
            if self.waiting.get(client) is not messages:
                return  # the client is gone, and its outbox with it
            messages.popleft()
            self._account(client, -len(body))
        self.forget(client)

    def forget(self, client: bytes) -> None:
        """Drop what waits for a client: it is gone, or everything was sent."""
        self.waiting.pop(client, None)
        self._all_bytes -= self._bytes.pop(client, 0)
        self._blocked.discard(client)

    def _over(self, client: bytes) -> bool:
        return self._bytes[client] > self._per_client or self._all_bytes > self._in_all

    def _account(self, client: bytes, bytes: int) -> None:
        self._bytes[client] = self._bytes.get(client, 0) + bytes
        self._all_bytes += bytes


assert not _MAY_BE_DROPPED & wire.TERMINAL_KINDS
