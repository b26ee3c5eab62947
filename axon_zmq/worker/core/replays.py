"""Replays in parts, round-robin over clients.

Internal: may change in any release.

A replay can have megabytes, and a client may request many replays at once. If all their messages were sent at once, the
messages of all other runs would wait behind them in the worker and in the pipe to the broker. Replays are therefore
sent in parts. After each part the worker sends `replayed`, and it sends the next part when the broker has answered
`more`: the broker reads its messages in order, so at most one part is in the pipe at any time. Within a part, clients
take turns.

While a replay of an open run is under way, new messages of the run are only added to its replay buffer. The replay
reaches them in time, so the client receives all messages in the order of their `seq`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from axon_zmq.process.fair_queue import FairQueue
from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import RunKey
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.delivery.replay_buffer import Message, ReplayBuffer

PART_MESSAGES: Final = 64
"""Maximum number of messages in a part. The broker relays them in about 1 ms."""
PART_BYTES: Final = 256 * limits.KIB
"""Size of a part in bytes; its last message may exceed it."""
TURN_MESSAGES: Final = 16
"""Maximum number of messages of one client before the next client has its turn."""


@dataclass(slots=True, eq=False, kw_only=True)
class Replay:
    """One replay that a client requested."""

    client: bytes
    id: bytes
    header: Mapping[str, Any]
    """Header of the newest `resume` for the run."""
    buffer: ReplayBuffer
    run: ActiveRun | None = None
    """The run if it is open; its new messages are only kept for now."""
    next_seq: int = 0
    """`seq` of the next message to send; 0 until `resumed` was sent."""
    messages: deque[Message] = field(default_factory=deque[Message])
    """The next messages, from `next_seq`. Later ones are in `buffer`."""
    is_outdated: bool = False
    """Whether a newer `resume` for the run has arrived, so that the replay starts again when it is complete."""

    @property
    def key(self) -> RunKey:
        """The run key."""
        return self.client, self.id

    @property
    def size(self) -> int:
        """Nothing counts the bytes of queued replays, because their messages are kept anyway."""
        return 0

    def refill(self) -> bool:
        """Get the messages that were added to the buffer; return whether there are any."""
        if not self.messages and self.next_seq <= self.buffer.seq:
            more = self.buffer.replay(self.next_seq)
            self.next_seq = more.start
            self.messages.extend(more.messages)
        return bool(self.messages)


class Replays:
    """The replays of a worker that are not complete.

    Args:
        begin: Sends `resumed`, and sets `run`, `next_seq` and `messages` of a replay.
        send: Sends a message of a run.
        complete: Called when all messages of a replay were sent.
        ask: Sends `replayed` to the broker.
        part_messages: Maximum number of messages in a part.
    """

    def __init__(
        self,
        *,
        begin: Callable[[Replay], None],
        send: Callable[[RunKey, bytes, bytes], None],
        complete: Callable[[Replay], None],
        ask: Callable[[], None],
        part_messages: int = PART_MESSAGES,
    ) -> None:
        self._begin = begin
        self._send = send
        self._complete = complete
        self._ask = ask
        self._part_messages = part_messages
        self._queue: FairQueue[Replay] = FairQueue()
        self._by_key: dict[RunKey, Replay] = {}
        self._messages, self._bytes = 0, 0
        """Messages and bytes of the current part."""
        self._asked = False
        """Whether the part is complete, and the broker has not answered yet."""

    def __repr__(self) -> str:
        return f"<Replays {self._queue.count} incomplete>"

    def __len__(self) -> int:
        return self._queue.count

    @property
    def is_waiting(self) -> bool:
        """Whether the next part waits for the broker's answer."""
        return self._asked

    def request(self, key: RunKey, buffer: ReplayBuffer, header: Mapping[str, Any]) -> None:
        """Add a replay, and send as much of it as the current part has room for.

        At most one replay of a run waits. A newer request replaces one that has not begun; a replay that has begun is
        completed first, because its client needs the rest of the messages in order.
        """
        replay = self._by_key.get(key)
        if replay is None:
            client, id = key
            replay = self._by_key[key] = Replay(client=client, id=id, header=header, buffer=buffer)
            self._queue.push(replay)
        else:
            replay.header = header
            replay.is_outdated = replay.next_seq > 0
        self._send_part()

    def forget(self, key: RunKey) -> None:
        """Drop the replay of an earlier run with this key, because a new run with the same key starts."""
        if (replay := self._by_key.pop(key, None)) is not None:
            self._queue.remove(replay)
            self._complete(replay)

    def next_part(self) -> None:
        """Send the next part: the broker has answered, or will not answer."""
        self._asked = False
        self._messages = self._bytes = 0
        self._send_part()

    def finish(self) -> None:
        """Send all that is left at once, because the worker leaves."""
        while self._queue.count:
            self.next_part()

    def _send_part(self) -> None:
        while self._queue.count and not self._asked:
            self._take_turn(self._queue.pop())

    def _take_turn(self, replay: Replay) -> None:
        if not replay.next_seq:
            self._begin(replay)
            self._messages += 1
        for _ in range(TURN_MESSAGES):
            if self._is_full() or not replay.refill():
                break
            kind, body = replay.messages.popleft()
            replay.next_seq += 1
            self._messages += 1
            self._bytes += len(body)
            self._send(replay.key, kind, body)
        if replay.refill():
            self._queue.push_front(replay)
        elif replay.is_outdated:
            replay.is_outdated, replay.next_seq = False, 0
            self._queue.push(replay)
        else:
            del self._by_key[replay.key]
            self._complete(replay)
        if self._is_full():
            self._asked = True
            self._ask()

    def _is_full(self) -> bool:
        return self._messages >= self._part_messages or self._bytes >= PART_BYTES
