"""Life cycles of a request and of a worker, as transition tables.

A **request** is queued, then held by one worker, then ended; who ends it is whoever holds it. While
queued that is the broker; once dispatched it is the worker, and the broker can only ask. It is taken
back from a worker only when that worker is lost. An ended request is remembered for the resume window,
so that a repeated id finds it, and then forgotten.

A **worker** is ready from its first message, leaving once it has said that it takes no more, and lost
when its link is down and everything that it had sent was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeVar


class RequestState(Enum):
    """Where a request is."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDING = "ending"
    """Its worker was asked to end it; the terminal message is on its way."""
    ENDED = "ended"


class RequestEvent(Enum):
    """What can happen to a request."""

    DISPATCH = "dispatch"
    ASK_TO_END = "ask to end"
    TERMINAL = "terminal"
    """Its terminal message, from its worker or, while queued, from the broker."""
    REQUEUE = "requeue"
    """Its worker was lost before anything was relayed, and another attempt is allowed."""
    LOSE = "lose"
    """Its worker was lost, and the broker ends it."""


class WorkerState(Enum):
    """Where a worker is."""

    READY = "ready"
    LEAVING = "leaving"
    LOST = "lost"


class WorkerEvent(Enum):
    """What can happen to a worker."""

    READY = "ready"
    LEAVE = "leave"
    LOSE = "lose"


class IllegalTransitionError(RuntimeError):
    """An event that the table does not allow in this state: a fault of the broker's, never of a client's."""


S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)

REQUEST: Final[Mapping[tuple[RequestState, RequestEvent], RequestState]] = {
    (RequestState.QUEUED, RequestEvent.DISPATCH): RequestState.RUNNING,
    (RequestState.QUEUED, RequestEvent.TERMINAL): RequestState.ENDED,
    (RequestState.RUNNING, RequestEvent.ASK_TO_END): RequestState.ENDING,
    (RequestState.RUNNING, RequestEvent.TERMINAL): RequestState.ENDED,
    (RequestState.RUNNING, RequestEvent.REQUEUE): RequestState.QUEUED,
    (RequestState.RUNNING, RequestEvent.LOSE): RequestState.ENDED,
    (RequestState.ENDING, RequestEvent.TERMINAL): RequestState.ENDED,
    (RequestState.ENDING, RequestEvent.LOSE): RequestState.ENDED,
}
WORKER: Final[Mapping[tuple[WorkerState, WorkerEvent], WorkerState]] = {
    (WorkerState.READY, WorkerEvent.READY): WorkerState.READY,
    (WorkerState.READY, WorkerEvent.LEAVE): WorkerState.LEAVING,
    (WorkerState.READY, WorkerEvent.LOSE): WorkerState.LOST,
    (WorkerState.LEAVING, WorkerEvent.LEAVE): WorkerState.LEAVING,
    (WorkerState.LEAVING, WorkerEvent.READY): WorkerState.LEAVING,
    (WorkerState.LEAVING, WorkerEvent.LOSE): WorkerState.LOST,
}


def step(table: Mapping[tuple[S, E], S], state: S, event: E) -> S:
    """The state after an event.

    Raises:
        IllegalTransitionError: The table has no such row.
    """
    try:
        return table[state, event]
    except KeyError:
        raise IllegalTransitionError(f"{event.name} in state {state.name}") from None
