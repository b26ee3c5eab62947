"""Replay buffer of one run: its messages, numbered from 1 and kept until the resume window closes. No I/O.

`seq` shows a client that its stream is complete: ZeroMQ drops messages silently when a connection or a broker dies.
`seq` is therefore assigned here and nowhere else. Messages are kept in packed form, bounded in bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from axon_zmq.protocol import limits


class Message(NamedTuple):
    """One message of a run, as it is sent."""

    kind: bytes
    body: bytes


class RunInfo(NamedTuple):
    """The data that a broker needs to adopt a run that it did not dispatch."""

    kind: str
    digest: bytes
    """BLAKE2b of the request body: distinguishes a repeated request from a different one with the same id."""
    deadline: float
    """Seconds of the monotonic clock."""
    keep: bool
    """Whether `on_disconnect` is `keep`."""


class Replay(NamedTuple):
    """The kept messages from a given `seq`."""

    start: int
    """`seq` of the first message."""
    gap: bool
    """Whether `start` is above the requested `seq`, because older messages were dropped."""
    messages: list[Message]


class ReplayBuffer:
    """The messages of one run.

    Args:
        pack: Packs a body.
        info: The run info.
        max_bytes: Bytes of messages that are kept; the oldest messages are dropped first.
    """

    __slots__ = ("_kept", "_max_bytes", "_pack", "bytes", "ended_at", "info", "seq")

    def __init__(
        self, pack: Callable[[Any], bytes], info: RunInfo, max_bytes: int = limits.REPLAY_BYTES_PER_RUN
    ) -> None:
        self.info = info
        self.seq = 0
        """`seq` of the last message."""
        self.ended_at: float | None = None
        """When the run ended, in seconds of the monotonic clock; None while it is open."""
        self.bytes = 0
        """Size of the bodies of the kept messages."""
        self._kept: deque[Message] = deque()
        self._pack = pack
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        state = "ended" if self.ended_at is not None else "open"
        return f"<ReplayBuffer {state}, seq {self.seq}, {len(self._kept)} kept, {self.bytes} bytes>"

    def put(self, kind: bytes, body: dict[str, Any]) -> bytes:
        """Number, pack and keep one message.

        Returns:
            Its packed body.

        Raises:
            ModelError: `invalid_output` if it cannot be packed; `seq` is not increased then.
        """
        # `type(body)` keeps a `PlainMap`, by which the packing function knows that it need not be converted again.
        packed = self._pack(type(body)(seq=self.seq + 1, **body))
        self.seq += 1  # only now: a number that is never sent would be a gap for the client
        self._kept.append(Message(kind, packed))
        self.bytes += len(packed)
        if self.bytes > self._max_bytes:
            self.trim(self._max_bytes)
        return packed

    @property
    def kept(self) -> Sequence[Message]:
        """The messages that are kept, oldest first; the last one has the number `seq`."""
        return self._kept

    def restore(self, seq: int, ended_at: float, kept: Iterable[Message]) -> None:
        """Take the state of a replay buffer of another process, from a handover file."""
        self.seq, self.ended_at = seq, ended_at
        self._kept = deque(kept)
        self.bytes = sum(len(message.body) for message in self._kept)

    def trim(self, max_bytes: int) -> None:
        """Drop the oldest messages until the rest has at most `max_bytes`; the last message always stays.

        The last message of an ended run is its terminal message, without which a replay would be useless.
        """
        while self.bytes > max_bytes and len(self._kept) > 1:
            self.bytes -= len(self._kept.popleft().body)

    def replay(self, start: int) -> Replay:
        """Return the kept messages with a `seq` of `start` or more."""
        oldest = self.seq - len(self._kept) + 1
        first = max(start, oldest)
        return Replay(first, first > start, list(self._kept)[first - oldest :])
