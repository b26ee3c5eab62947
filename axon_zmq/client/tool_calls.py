"""The tool calls of one run: none is executed twice, and no answer is lost. No I/O.

A connection or a broker may be lost while calls are open. `resumed` then lists the calls that are still open, and
messages are replayed. The protocol's rule 7: a replayed call is executed only if it is still open and was never
executed; a call that was answered is answered again with the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

from axon_zmq.events import ToolCall
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack

FORGOTTEN_ANSWER: Final = pack({"error": {"message": "the client no longer keeps its answer", "retry": False}})
"""Sent again in place of a lost answer that was too old to be kept."""


class _State(Enum):
    OPEN = auto()
    """Handed to the application, which must answer it."""
    ANSWERED = auto()
    CLOSED = auto()
    """Cancelled, or answered by an earlier process of this client."""


class ToolCalls:
    """The tool calls of one run.

    Args:
        most_bytes: Bytes of answers that are kept; over it the oldest are dropped.
    """

    __slots__ = ("_answers", "_bytes", "_last", "_listed", "_most_bytes", "_states")

    def __init__(self, most_bytes: int = limits.REPLAY_BYTES_PER_RUN) -> None:
        self._states: dict[str, _State] = {}
        self._answers: dict[str, bytes] = {}
        """The packed answers by call id, the oldest first."""
        self._bytes = 0
        self._most_bytes = most_bytes
        self._listed: frozenset[str] = frozenset()
        self._last = 0
        """`seq` up to which messages are replayed."""

    def __repr__(self) -> str:
        return f"<ToolCalls {len(self._states)}, {len(self._answers)} answers of {self._bytes} bytes kept>"

    def take(self, call: ToolCall) -> bool:
        """Note a call that arrived in sequence; whether it must be executed."""
        if call.call_id in self._states:
            return False
        over = call.seq <= self._last and call.call_id not in self._listed
        self._states[call.call_id] = _State.CLOSED if over else _State.OPEN
        return not over

    def cancelled(self, call_id: str) -> bool:
        """Note that an answer is no longer wanted; whether the call was handed to the application."""
        if self._states.get(call_id, _State.CLOSED) is _State.CLOSED:
            return False
        self._states[call_id] = _State.CLOSED
        self._forget(call_id)
        return True

    def answered(self, call_id: str, packed: bytes) -> None:
        """Keep an answer that was sent, because it may be lost."""
        if self._states.get(call_id, _State.CLOSED) is _State.CLOSED:
            return
        self._states[call_id] = _State.ANSWERED
        self._forget(call_id)
        self._answers[call_id] = packed
        self._bytes += len(packed)
        while self._bytes > self._most_bytes and len(self._answers) > 1:
            self._forget(next(iter(self._answers)))

    def refused(self, call_id: str) -> None:
        """Note that the daemon refused the answer: the call is open again."""
        if self._states.get(call_id) is _State.ANSWERED:
            self._states[call_id] = _State.OPEN
            self._forget(call_id)

    def resumed(self, listed: Iterable[str], last: int) -> list[tuple[str, bytes]]:
        """Process the daemon's list of open calls, which precedes the replay of messages up to `last`.

        Returns:
            The answers that were lost and must be sent again: call id and packed body.
        """
        self._listed = frozenset(listed)
        self._last = last
        for call_id in self._answers.keys() - self._listed:
            self._forget(call_id)  # it has arrived
        answered = (id for id in self._states if id in self._listed and self._states[id] is _State.ANSWERED)
        return [(call_id, self._answers.get(call_id, FORGOTTEN_ANSWER)) for call_id in answered]

    def _forget(self, call_id: str) -> None:
        self._bytes -= len(self._answers.pop(call_id, b""))
