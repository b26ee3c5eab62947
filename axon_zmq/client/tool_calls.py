"""Record of one run's tool calls, so that no call is executed twice and no answer is lost. No I/O.

A connection or a broker may be lost while calls are open. The daemon then sends `resumed` with the calls that are still
open, and replays messages. Rule 7 of the protocol (`docs/protocol/recovery.md`) applies to this case: the client
executes a replayed call only if it is still open and was never executed; if the call is open although the client has
answered it, the client sends the same answer again.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

from axon_zmq.events import ToolCall
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack

FORGOTTEN_ANSWER: Final = pack({"error": {"message": "the client no longer keeps its answer", "retry": False}})
"""Answer that replaces a lost answer that this client no longer keeps."""


class _State(Enum):
    OPEN = auto()
    """The application has the call and must answer it."""
    ANSWERED = auto()
    """The answer was sent, but may be lost."""
    CLOSED = auto()
    """The call was cancelled, or an earlier process of this client answered it."""


class ToolCalls:
    """State and answers of one run's tool calls.

    Args:
        max_bytes: How many bytes of answers are kept; if there are more, the oldest are dropped. Default: 8 MiB, as
            much as a worker keeps of a run for replay.
    """

    __slots__ = ("_answers", "_bytes", "_last", "_listed", "_max_bytes", "_states")

    def __init__(self, max_bytes: int = limits.REPLAY_BYTES_PER_RUN) -> None:
        self._states: dict[str, _State] = {}
        self._answers: dict[str, bytes] = {}
        """Packed answers by call id, the oldest first."""
        self._bytes = 0
        self._max_bytes = max_bytes
        self._listed: frozenset[str] = frozenset()
        """Ids of the open calls in the last `resumed`."""
        self._last = 0
        """`seq` up to which messages are replayed after the last `resumed`."""

    def __repr__(self) -> str:
        return f"<ToolCalls {len(self._states)}, {len(self._answers)} answers of {self._bytes} bytes kept>"

    def take(self, call: ToolCall) -> bool:
        """Record a call that was received in sequence, and return whether it must be executed."""
        if call.call_id in self._states:
            return False
        # A replayed call that `resumed` did not list is closed: it was cancelled, or an earlier process answered it.
        is_over = call.seq <= self._last and call.call_id not in self._listed
        self._states[call.call_id] = _State.CLOSED if is_over else _State.OPEN
        return not is_over

    def cancelled(self, call_id: str) -> bool:
        """Record that a call was cancelled, and return whether the application has it."""
        if self._states.get(call_id, _State.CLOSED) is _State.CLOSED:
            return False
        self._states[call_id] = _State.CLOSED
        self._forget(call_id)
        return True

    def answered(self, call_id: str, packed: bytes) -> None:
        """Keep an answer that was sent, in case it is lost."""
        if self._states.get(call_id, _State.CLOSED) is _State.CLOSED:
            return
        self._states[call_id] = _State.ANSWERED
        self._forget(call_id)
        self._answers[call_id] = packed
        self._bytes += len(packed)
        while self._bytes > self._max_bytes and len(self._answers) > 1:
            self._forget(next(iter(self._answers)))

    def refused(self, call_id: str) -> None:
        """Record that the daemon refused the answer, so that the call is open again."""
        if self._states.get(call_id) is _State.ANSWERED:
            self._states[call_id] = _State.OPEN
            self._forget(call_id)

    def resumed(self, listed: Iterable[str], last: int) -> list[tuple[str, bytes]]:
        """Process the list of open calls in a `resumed`, which precedes the replay.

        Args:
            listed: Ids of the calls that are open in the daemon.
            last: `seq` up to which messages are replayed.

        Returns:
            Lost answers that must be sent again, each as call id and packed body.
        """
        self._listed = frozenset(listed)
        self._last = last
        for call_id in self._answers.keys() - self._listed:
            self._forget(call_id)  # the daemon has this answer
        answered = (id for id in self._states if id in self._listed and self._states[id] is _State.ANSWERED)
        return [(call_id, self._answers.get(call_id, FORGOTTEN_ANSWER)) for call_id in answered]

    def _forget(self, call_id: str) -> None:
        self._bytes -= len(self._answers.pop(call_id, b""))
