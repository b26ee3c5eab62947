"""Recovery: the knowledge of a restarted broker about runs from before its start.

When a new broker starts, it knows only the journal of its predecessor. During recovery, its first seconds, workers
register and report the runs that they hold. Messages about unknown runs are held back until recovery is over, because
the answer `unknown_request` could be wrong. When a client asks about an unknown run after that, two facts may be
certain:

- A run that **was queued** when the predecessor ended was never started, because the journal lists it.
- The broker knows every run that was sent after `_complete_since` and reached a worker. A run that was sent after this
  time and is unknown therefore never ran. At first, `_complete_since` is the start of this broker. Once all workers of
  the journal have registered and all handover files have been read, it is the time at which runs were last lost. It
  advances whenever a run is forgotten before its resume window has passed.
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
    """The state that an earlier broker left when it died or stopped, as read from the journal."""

    waiting: frozenset[RunKey] = frozenset()
    """Runs that were queued and had never been dispatched."""
    workers: Mapping[bytes, int] | None = None
    """Routing ids and pids of the workers that were registered; None without a valid journal."""
    lost_at: float = 0.0
    """When runs were last lost with a worker, in seconds of the machine's monotonic clock."""
    handover_files: tuple[str, ...] = ()
    """Names of the handover files that leaving workers have written and no worker has read."""


class Recovery:
    """Keeps track of what is certain about runs from before the start of this broker.

    Args:
        outgoing: Collects the effects.
        previous: The state that an earlier broker left.
        now: Seconds of a monotonic clock.
    """

    def __init__(self, outgoing: Outgoing, previous: PreviousState, now: float) -> None:
        self._out = outgoing
        self._previous = previous
        self._started_at = self._missing_since = now
        self._complete_since = now
        """Time since which the broker knows every run that reached a worker; see the module's docstring."""
        self._was_queued = set(previous.waiting)
        """Runs that were queued in the earlier broker and have not been sent again."""
        self._was_queued_until = now + limits.RESUME_WINDOW
        """When these are forgotten."""
        self._all_registered = False
        """Whether every worker of the journal has registered; set to False when `confirm_complete_history` has used
        it."""
        self._registered: set[bytes] = set()
        """Workers of the journal that have registered during recovery. A worker that has left again since stays in it,
        because its runs are known."""
        self._missing: dict[bytes, int] = {}
        """Routing ids and pids of the workers of the journal that have not registered, until they register or are
        killed."""
        self._forgot_at = 0.0
        """When a worker last forgot an ended run before its resume window had passed."""

    def __repr__(self) -> str:
        return f"<Recovery {len(self._was_queued)} were queued, {len(self._missing)} workers missing>"

    # --- unknown runs ----------------------------------------------------------------------------------

    def unknown_run(self, key: RunKey, now: float) -> RequestError:
        """The error for a run that is not known, with the facts that are certain about it."""
        # Ended runs are remembered for the resume window only, so nothing is certain about the time before that.
        certain = int(max(0.0, min(limits.RESUME_WINDOW, now - self._complete_since)) * 1000)
        never_ran = key in self._was_queued
        if never_ran:
            message = "the run was queued when the broker restarted and was never started; send the request again"
        else:
            message = "no run with this request id is known; it may have ended and been forgotten"
        details: dict[str, Any] = {"may_have_run": not never_ran, "never_ran_within_ms": certain}
        return RequestError("unknown_request", message, details)

    def request_received(self, key: RunKey) -> None:
        """Forget that a run was queued in the earlier broker, because its request was sent again."""
        if key in self._was_queued:
            self._was_queued.discard(key)
            self._out.forgotten(key)

    def run_forgotten(self, now: float) -> None:
        """Record that this broker has forgotten an ended run before its resume window had passed."""
        self._complete_since = now

    def forgotten_by_worker(self, forgot_at: float) -> None:
        """Record that a worker has forgotten an ended run early: the run may now be unknown although it ran."""
        self._forgot_at = max(self._forgot_at, forgot_at)
        self._complete_since = max(self._complete_since, forgot_at)

    # --- workers of the earlier broker -----------------------------------------------------------------

    def worker_registered(self, worker: bytes) -> None:
        """Record that a worker has registered."""
        self._missing.pop(worker, None)
        if worker in (self._previous.workers or {}):
            self._registered.add(worker)

    def finish(self, now: float) -> None:
        """End recovery: workers of the journal that have not registered count as lost now."""
        known = self._previous.workers or {}
        self._missing = {worker: pid for worker, pid in known.items() if worker not in self._registered}
        for worker in self._missing:
            self._out.unregistered(worker, now)
        self._all_registered = self._previous.workers is not None and not self._missing

    def confirm_complete_history(self) -> None:
        """Use the journal's knowledge about earlier runs, because all handover files have been read.

        This takes effect once, and only if every worker of the journal has registered.
        """
        if self._all_registered:
            self._all_registered = False
            # If `_complete_since` has changed since the start, a run was forgotten early after the start. That time is
            # not earlier than the times below, so it remains.
            if self._complete_since == self._started_at:
                self._complete_since = max(self._previous.lost_at, self._forgot_at)

    def skip_time(self, seconds: float) -> None:
        """Extend the time that missing workers have to register, because this process was suspended meanwhile."""
        self._missing_since += seconds

    def take_overdue(self, now: float, patience: float) -> Mapping[bytes, int]:
        """Return the workers of the journal that have not registered in time; each of them is returned once.

        Args:
            now: The time.
            patience: Seconds that a worker may take to register.

        Returns:
            Their routing ids and pids.
        """
        if not self._missing or now - self._missing_since < patience:
            return {}
        missing, self._missing = self._missing, {}
        return missing

    # --- time ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Forget the earlier broker's queue after one resume window, the time that its clients had to ask about it."""
        if self._was_queued and now >= self._was_queued_until:
            for key in self._was_queued:
                self._out.forgotten(key)
            self._was_queued.clear()
