"""Life cycles of a run, of a worker and of a client's connection, as transition tables.

A **run** is queued, then executed by one worker, then ended. A run is ended only by the process that owns it: the
broker while it is queued, its worker once it was dispatched; then the broker can only ask. It is taken back from a
worker only if that worker is lost. An ended run is remembered for the resume window, so that a repeated id finds it,
and then forgotten.

A **worker** is ready from its first message, and leaving once it has said that it takes no more runs. A worker that
hangs is killed; one whose process has ended, as supervisord's side reports, is exited. Whatever happened before, a
worker is lost only when its link is down and everything that it had sent was read.

A **client** is active while it has unfinished runs. It is gone when a send finds no such peer, and abandoned when it
was gone for the grace period: `on_disconnect` has then decided about its runs. The next message from it, or to it,
brings it back.

`docs/states.md` shows the tables as pictures, drawn from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeVar


class RunState(Enum):
    """Where a run is."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDING = "ending"
    """Its worker was asked to end it; the terminal message is on its way."""
    ENDED = "ended"


class RunEvent(Enum):
    """What can happen to a run."""

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
    KILLED = "killed"
    """It made no progress for too long, and was sent SIGKILL."""
    EXITED = "exited"
    """Its process has ended; what it had sent is still being read."""
    LOST = "lost"


class WorkerEvent(Enum):
    """What can happen to a worker."""

    READY = "ready"
    LEAVE = "leave"
    KILL = "kill"
    EXIT = "exit"
    LOSE = "lose"


class ClientState(Enum):
    """Where a client's connection is."""

    IDLE = "idle"
    ACTIVE = "active"
    GONE = "gone"
    ABANDONED = "abandoned"
    """It was gone for too long: its runs were ended, but for those that it wants kept."""


class ClientEvent(Enum):
    """What can happen to a client's connection."""

    OPEN = "open"
    """It has one more unfinished request."""
    CLOSE = "close"
    """It has none left."""
    VANISH = "vanish"
    RETURN = "return"
    GIVE_UP = "give up"


class IllegalTransitionError(RuntimeError):
    """An event that the table does not allow in this state: a fault of the broker's, never of a client's."""


S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)

RUN: Final[Mapping[tuple[RunState, RunEvent], RunState]] = {
    (RunState.QUEUED, RunEvent.DISPATCH): RunState.RUNNING,
    (RunState.QUEUED, RunEvent.TERMINAL): RunState.ENDED,
    (RunState.RUNNING, RunEvent.ASK_TO_END): RunState.ENDING,
    (RunState.RUNNING, RunEvent.TERMINAL): RunState.ENDED,
    (RunState.RUNNING, RunEvent.REQUEUE): RunState.QUEUED,
    (RunState.RUNNING, RunEvent.LOSE): RunState.ENDED,
    (RunState.ENDING, RunEvent.TERMINAL): RunState.ENDED,
    (RunState.ENDING, RunEvent.LOSE): RunState.ENDED,
}
WORKER: Final[Mapping[tuple[WorkerState, WorkerEvent], WorkerState]] = {
    (WorkerState.READY, WorkerEvent.READY): WorkerState.READY,
    (WorkerState.READY, WorkerEvent.LEAVE): WorkerState.LEAVING,
    (WorkerState.READY, WorkerEvent.KILL): WorkerState.KILLED,
    (WorkerState.READY, WorkerEvent.EXIT): WorkerState.EXITED,
    (WorkerState.READY, WorkerEvent.LOSE): WorkerState.LOST,
    (WorkerState.LEAVING, WorkerEvent.LEAVE): WorkerState.LEAVING,
    (WorkerState.LEAVING, WorkerEvent.READY): WorkerState.LEAVING,
    (WorkerState.LEAVING, WorkerEvent.KILL): WorkerState.KILLED,
    (WorkerState.LEAVING, WorkerEvent.EXIT): WorkerState.EXITED,
    (WorkerState.LEAVING, WorkerEvent.LOSE): WorkerState.LOST,
    (WorkerState.KILLED, WorkerEvent.READY): WorkerState.KILLED,
    (WorkerState.KILLED, WorkerEvent.LEAVE): WorkerState.KILLED,
    (WorkerState.KILLED, WorkerEvent.EXIT): WorkerState.EXITED,
    (WorkerState.KILLED, WorkerEvent.LOSE): WorkerState.LOST,
    (WorkerState.EXITED, WorkerEvent.READY): WorkerState.EXITED,
    (WorkerState.EXITED, WorkerEvent.LEAVE): WorkerState.EXITED,
    (WorkerState.EXITED, WorkerEvent.LOSE): WorkerState.LOST,
}
CLIENT: Final[Mapping[tuple[ClientState, ClientEvent], ClientState]] = {
    (ClientState.IDLE, ClientEvent.OPEN): ClientState.ACTIVE,
    (ClientState.ACTIVE, ClientEvent.OPEN): ClientState.ACTIVE,
    (ClientState.ACTIVE, ClientEvent.CLOSE): ClientState.IDLE,
    (ClientState.ACTIVE, ClientEvent.VANISH): ClientState.GONE,
    (ClientState.GONE, ClientEvent.OPEN): ClientState.GONE,
    (ClientState.GONE, ClientEvent.CLOSE): ClientState.IDLE,
    (ClientState.GONE, ClientEvent.RETURN): ClientState.ACTIVE,
    (ClientState.GONE, ClientEvent.GIVE_UP): ClientState.ABANDONED,
    (ClientState.ABANDONED, ClientEvent.OPEN): ClientState.ABANDONED,
    (ClientState.ABANDONED, ClientEvent.CLOSE): ClientState.IDLE,
    (ClientState.ABANDONED, ClientEvent.RETURN): ClientState.ACTIVE,
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
