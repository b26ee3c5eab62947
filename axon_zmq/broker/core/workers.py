"""The broker's workers: their records, the pools they serve, and which of them hang."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.broker.core.pools import Pool, Run, Worker
from axon_zmq.broker.core.states import WorkerEvent, WorkerState
from axon_zmq.protocol.backend import Ready
from axon_zmq.protocol.kinds import MODES, POOLS

HOUSEKEEPING_S: Final = 0.5
"""Seconds between two looks at what only time changes. Time in which the broker did not look, because it was stopped or
the machine slept, does not count against workers."""
_ALIVE: Final = frozenset((WorkerState.READY, WorkerState.LEAVING))


class Workers:
    """All registered workers, and a pool for each mode.

    Args:
        outgoing: Where effects go.
        hang_seconds: How long a worker may make no progress until it is killed.
        now: Seconds of a monotonic clock.
    """

    def __init__(self, outgoing: Outgoing, hang_seconds: float, now: float) -> None:
        self.pools = {mode: Pool(mode=mode, empty_since=now) for mode in MODES}
        self.describes = Pool(mode="describe", empty_since=now, takes_slots=False)
        """Waiting `describe` requests: any worker answers them, beside its runs."""
        self._out = outgoing
        self._hang_seconds = hang_seconds
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
        """A registered worker."""
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
        """Bytes that wait, over all pools and clients."""
        return sum(pool.waiting_bytes for pool in self.all_pools())

    def offer(self, worker: Worker) -> None:
        """A worker can take more runs, or fewer, than before."""
        self.pools[worker.mode].offer(worker)

    def release(self, run: Run) -> None:
        """A run has ended: its worker can take another one."""
        if run.worker is not None and (worker := self._workers.get(run.worker)) is not None:
            worker.release(run)
            self.pools[worker.mode].offer(worker)

    # --- their life ------------------------------------------------------------------------------------

    def add(self, routing_id: bytes, ready: Ready, now: float) -> Worker:
        """A process has registered that was not known; its mode is one of `MODES`."""
        worker = Worker(
            routing_id=routing_id,
            mode=ready.mode,
            slots=ready.slots,
            name=ready.name,
            progress_at=now,
            pid=ready.pid,
            broken=ready.broken,
        )
        self._workers[routing_id] = worker
        self.pools[ready.mode].workers[routing_id] = self.describes.workers[routing_id] = worker
        self.offer(worker)
        return worker

    def remove(self, worker: Worker, now: float) -> None:
        """A worker is lost."""
        worker.step(WorkerEvent.LOSE)
        del self._workers[worker.routing_id]
        for pool in (self.pools[worker.mode], self.describes):
            del pool.workers[worker.routing_id]
            if not pool.workers:
                pool.empty_since = now

    def set_slots(self, worker: Worker, slots: int) -> None:
        """A worker says how many runs it takes at a time."""
        worker.slots = slots
        self.offer(worker)

    def progressed(self, worker: Worker, now: float) -> bool:
        """A worker has made progress; whether it can be given runs again."""
        was_silent = not worker.makes_progress(now)
        worker.progress_at = now
        if was_silent:
            self.offer(worker)
        return was_silent

    def exited(self, name: str, pid: int) -> None:
        """A process has ended: its worker gets no more runs."""
        for worker in self._workers.values():
            if (worker.name, worker.pid) == (name, pid) and worker.state is not WorkerState.EXITED:
                worker.step(WorkerEvent.EXIT)

    def is_name_used(self, name: str) -> bool:
        """Whether a process with this program's name is registered."""
        return any(worker.name == name for worker in self._workers.values())

    def all_leave(self) -> bool:
        """Whether there are workers, and none of them takes new runs."""
        return bool(self._workers) and not any(self._ready())

    def successor_of(self, leaving: Worker) -> Worker | None:
        """The worker that takes over the ended runs of a leaving one: of its mode if there is one, and with room."""
        return max(self._ready(), key=lambda worker: (worker.mode == leaving.mode, worker.free), default=None)

    def _ready(self) -> Iterator[Worker]:
        return (worker for worker in self._workers.values() if worker.state is WorkerState.READY)

    # --- time ------------------------------------------------------------------------------------------

    def time_suspended(self, now: float) -> float:
        """Seconds for which this process did not look, beyond one look's interval; 0.0 if they are few.

        Their progress messages of that time have not been read yet, so it is added to each worker's account.
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
        """Have workers killed that have made no progress for too long."""
        for worker in self._workers.values():
            silent = now - worker.progress_at
            if silent >= self._hang_seconds and worker.state in _ALIVE and worker.pid:
                worker.step(WorkerEvent.KILL)
                worker.killed_at = now
                self._out.kill(worker.routing_id, worker.name, worker.pid, is_linked=True)
                what = f"made no progress for {silent:.0f} s: it is killed, with {len(worker.runs)} runs"
                self._out.log(logging.ERROR, f"worker {worker.name} {what}")
