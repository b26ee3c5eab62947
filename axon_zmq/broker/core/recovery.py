"""What a restarted broker knows about the time before it started.

A new broker starts with nothing but the journal of its predecessor. For the first seconds it recovers: workers register
with the runs that they hold, and requests about runs that it does not know are held back, because the answer "unknown"
would be wrong. `Recovery` keeps what follows from all that for a client that asks about an unknown run later:

- A run that **was queued** when the predecessor ended never started, which is certain: the journal says so.
- A run that was sent after `complete_since` and reached a worker is known here. So an unknown run that is younger than
  that never ran. At first that is the start of this broker; it becomes the time of the last loss once every worker that
  the journal names has registered and every handover file was read, and it moves on whenever a run is forgotten early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.errors import RequestError
from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import RunKey


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousState:
    """What an earlier broker left behind when it died or stopped."""

    waiting: frozenset[RunKey] = frozenset()
    """Runs that waited in its queues and were never started."""
    workers: Mapping[bytes, int] | None = None
    """Routing ids of the workers that were registered with it, and the pid of each; None: nothing is known."""
    lost_at: float = 0.0
    """When runs were last lost with a worker, in seconds of the machine's monotonic clock."""
    handover_files: tuple[str, ...] = ()
    """Files of ended runs that leaving workers have written and no worker has read."""


class Recovery:
    """What is certain about runs from before this broker.

    Args:
        outgoing: Where effects go.
        previous: What an earlier broker left.
        now: Seconds of a monotonic clock.
    """

    def __init__(self, outgoing: Outgoing, previous: PreviousState, now: float) -> None:
        self._out = outgoing
        self._previous = previous
        self._started_at = self._missing_since = now
        self._complete_since = now
        self._was_queued = set(previous.waiting)
        self._was_queued_until = now + limits.RESUME_WINDOW
        self._all_registered = False
        """Every worker of the journal has registered; False again once `confirm_complete_history` has used it."""
        self._registered: set[bytes] = set()
        """Workers that have registered during recovery. Some may have left again: their runs are known all the same."""
        self._missing: dict[bytes, int] = {}
        """Workers of the journal that have not registered, and their pids, until they register or are killed."""
        self._forgot_at = 0.0
        """When a worker last dropped an ended run before its time, for lack of room."""

    def __repr__(self) -> str:
        return f"<Recovery {len(self._was_queued)} were queued, {len(self._missing)} workers missing>"

    # --- what is certain -------------------------------------------------------------------------------

    def unknown_run(self, key: RunKey, now: float) -> RequestError:
        """The error for a run that is not remembered, with what is certain about it."""
        certain = int(max(0.0, min(limits.RESUME_WINDOW, now - self._complete_since)) * 1000)
        never_ran = key in self._was_queued
        why = "it waited when the daemon was restarted: send it again" if never_ran else "or no longer"
        details: dict[str, Any] = {"may_have_run": not never_ran, "never_ran_within_ms": certain}
        return RequestError("unknown_request", f"no run with this id is known, {why}", details)

    def request_received(self, key: RunKey) -> None:
        """A request has arrived; if it was queued before, that is no longer of interest."""
        if key in self._was_queued:
            self._was_queued.discard(key)
            self._out.forgotten(key)

    def run_forgotten(self, now: float) -> None:
        """This broker has forgotten an ended run before its resume window was over."""
        self._complete_since = now

    def forgotten_by_worker(self, forgot_at: float) -> None:
        """A worker has dropped an ended run before its time: it is no longer known that it ran."""
        self._forgot_at = max(self._forgot_at, forgot_at)
        self._complete_since = max(self._complete_since, forgot_at)

    # --- workers of the predecessor --------------------------------------------------------------------

    def worker_registered(self, worker: bytes) -> None:
        """A worker has registered."""
        self._missing.pop(worker, None)
        if worker in (self._previous.workers or {}):
            self._registered.add(worker)

    def finish(self, now: float) -> None:
        """No more workers are waited for: those that have not registered count as lost."""
        known = self._previous.workers or {}
        self._missing = {worker: pid for worker, pid in known.items() if worker not in self._registered}
        for worker in self._missing:
            self._out.unregistered(worker, now)
        self._all_registered = self._previous.workers is not None and not self._missing

    def confirm_complete_history(self) -> None:
        """All workers have registered and all handover files were read: earlier runs are known, too."""
        if self._all_registered:
            self._all_registered = False
            if self._complete_since == self._started_at:
                self._complete_since = max(self._previous.lost_at, self._forgot_at)

    def skip_time(self, seconds: float) -> None:
        """This process was stopped for a while, in which no worker could register."""
        self._missing_since += seconds

    def take_overdue(self, now: float, patience: float) -> Mapping[bytes, int]:
        """Workers of the journal that have not registered for too long, and their pids; each is returned once.

        Args:
            now: The time.
            patience: Seconds that a worker may take.
        """
        if not self._missing or now - self._missing_since < patience:
            return {}
        missing, self._missing = self._missing, {}
        return missing

    # --- time ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Forget the queue of the predecessor once its clients have had a resume window to ask."""
        if self._was_queued and now >= self._was_queued_until:
            for key in self._was_queued:
                self._out.forgotten(key)
            self._was_queued.clear()
