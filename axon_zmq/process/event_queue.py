"""Feeds a sans-I/O core with events, one at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Event = TypeVar("Event")
Effect = TypeVar("Effect")


class EventQueue(Generic[Event, Effect]):
    """Hands events to a core and applies its effects.

    Applying an effect may cause an event: a send that finds no client, for instance. Such an event waits until all
    effects before it were applied, so that the core never sees an event in the middle of another one's effects.

    Args:
        receive: The core's: takes an event and the time, returns effects.
        clock: Returns the time.
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
        """Events that the core has not taken; the effects of the first one are being applied."""
        self._failed = False
        """An exception came out of the core or of an effect. The core may be half-way through an event: it takes no
        more, and the process is about to end."""

    def __repr__(self) -> str:
        return f"<EventQueue {len(self._events)} wait>"

    def put(self, event: Event) -> None:
        """Have the core take an event, now or after the one whose effects are being applied."""
        if self._failed:
            return
        self._events.append(event)
        if len(self._events) > 1:
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
