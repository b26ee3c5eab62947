"""A run's outgoing messages: numbered from 1, and kept for who asks again. No I/O.

`seq` is what makes a stream whole for the client, so it is given here and nowhere else, from the first
message on. What was sent is kept, bounded in bytes, until the resume window after the end has passed.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import RunKey

_WINDOW: Final = limits.RESUME_WINDOW


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
    """What is due to a client that asked for everything from some `seq` on."""

    start: int
    """The first `seq` that follows; above what was asked means a gap."""
    gap: bool
    messages: list[Message]


class ReplayBuffer:
    """One run's messages.

    Args:
        pack: Packs a body.
        identity: Which run it is.
        most_bytes: What is kept for replay; the oldest messages go first.
    """

    __slots__ = ("_kept", "_most_bytes", "_pack", "bytes", "ended_at", "identity", "seq")

    def __init__(
        self, pack: Callable[[Any], bytes], identity: RunInfo, most_bytes: int = limits.REPLAY_BYTES_PER_RUN
    ) -> None:
        self.identity = identity
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
        """Become the outbox of a run that ended in another process."""
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


class ReplayStore:
    """All outboxes of a worker: open ones, and ended ones until the resume window has passed."""

    def __init__(self, most_bytes: int = limits.REPLAY_BYTES_PER_WORKER) -> None:
        self._outboxes: OrderedDict[RunKey, ReplayBuffer] = OrderedDict()
        self._most_bytes = most_bytes
        self.forgot_at = 0.0
        """When an ended run was last forgotten before its window had passed, for want of room."""

    def __iter__(self) -> Iterator[tuple[RunKey, ReplayBuffer]]:
        return iter(self._outboxes.items())

    def get(self, key: RunKey) -> ReplayBuffer | None:
        """The outbox of a run, if it is still kept."""
        return self._outboxes.get(key)

    def add(self, key: RunKey, outbox: ReplayBuffer) -> None:
        """Keep a new run's outbox."""
        self._outboxes[key] = outbox

    def end(self, key: RunKey, now: float) -> None:
        """A run has ended: its outbox is kept for the resume window, behind those that ended before."""
        self._outboxes[key].ended_at = now
        self._outboxes.move_to_end(key)

    def to_wire(self, keys: Iterable[RunKey] | None = None) -> dict[str, Any]:
        """What a broker is told: of all runs, or of those that are named; and when one was last forgotten."""
        wanted = self._outboxes.keys() if keys is None else set(keys)
        holds = [
            {
                "client": client,
                "id": id,
                **outbox.identity._asdict(),
                "seq": outbox.seq,
                "ended": outbox.ended_at is not None,
            }
            for (client, id), outbox in self
            if (client, id) in wanted
        ]
        return {"holds": holds, "forgot_at": self.forgot_at}

    def ended(self, now: float) -> Iterator[tuple[RunKey, ReplayBuffer]]:
        """The ended runs whose window has not passed, those that ended first in front."""
        return ((key, box) for key, box in self if box.ended_at is not None and now < box.ended_at + _WINDOW)

    def merge(self, ended: Iterable[tuple[RunKey, ReplayBuffer]]) -> list[RunKey]:
        """Take over runs that ended in another process, each in its place by the time of its end; those taken."""
        new = {key: outbox for key, outbox in ended if key not in self._outboxes}
        by_end = sorted({**self._outboxes, **new}.items(), key=lambda item: item[1].ended_at or 0.0)
        self._outboxes = OrderedDict(by_end)
        return list(new)

    def tidy(self, now: float) -> None:
        """Forget ended runs whose window has passed, and what is over the bound of all together.

        The runs that ended first go first; then the largest of the open ones lose their older half.
        """
        total = sum(outbox.bytes for outbox in self._outboxes.values())
        for key, outbox in list(self._outboxes.items()):
            if outbox.ended_at is None:
                continue
            if now < outbox.ended_at + _WINDOW:
                if total <= self._most_bytes:
                    break
                self.forgot_at = now
            total -= outbox.bytes
            del self._outboxes[key]
        for outbox in sorted(self._outboxes.values(), key=lambda outbox: -outbox.bytes):
            if total <= self._most_bytes:
                break
            before = outbox.bytes
            outbox.trim(before // 2)
            total -= before - outbox.bytes
