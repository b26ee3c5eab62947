"""Which runs of a worker hold one of its slots, and which wait for one.

A run holds a slot while its code executes. While it only waits for tools that its client executes, it leaves the slot
to other runs, and it takes one again before its code continues. A run that continues comes before new runs. Among
runs that continue, and among new runs, the clients take turns.

The broker sends a run only if a slot is free. A run may still arrive when none is, because the broker had sent it
before it knew that a waiting run continues: then the new run waits here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import Enum

from axon_zmq.worker.core.active_run import ActiveRun


class Slot(Enum):
    """The relation of a run to the slots of its worker."""

    NONE = "none"
    """The run is ending or has ended: it neither holds a slot nor waits for one."""
    WANTED = "wanted"
    """The run is new or was answered by its client, and waits for a slot."""
    HELD = "held"
    LEFT = "left"
    """The run only waits for tools of its client, and has left its slot to other runs."""


class Slots:
    """The slots of a worker, and the runs that wait for one.

    Args:
        count: Number of slots.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._stuck = 0
        """Number of slots that the code of ended runs occupies."""
        self._held = 0
        """Number of slots that unfinished runs hold."""
        self._continuing = _Turns()
        self._new = _Turns()
        self._slot_of: dict[ActiveRun, Slot] = {}

    def __repr__(self) -> str:
        waiting = f"{len(self._continuing)} continuing and {len(self._new)} new runs wait for one"
        return f"<Slots {self._held} of {self._count} held, {self._stuck} stuck; {waiting}>"

    @property
    def available(self) -> int:
        """Number of slots that are not stuck, which the worker reports to the broker."""
        # Runs that had left their slots may be stuck, too, so that there are more stuck runs than slots.
        return max(0, self._count - self._stuck)

    @property
    def held(self) -> int:
        """Number of slots that unfinished runs hold."""
        return self._held

    def of(self, run: ActiveRun) -> Slot:
        """Return the relation of a run to the slots."""
        return self._slot_of.get(run, Slot.NONE)

    def start(self, run: ActiveRun) -> bool:
        """Give a new run a slot, or let it wait for one; return whether it has got one."""
        return self._want(run, self._new)

    def leave(self, run: ActiveRun) -> None:
        """Take the slot of a run that only waits for tools of its client; it must hold one."""
        self._slot_of[run] = Slot.LEFT
        self._held -= 1

    def take_again(self, run: ActiveRun) -> bool:
        """Give a run that has left its slot another one, or let it wait for one; return whether it has got one."""
        return self._want(run, self._continuing)

    def end(self, run: ActiveRun) -> None:
        """Take the slot of a run that has ended, if it holds one, and let it no longer wait for one."""
        slot = self._slot_of.pop(run, None)
        if slot is Slot.HELD:
            self._held -= 1
        elif slot is Slot.WANTED:
            self._continuing.remove(run)
            self._new.remove(run)

    def change_stuck(self, by: int) -> None:
        """Count one stuck slot more (1) or less (-1)."""
        self._stuck += by

    def grant(self) -> ActiveRun | None:
        """Give a free slot to the next run that waits for one, and return the run; None if there is no such run."""
        waiting = self._continuing or self._new
        if not waiting or not self._has_room():
            return None
        run = waiting.pop()
        self._hold(run)
        return run

    def _want(self, run: ActiveRun, waiting: _Turns) -> bool:
        if self._has_room() and not self._continuing and not waiting:
            self._hold(run)
            return True
        self._slot_of[run] = Slot.WANTED
        waiting.push(run)
        return False

    def _hold(self, run: ActiveRun) -> None:
        self._slot_of[run] = Slot.HELD
        self._held += 1

    def _has_room(self) -> bool:
        # At least one run executes even if all slots are stuck: a waiting run that was answered must not wait for code
        # that may never return.
        return self._held < max(1, self.available)


class _Turns:
    """Runs that wait; clients take turns, and the runs of one client are first in, first out.

    This is not a `FairQueue`, because that counts bytes, and the size of a run may change while it waits here.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[bytes, deque[ActiveRun]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def __bool__(self) -> bool:
        return bool(self._clients)

    def push(self, run: ActiveRun) -> None:
        """Add a run."""
        self._clients.setdefault(run.client, deque()).append(run)

    def pop(self) -> ActiveRun:
        """Remove and return the next run; its client goes to the end of the round."""
        client, runs = self._clients.popitem(last=False)
        run = runs.popleft()
        if runs:
            self._clients[client] = runs
        return run

    def remove(self, run: ActiveRun) -> None:
        """Remove a run, if it is here."""
        runs = self._clients.get(run.client)
        if runs is not None and run in runs:
            runs.remove(run)
            if not runs:
                del self._clients[run.client]
