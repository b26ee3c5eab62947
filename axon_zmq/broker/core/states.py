"""Life cycles of a run, of a worker and of a client's connection, as transition tables.

A **run** is queued, then executed by one worker, then ended. Only the process that owns a run ends it: the broker while
the run is queued, and its worker after it was dispatched. From then on the broker can only ask the worker to end it. A
run is taken back from a worker only if that worker is lost. An ended run is remembered for the resume window, so that a
repeated request id finds it, and is then forgotten. A running run becomes waiting while it only waits for tools that
its client executes: it then leaves its slot to other runs.

A **worker** is ready from its first message, and leaving after its message `leaving`. It is killed if it hangs, and
exited if the event listener reports that its process has ended. In any of these states, it becomes lost only when its
link is down and all messages that it had sent have been read.

A **client** is active while it has unfinished runs. It is gone when a send does not reach it, and abandoned when it has
been gone for the grace period: then its runs are ended, except those with `on_disconnect: "keep"`. The next message
from or to the client makes it active again.

`python -m tests.support.pictures` draws the tables for `docs/states.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeVar


class RunState(Enum):
    """States of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    """The run only waits for tools of its client, and other runs use its slot."""
    ENDING = "ending"
    """The broker has asked the worker to end the run, and waits for its terminal message."""
    ENDED = "ended"


class RunEvent(Enum):
    """Events in the life of a run."""

    DISPATCH = "dispatch"
    WAIT = "wait"
    """The worker reports that the run only waits for tools of its client."""
    CONTINUE = "continue"
    """The worker reports that the client has answered, so that the run needs a slot again."""
    ASK_TO_END = "ask to end"
    TERMINAL = "terminal"
    """The terminal message was sent: by the worker or, while the run was queued, by the broker."""
    REQUEUE = "requeue"
    """The worker was lost before anything was relayed, and another attempt is allowed."""
    LOSE = "lose"
    """The worker was lost, and the broker ends the run."""


class WorkerState(Enum):
    """States of a worker."""

    READY = "ready"
    LEAVING = "leaving"
    KILLED = "killed"
    """The worker made no progress for too long and was sent SIGKILL."""
    EXITED = "exited"
    """The process has ended; messages that it had sent may still be unread."""
    LOST = "lost"


class WorkerEvent(Enum):
    """Events in the life of a worker."""

    READY = "ready"
    LEAVE = "leave"
    KILL = "kill"
    EXIT = "exit"
    LOSE = "lose"


class ClientState(Enum):
    """States of a client's connection."""

    IDLE = "idle"
    ACTIVE = "active"
    GONE = "gone"
    ABANDONED = "abandoned"
    """The client was gone for too long: its runs were ended, except those with `on_disconnect: "keep"`."""


class ClientEvent(Enum):
    """Events in the life of a client's connection."""

    OPEN = "open"
    """The client has one more unfinished run."""
    CLOSE = "close"
    """The client's last unfinished run has ended."""
    VANISH = "vanish"
    RETURN = "return"
    GIVE_UP = "give up"


class IllegalTransitionError(RuntimeError):
    """An event that the table does not allow in this state. This is a bug in the broker, never a client's error."""


S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)

RUN: Final[Mapping[tuple[RunState, RunEvent], RunState]] = {
    (RunState.QUEUED, RunEvent.DISPATCH): RunState.RUNNING,
    (RunState.QUEUED, RunEvent.TERMINAL): RunState.ENDED,
    (RunState.RUNNING, RunEvent.WAIT): RunState.WAITING,
    (RunState.RUNNING, RunEvent.ASK_TO_END): RunState.ENDING,
    (RunState.RUNNING, RunEvent.TERMINAL): RunState.ENDED,
    (RunState.RUNNING, RunEvent.REQUEUE): RunState.QUEUED,
    (RunState.RUNNING, RunEvent.LOSE): RunState.ENDED,
    (RunState.WAITING, RunEvent.CONTINUE): RunState.RUNNING,
    (RunState.WAITING, RunEvent.ASK_TO_END): RunState.ENDING,
    (RunState.WAITING, RunEvent.TERMINAL): RunState.ENDED,
    (RunState.WAITING, RunEvent.LOSE): RunState.ENDED,
    (RunState.ENDING, RunEvent.TERMINAL): RunState.ENDED,
    (RunState.ENDING, RunEvent.LOSE): RunState.ENDED,
}
# A worker sends `ready` again after each reconnect, and the messages of a dead worker are still read after EXIT, so
# READY and LEAVE are allowed in every state except LOST.
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
    """Return the state after an event.

    Raises:
        IllegalTransitionError: The table does not allow the event in this state.
    """
    try:
        return table[state, event]
    except KeyError:
        raise IllegalTransitionError(f"{event.name} in state {state.name}") from None
