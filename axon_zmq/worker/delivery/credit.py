"""Flow control of one run: what waits, merged where it can be. No I/O.

Credit is absolute: chunks and logs up to that `seq` may go. What waits, for credit or because the process is behind,
has no number yet, so that text can still be merged and a structured output be replaced by a newer one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from axon_zmq.protocol import kinds, limits

NEEDS_CREDIT: Final = frozenset((kinds.CHUNK, kinds.LOG))
"""Kinds that wait; everything else goes at once, after what waits."""
_TEXT: Final = frozenset(("text", "thinking"))

Waiting = tuple[bytes, dict[str, Any]]
"""Kind and body, without `seq`."""


def _is_text(kind: bytes, body: dict[str, Any]) -> bool:
    return kind == kinds.CHUNK and body["type"] in _TEXT


class Credit:
    """What a run may send, and what waits.

    Args:
        upto: The credit that the request came with; None: its client takes whatever comes.
        size: Tells the bytes of a body that is no text.
    """

    __slots__ = ("_size", "_text", "bytes", "is_given", "upto", "waiting")

    def __init__(self, upto: int | None, size: Callable[[Any], int]) -> None:
        self.is_given = upto is not None
        self.upto: float = math.inf if upto is None else upto
        self.waiting: deque[Waiting] = deque()
        """What waits, that which has waited longest first."""
        self._text: list[str] = []
        """The pieces of the last one, where that is text."""
        self.bytes = 0
        """Of what waits."""
        self._size = size

    def __repr__(self) -> str:
        return f"<Credit up to {self.upto:g}, {len(self.waiting)} wait, {self.bytes} bytes>"

    @property
    def full(self) -> bool:
        """Whether so much waits that the model is no longer read."""
        return self.bytes >= limits.WAITING_BYTES

    def grow(self, upto: int) -> None:
        """The client gives more; less than before changes nothing."""
        self.upto = max(self.upto, upto)

    def hold(self, kind: bytes, body: dict[str, Any]) -> None:
        """Let a message wait behind the others."""
        if kind == kinds.CHUNK and self._merged(body):
            return
        self._settle_text()
        if _is_text(kind, body):
            self._text = [body["data"]]
        self.waiting.append((kind, body))
        self.bytes += self._weight(kind, body)

    def take(self) -> Waiting:
        """The one that has waited longest.

        Raises:
            IndexError: Nothing waits.
        """
        if len(self.waiting) == 1:
            self._settle_text()
        kind, body = self.waiting.popleft()
        self.bytes -= self._weight(kind, body)
        return kind, body

    def _weight(self, kind: bytes, body: dict[str, Any]) -> int:
        return len(body["data"]) if _is_text(kind, body) else self._size(body)

    def _merged(self, body: dict[str, Any]) -> bool:
        """Put a chunk into the last one that waits, where both are pieces of one text, or one output."""
        kind, last = self.waiting[-1] if self.waiting else (b"", {})
        if kind != kinds.CHUNK or any(last[key] != body[key] for key in ("type", "step", "part")):
            return False
        if body["type"] in _TEXT:
            self._text.append(body["data"])
            self.bytes += len(body["data"])
        elif body["type"] == "output":
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
