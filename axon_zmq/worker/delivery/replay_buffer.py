"""Replay buffer of one run: its messages, numbered from 1 and kept until the resume window closes. No I/O.

`seq` is what shows a client that its stream is complete, so it is assigned here and nowhere else, from the first
message on. Messages are kept, bounded in bytes, until the resume window after the run's end has passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from axon_zmq.protocol import limits


class Message(NamedTuple):
    """One message of a run, as it goes out."""

    kind: bytes
    body: bytes


class RunInfo(NamedTuple):
    """What a broker that does not know a run must be told of it."""

    kind: str
    digest: bytes
    """Of the body, so that a repeated id is recognised."""
    deadline: float
    keep: bool
    """`on_disconnect: "keep"`."""


class Replay(NamedTuple):
    """The kept messages from some `seq` on."""

    start: int
    """The first `seq` that follows; above what was asked means a gap."""
    gap: bool
    messages: list[Message]


class ReplayBuffer:
    """One run's messages.

    Args:
        pack: Packs a body.
        info: What a broker must be told of the run.
        most_bytes: What is kept for replay; the oldest messages go first.
    """

    __slots__ = ("_kept", "_most_bytes", "_pack", "bytes", "ended_at", "info", "seq")

    def __init__(
        self, pack: Callable[[Any], bytes], info: RunInfo, most_bytes: int = limits.REPLAY_BYTES_PER_RUN
    ) -> None:
        self.info = info
        self.seq = 0
        """Of the last message."""
        self.ended_at: float | None = None
        self.bytes = 0
        self._kept: deque[Message] = deque()
        self._pack = pack
        self._most_bytes = most_bytes

    def __repr__(self) -> str:
        state = "ended" if self.ended_at is not None else "open"
        return f"<ReplayBuffer {state}, seq {self.seq}, {len(self._kept)} kept, {self.bytes} bytes>"

    def put(self, kind: bytes, body: dict[str, Any]) -> bytes:
        """Number, pack and keep one message; its packed body.

        Raises:
            ModelError: `invalid_output`, where it cannot be packed; then the number is not used.
        """
        packed = self._pack(type(body)(seq=self.seq + 1, **body))  # what is plain stays so
        self.seq += 1
        self._kept.append(Message(kind, packed))
        self.bytes += len(packed)
        if self.bytes > self._most_bytes:
            self.trim(self._most_bytes)
        return packed

    @property
    def kept(self) -> Sequence[Message]:
        """What is still there for replay, the oldest first; the last one has the number `seq`."""
        return self._kept

    def restore(self, seq: int, ended_at: float, kept: Iterable[Message]) -> None:
        """Become the replay buffer of a run that ended in another process."""
        self.seq, self.ended_at = seq, ended_at
        self._kept = deque(kept)
        self.bytes = sum(len(message.body) for message in self._kept)

    def trim(self, most_bytes: int) -> None:
        """Forget the oldest messages until the rest is within the bound; the last one stays."""
        while self.bytes > most_bytes and len(self._kept) > 1:
            self.bytes -= len(self._kept.popleft().body)

    def replay(self, start: int) -> Replay:
        """What is kept from `seq` `start` on."""
        oldest = self.seq - len(self._kept) + 1
        first = max(start, oldest)
        return Replay(first, first > start, list(self._kept)[first - oldest :])
