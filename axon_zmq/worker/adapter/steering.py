"""User messages for a run that is executing, passed on with pydantic-ai's `enqueue`."""

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
"""Maximum number of `steer` messages of a run that have not been delivered to the model."""
MAX_STEER_BYTES: Final = 4 * limits.MIB
"""Maximum number of bytes in all `steer` messages of a run, delivered or not: all of them stay in its message
history."""


class Steering:
    """The queue of user messages for one run. Thread-safe, because `run_sync` executes each run in another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._context: RunContext[object] | None = None
        """The context of the run; None before pydantic-ai has started it."""
        self._early: list[tuple[Sequence[UserContent], Literal["asap", "when_idle"]]] = []
        """Messages that arrived before pydantic-ai had started the run."""
        self._bytes = 0

    def attach_to(self, metadata: dict[str, object] | None) -> Callable[[RunContext[object]], dict[str, Any] | None]:
        """Return the run's metadata in the form of a function, through which this queue gets the run's context.

        `enqueue` is a method of the context. A capability would get the context too, but costs 300 µs for each run
        (pydantic-ai 2.62).
        """

        return compat.metadata_that_shows_context(metadata, self._begin)

    def _begin(self, context: RunContext[object]) -> None:
        # The lock also covers the calls of pydantic-ai's `enqueue`: a message that arrives in another thread at this
        # moment must neither be left in `_early` nor overtake the messages there.
        with self._lock:
            early, self._early = self._early, []
            self._context = context
            for parts, priority in early:
                _enqueue(context, parts, priority)

    def enqueue(self, steer: Steer, size: int) -> None:
        """Add a message to the queue.

        Args:
            steer: The message.
            size: Its size in bytes.

        Raises:
            RequestError: `invalid_request` if the content is empty, pydantic-ai refuses a part, or the run has its
                answer already.
            UnavailableError: `overloaded` if the run has too many or too large messages.
        """
        content = messages.prompt(steer.content, "/content")
        parts = [content] if isinstance(content, str) else content
        if not parts:
            raise invalid([("/content", "is empty: send text or at least one part")])
        with self._lock:
            waiting = len(self._early) if self._context is None else compat.pending_message_count(self._context)
            if waiting >= MAX_STEERS:
                text = f"{waiting} messages wait for the model (limit {MAX_STEERS}); send again after its next response"
                raise UnavailableError("overloaded", text)
            if self._bytes + size > MAX_STEER_BYTES:
                text = f"all messages to this run would have {self._bytes + size} bytes (limit {MAX_STEER_BYTES})"
                raise UnavailableError("overloaded", text)
            self._bytes += size
            if self._context is None:
                self._early.append((parts, steer.priority))
            else:
                _enqueue(self._context, parts, steer.priority)


def _enqueue(context: RunContext[object], parts: Sequence[UserContent], priority: Literal["asap", "when_idle"]) -> None:
    try:
        context.enqueue(*parts, priority=priority)
    except UserError:
        raise RequestError("invalid_request", "too late: the run already has its answer") from None
