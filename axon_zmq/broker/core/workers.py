"""All workers: their records and pools, and the detection of workers that hang."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.broker.core.pools import Pool, Run, Worker
from axon_zmq.broker.core.shares import Shares
from axon_zmq.broker.core.states import WorkerEvent, WorkerState
from axon_zmq.protocol import limits
from axon_zmq.protocol.backend import Ready
from axon_zmq.protocol.kinds import MODES, POOLS

HOUSEKEEPING_S: Final = 0.5
"""Seconds between two rounds of housekeeping, which finds workers that hang or are missing."""
_ALIVE: Final = frozenset((WorkerState.READY, WorkerState.LEAVING))


class Workers:
    """All registered workers, and a pool for each mode.

    Args:
        outgoing: Collects the effects.
        bounds: The limits that the operator may set.
        now: Seconds of a monotonic clock.
    """

    def __init__(self, outgoing: Outgoing, bounds: limits.BrokerLimits, now: float) -> None:
        free = bounds.max_waiting_per_client
        self.pools = {mode: Pool(mode=mode, empty_since=now, shares=Shares(free)) for mode in MODES}
        self.describes = Pool(
            mode="describe", empty_since=now, shares=Shares(free), takes_slots=False, modes=self.pools
        )
        """The pool of `describe` requests, which contains all workers: any of them can answer, in addition to its
        runs."""
        self._out = outgoing
        self._hang_seconds = bounds.hang_seconds
        self._free_waiting = free
        self._workers: dict[bytes, Worker] = {}
        self._housekept_at = now

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __contains__(self, routing_id: bytes | None) -> bool:
        return routing_id in self._workers

    def __repr__(self) -> str:
        return f"<Workers {', '.join(f'{mode}: {len(pool.workers)}' for mode, pool in self.pools.items())}>"

    def get(self, routing_id: bytes | None) -> Worker | None:
        """A registered worker, or None."""
        return None if routing_id is None else self._workers.get(routing_id)

    def routing_ids(self) -> tuple[bytes, ...]:
        """Routing ids of all registered workers."""
        return tuple(self._workers)

    # --- pools -----------------------------------------------------------------------------------------

    def pool_of(self, run: Run) -> Pool:
        """The pool whose workers take a run."""
        mode = POOLS.get(run.kind)
        return self.describes if mode is None else self.pools[mode]

    def all_pools(self) -> Iterator[Pool]:
        """The pool of each mode, and that of `describe`."""
        yield from self.pools.values()
        yield self.describes

    def waiting_bytes(self) -> int:
        """Bytes that all queued runs occupy, over all pools and clients."""
        return sum(pool.waiting_bytes for pool in self.all_pools())

    def waiting_bytes_of(self, client: bytes) -> int:
        """Bytes that the queued runs of a client occupy, over all pools."""
        return sum(pool.bytes_of_client(client) for pool in self.all_pools())

    def offer(self, worker: Worker) -> None:
        """Record that the number of runs that a worker can take has changed."""
        self.pools[worker.mode].offer(worker)

    def hold(self, worker: Worker, run: Run) -> None:
        """Add a run to a worker's runs."""
        worker.hold(run)
        self.pool_of(run).shares.add(run.client)
        self.offer(worker)

    def set_waiting(self, worker: Worker, run: Run, waits: bool) -> None:
        """Count a run of a worker as waiting for tools of its client, or as active again."""
        run.waits = waits
        worker.waiting += 1 if waits else -1
        self.pool_of(run).shares.set_waiting(run.client, waits)
        self.offer(worker)

    def release(self, run: Run) -> None:
        """Remove a run from its worker, which can then take another one; nothing happens if no worker has it."""
        worker = self._workers.get(run.worker) if run.worker is not None else None
        if worker is not None and worker.release(run):
            self._forget(run)
            self.offer(worker)

    def _forget(self, run: Run) -> None:
        self.pool_of(run).shares.remove(run.client, run.waits)
        run.waits = False

    # --- registration, changes and loss ----------------------------------------------------------------

    def add(self, routing_id: bytes, ready: Ready, now: float) -> Worker:
        """Add a worker that has registered for the first time; its mode must be one of `MODES`."""
        worker = Worker(
            routing_id=routing_id,
            mode=ready.mode,
            slots=ready.slots,
            name=ready.name,
            progress_at=now,
            pid=ready.pid,
            broken=ready.broken,
            free_waiting=self._free_waiting,
        )
        self._workers[routing_id] = worker
        self.pools[ready.mode].workers[routing_id] = self.describes.workers[routing_id] = worker
        self.offer(worker)
        return worker

    def remove(self, worker: Worker, now: float) -> None:
        """Remove a lost worker."""
        worker.step(WorkerEvent.LOSE)
        for run in worker.runs.values():
            self._forget(run)
        del self._workers[worker.routing_id]
        for pool in (self.pools[worker.mode], self.describes):
            del pool.workers[worker.routing_id]
            if not pool.workers:
                pool.empty_since = now

    def set_slots(self, worker: Worker, slots: int) -> None:
        """Set a worker's concurrency to the number that it reported."""
        worker.slots = slots
        self.offer(worker)

    def progressed(self, worker: Worker, now: float) -> bool:
        """Record that a worker has made progress; return whether it was excluded from new runs until now."""
        was_silent = not worker.makes_progress(now)
        worker.progress_at = now
        if was_silent:
            self.offer(worker)
        return was_silent

    def exited(self, name: str, pid: int) -> None:
        """Mark a worker whose process has ended, so that it gets no more runs."""
        for worker in self._workers.values():
            if (worker.name, worker.pid) == (name, pid) and worker.state is not WorkerState.EXITED:
                worker.step(WorkerEvent.EXIT)

    def is_name_used(self, name: str) -> bool:
        """Whether a worker process of this supervisord program is registered."""
        return any(worker.name == name for worker in self._workers.values())

    def all_leave(self) -> bool:
        """Whether workers are registered and none of them accepts new runs."""
        return bool(self._workers) and not any(self._ready())

    def successor_of(self, leaving: Worker) -> Worker | None:
        """The worker that takes over the ended runs of a leaving worker, or None if no worker is ready.

        Workers of the same mode are preferred, and among them the one with the most free slots.
        """
        return max(self._ready(), key=lambda worker: (worker.mode == leaving.mode, worker.free), default=None)

    def _ready(self) -> Iterator[Worker]:
        return (worker for worker in self._workers.values() if worker.state is WorkerState.READY)

    # --- time ------------------------------------------------------------------------------------------

    def skip_suspended_time(self, now: float) -> float:
        """Exclude time in which this process was stopped or the machine slept from the times without progress.

        The workers' `progress` messages from that time are still unread. Without this, all workers would seem to hang,
        and would be killed.

        Returns:
            Seconds that were skipped; 0.0 if housekeeping was not late by more than its interval.
        """
        away = now - self._housekept_at - HOUSEKEEPING_S
        self._housekept_at = now
        if away <= HOUSEKEEPING_S:
            return 0.0
        for worker in self._workers.values():
            worker.progress_at = min(now, worker.progress_at + away)
            self.offer(worker)
        return away

    def kill_hung(self, now: float) -> None:
        """Kill the workers that have made no progress for too long."""
        for worker in self._workers.values():
            silent = now - worker.progress_at
            if silent >= self._hang_seconds and worker.state in _ALIVE and worker.pid:
                worker.step(WorkerEvent.KILL)
                worker.killed_at = now
                self._out.kill(worker.routing_id, worker.name, worker.pid, is_linked=True)
                why = f"no progress for {silent:.0f} s (AXON_HANG_SECONDS: {self._hang_seconds:.0f})"
                text = f"killing worker {worker.name} (pid {worker.pid}) with {len(worker.runs)} runs: {why}"
                self._out.log(logging.ERROR, text)
