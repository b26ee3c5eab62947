"""What a client says to a run under way, through pydantic-ai's `enqueue`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic_ai import RunContext
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import UserContent

from axon_zmq.errors import RequestError
from axon_zmq.messages import Steer
from axon_zmq.worker import history


class Steering:
    """One run's ear. Thread-safe: the run may have a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._context: RunContext[Any] | None = None
        self._early: list[tuple[Sequence[UserContent], Literal["asap", "when_idle"]]] = []
        """What came before the run had begun."""

    def attached_to(self, metadata: dict[str, Any] | None) -> Callable[[RunContext[Any]], dict[str, Any] | None]:
        """The run's metadata as a function, which pydantic-ai gives the run's context when it begins.

        A capability would get the context too, and cost 300 µs a run (pydantic-ai 2.62).
        """

        def begun(context: RunContext[Any]) -> dict[str, Any] | None:
            with self._lock:
                early, self._early = self._early, []
                self._context = context
            for parts, priority in early:
                _enqueue(context, parts, priority)
            return metadata

        return begun

    def say(self, steer: Steer) -> None:
        """Say something to the run.

        Raises:
            RequestError: `invalid_request`, where the run has its answer already, or pydantic-ai refuses a part.
        """
        content = history.prompt(steer.content, "/content")
        parts = [content] if isinstance(content, str) else content or []
        with self._lock:
            if self._context is None:
                self._early.append((parts, steer.priority))
                return
        _enqueue(self._context, parts, steer.priority)


def _enqueue(context: RunContext[Any], parts: Sequence[UserContent], priority: Literal["asap", "when_idle"]) -> None:
    try:
        context.enqueue(*parts, priority=priority)
    except UserError:
        raise RequestError("invalid_request", "too late: the run has its answer already") from None
