"""The calls of a run's client-side tools: none is run twice, and no answer is lost. No I/O.

A connection or a broker may go while calls are open. `resumed` then tells which calls still are; what
was sent before comes again. The contract's rule 7: a call that comes again is run only where it is
still open and never was; one that was answered is answered again with the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

from axon_zmq.events import ToolCall
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack

FORGOTTEN: Final = pack({"error": {"message": "the client no longer keeps its answer", "retry": False}})
"""What a lost answer becomes that was too old to be kept."""


class _State(Enum):
    OPEN = auto()
    """Handed over, to be answered."""
    ANSWERED = auto()
    CLOSED = auto()
    """Cancelled, or answered by an earlier process of this client's."""


class Calls:
    """The tool calls of one run.

    Args:
        most_bytes: Of answers that are kept; the oldest go first.
    """

    __slots__ = ("_answers", "_bytes", "_last", "_listed", "_most_bytes", "_states")

    def __init__(self, most_bytes: int = limits.REPLAY_BYTES_PER_RUN) -> None:
        self._states: dict[str, _State] = {}
        self._answers: dict[str, bytes] = {}
        """The packed answers, the oldest first."""
        self._bytes = 0
        self._most_bytes = most_bytes
        self._listed: frozenset[str] = frozenset()
        self._last = 0
        """`seq` up to which messages come again."""

    def __repr__(self) -> str:
        return f"<Calls {len(self._states)}, {len(self._answers)} answers of {self._bytes} bytes kept>"

    def take(self, call: ToolCall) -> bool:
        """Take a call that came in sequence; whether it is to be run."""
        if call.call_id in self._states:
            return False
        over = call.seq <= self._last and call.call_id not in self._listed
        self._states[call.call_id] = _State.CLOSED if over else _State.OPEN
        return not over

    def cancelled(self, call_id: str) -> bool:
        """The answer is no longer wanted; whether the call had been handed over."""
        if self._states.get(call_id, _State.CLOSED) is _State.CLOSED:
            return False
        self._states[call_id] = _State.CLOSED
        self._forget(call_id)
        return True

    def answered(self, call_id: str, packed: bytes) -> None:
        """An answer was sent: keep it, for it may be lost."""
        if self._states.get(call_id, _State.CLOSED) is _State.CLOSED:
            return
        self._states[call_id] = _State.ANSWERED
        self._forget(call_id)
        self._answers[call_id] = packed
        self._bytes += len(packed)
        while self._bytes > self._most_bytes and len(self._answers) > 1:
            self._forget(next(iter(self._answers)))

    def refused(self, call_id: str) -> None:
        """The answer was none: the call is as it was before."""
        if self._states.get(call_id) is _State.ANSWERED:
            self._states[call_id] = _State.OPEN
            self._forget(call_id)

    def resumed(self, listed: Iterable[str], last: int) -> list[tuple[str, bytes]]:
        """The daemon tells which calls are open, before it sends again what it sent up to `last`.

        Returns:
            The answers that were lost, to send again: call id and packed body.
        """
        self._listed = frozenset(listed)
        self._last = last
        for call_id in self._answers.keys() - self._listed:
            self._forget(call_id)  # it has arrived
        answered = (id for id in self._states if id in self._listed and self._states[id] is _State.ANSWERED)
        return [(call_id, self._answers.get(call_id, FORGOTTEN)) for call_id in answered]

    def _forget(self, call_id: str) -> None:
        self._bytes -= len(self._answers.pop(call_id, b""))
