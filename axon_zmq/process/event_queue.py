"""Passes events to a sans-I/O core, one at a time, and applies the effects that it returns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Event = TypeVar("Event")
Effect = TypeVar("Effect")


class EventQueue(Generic[Event, Effect]):
    """Passes events to a core and applies its effects, in order.

    Applying an effect may cause another event, for example when a send finds that the client is gone. Such an event is
    processed after all effects of the current event have been applied, so that the core never receives an event while
    the effects of an earlier one are incomplete.

    Args:
        receive: The core's method that takes an event and the time, and returns effects.
        clock: Returns the time, in seconds.
        apply: Applies one effect; it may call `put`.
    """

    def __init__(
        self,
        receive: Callable[[Event, float], Sequence[Effect]],
        clock: Callable[[], float],
        apply: Callable[[Effect], None],
    ) -> None:
        self._receive = receive
        self._clock = clock
        self._apply = apply
        self._events: deque[Event] = deque()
        """Events to process; the first one is being processed: the core has it, or its effects are being applied."""
        self._failed = False
        """Whether the core or an effect has raised an exception. The core may then have processed an event in part, so
        it gets no more events; the process is about to exit."""

    def __repr__(self) -> str:
        return f"<EventQueue {len(self._events)} events>"

    def put(self, event: Event) -> None:
        """Process an event: now, or after the current event if this is called while one is being processed."""
        if self._failed:
            return
        self._events.append(event)
        if len(self._events) > 1:  # called by an effect; the loop below, further up the stack, will process it
            return
        try:
            while self._events:
                for effect in self._receive(self._events[0], self._clock()):
                    self._apply(effect)
                self._events.popleft()
        except BaseException:
            self._failed = True
            self._events.clear()
            raise
