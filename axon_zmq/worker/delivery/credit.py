"""Flow control of one run: the messages that wait for credit, merged if possible. No I/O.

Credit is needed because TCP and the high-water mark cannot slow a run down: chumak, for example, has no high-water mark
and queues without limit in the client's memory. Credit is an absolute `seq`: chunks and logs up to this number may be
sent. A grant that arrives twice, or late after a reconnect, therefore does no harm.

Messages wait for credit, or because the event loop is late. They get their `seq` only when they are sent, so that
deltas of text can be merged and a structured output can be replaced by a newer one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from axon_zmq.protocol import kinds, limits

NEEDS_CREDIT: Final = frozenset((kinds.CHUNK, kinds.LOG))
"""Kinds that need credit; all others are sent at once, after the messages that wait."""
_TEXT: Final = frozenset(("text", "thinking"))
"""Types of chunks whose data is text that can be joined."""

Waiting = tuple[bytes, dict[str, Any]]
"""A message that waits: its kind, and its body without `seq`."""


def _is_text(kind: bytes, body: dict[str, Any]) -> bool:
    return kind == kinds.CHUNK and body["type"] in _TEXT


class Credit:
    """The credit of a run, and its queue of messages that wait.

    Args:
        upto: The credit in the header of the request; None if the client does not use credit.
        size: Returns the size in bytes of a body whose data is not text.
    """

    __slots__ = ("_size", "_text", "bytes", "is_given", "upto", "waiting")

    def __init__(self, upto: int | None, size: Callable[[Any], int]) -> None:
        self.is_given = upto is not None
        """Whether the client uses credit."""
        self.upto: float = math.inf if upto is None else upto
        """The last `seq` that chunks and logs may have."""
        self.waiting: deque[Waiting] = deque()
        """The messages that wait, oldest first."""
        self._text: list[str] = []
        """All pieces of the newest message if it is text. They are joined once, when the message is complete: joining
        at each delta would copy the whole text each time."""
        self.bytes = 0
        """Size of the messages that wait."""
        self._size = size

    def __repr__(self) -> str:
        return f"<Credit up to {self.upto:g}, {len(self.waiting)} wait, {self.bytes} bytes>"

    @property
    def full(self) -> bool:
        """Whether so many bytes wait that the model's response is no longer read."""
        return self.bytes >= limits.WAITING_BYTES

    def grow(self, upto: int) -> None:
        """Extend the credit; a value below the current one changes nothing."""
        self.upto = max(self.upto, upto)

    def hold(self, kind: bytes, body: dict[str, Any]) -> None:
        """Add a message to the queue, or merge it with the newest one."""
        if kind == kinds.CHUNK and self._merged(body):
            return
        self._settle_text()
        if _is_text(kind, body):
            self._text = [body["data"]]
        self.waiting.append((kind, body))
        self.bytes += self._weight(kind, body)

    def take(self) -> Waiting:
        """Remove and return the oldest message.

        Raises:
            IndexError: No message waits.
        """
        if len(self.waiting) == 1:
            self._settle_text()  # only the newest message may still have text that is not joined
        kind, body = self.waiting.popleft()
        self.bytes -= self._weight(kind, body)
        return kind, body

    def _weight(self, kind: bytes, body: dict[str, Any]) -> int:
        # Text counts in characters: to count bytes, each delta would have to be encoded a second time.
        return len(body["data"]) if _is_text(kind, body) else self._size(body)

    def _merged(self, body: dict[str, Any]) -> bool:
        """Merge a chunk with the newest message if both are pieces of one text, or states of one output.

        Returns:
            Whether it was merged.
        """
        kind, last = self.waiting[-1] if self.waiting else (b"", {})
        if kind != kinds.CHUNK or any(last[key] != body[key] for key in ("type", "step", "part")):
            return False
        if body["type"] in _TEXT:
            self._text.append(body["data"])
            self.bytes += len(body["data"])
        elif body["type"] == "output":
            # Each `output` chunk has the whole output so far, so only the newest matters.
            self.bytes += self._size(body) - self._size(last)
            self.waiting[-1] = (kind, body)
        else:
            return False
        return True

    def _settle_text(self) -> None:
        if self._text:
            kind, last = self.waiting[-1]
            self.waiting[-1] = (kind, {**last, "data": "".join(self._text)})
            self._text = []
