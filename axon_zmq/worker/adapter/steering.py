"""What a client says to a run under way, through pydantic-ai's `enqueue`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from pydantic_ai import RunContext
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import UserContent

from axon_zmq.errors import RequestError, UnavailableError
from axon_zmq.protocol import limits
from axon_zmq.protocol.requests import Steer, invalid
from axon_zmq.worker.adapter import compat, messages

MAX_STEERS: Final = 100
"""`steer`s that a run has not heard yet."""
MAX_STEER_BYTES: Final = 4 * limits.MIB
"""Bytes of all `steer`s of a run: they stay in its history."""


class Steering:
    """One run's ear. Thread-safe: the run may have a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._context: RunContext[object] | None = None
        self._early: list[tuple[Sequence[UserContent], Literal["asap", "when_idle"]]] = []
        """What came before the run had begun."""
        self._bytes = 0

    def attached_to(self, metadata: dict[str, object] | None) -> Callable[[RunContext[object]], dict[str, Any] | None]:
        """The run's metadata as a function, which pydantic-ai gives the run's context when it begins.

        A capability would get the context too, and cost 300 µs a run (pydantic-ai 2.62).
        """

        return compat.metadata_that_shows_context(metadata, self._begin)

    def _begin(self, context: RunContext[object]) -> None:
        with self._lock:
            early, self._early = self._early, []
            self._context = context
            for parts, priority in early:
                _enqueue(context, parts, priority)

    def say(self, steer: Steer, size: int) -> None:
        """Say something to the run; `size` is its bytes.

        Raises:
            RequestError: `invalid_request`, where the run has its answer already, or pydantic-ai refuses a part.
            UnavailableError: `overloaded`, where it has much to hear already.
        """
        content = messages.prompt(steer.content, "/content")
        parts = [content] if isinstance(content, str) else content
        if not parts:
            raise invalid([("/content", "is empty: say something")])
        with self._lock:
            waiting = len(self._early) if self._context is None else compat.pending_message_count(self._context)
            if waiting >= MAX_STEERS or self._bytes + size > MAX_STEER_BYTES:
                raise UnavailableError("overloaded", "the run has not heard what was said before, or too much was said")
            self._bytes += size
            if self._context is None:
                self._early.append((parts, steer.priority))
            else:
                _enqueue(self._context, parts, steer.priority)


def _enqueue(context: RunContext[object], parts: Sequence[UserContent], priority: Literal["asap", "when_idle"]) -> None:
    try:
        context.enqueue(*parts, priority=priority)
    except UserError:
        raise RequestError("invalid_request", "too late: the run has its answer already") from None
