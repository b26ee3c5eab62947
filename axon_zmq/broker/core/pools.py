"""Runs, workers and the pools that join them: records, and which waiting run goes to which worker."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from axon_zmq.broker.core.fair_queue import FairQueue
from axon_zmq.broker.core.states import (
    RUN,
    WORKER,
    RunEvent,
    RunState,
    WorkerEvent,
    WorkerState,
    step,
)
from axon_zmq.protocol import kinds
from axon_zmq.protocol.frames import RunKey

PROGRESS_TIMEOUT_S: Final = 4.0
"""A worker that made no progress for this long gets no new runs until it does; see `hang_seconds` too."""
SUSPECTS_PER_WORKER: Final = 4
"""Suspects that one worker executes at a time. When a worker dies, all its runs are suspects; the request at fault
takes only so many of them with it when it kills another worker."""


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """One request, from its admission until it is forgotten."""

    client: bytes
    id: bytes
    kind: bytes
    digest: bytes
    header_frame: bytes = b""
    body: bytes = b""
    """Kept while it may still be dispatched, then dropped."""
    undelivered: list[tuple[bytes, bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes, bytes]])
    """Kind, header and body of the client's messages to it that wait for a worker to have the run."""
    deadline: float = float("inf")
    attempts: int = 0
    max_attempts: int = 1
    keep: bool = False
    """`on_disconnect: "keep"`."""
    state: RunState = RunState.QUEUED
    worker: bytes | None = None
    """The worker that executes it, or keeps its messages once it has ended; None while it waits, and while its messages
    are handed over."""
    suspect: bool = False
    """A worker died of such a request."""
    journaled: bool = False
    """The journal has it among the waiting runs."""
    started: float = 0.0
    terminal: bytes | None = None
    """The body of the `error` by which the broker ended it."""

    @property
    def key(self) -> RunKey:
        """Where the broker finds it."""
        return self.client, self.id

    @property
    def size(self) -> int:
        """Bytes that wait with it."""
        return len(self.body) + sum(len(body) for _, _, body in self.undelivered)

    @property
    def takes_slot(self) -> bool:
        """Whether it needs a free slot; a describe is answered beside the runs."""
        return self.kind != kinds.DESCRIBE

    def step(self, event: RunEvent) -> None:
        """Go on in its life cycle."""
        self.state = step(RUN, self.state, event)


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """One worker process, as it registered."""

    routing_id: bytes
    mode: str
    slots: int
    name: str
    progress_at: float
    """When it last made progress, in seconds of the broker's clock."""
    pid: int = 0
    """Its process; 0 where it does not say."""
    broken: tuple[str, ...] | None = None
    """The agents that it could not load; None where it does not say."""
    forgot_at: float = 0.0
    """When it last forgot an ended run before its time."""
    killed_at: float = 0.0
    """When it was sent SIGKILL; only meaningful where it was."""
    is_leaving: bool = False
    """It said so, whatever became of it since."""
    state: WorkerState = WorkerState.READY
    runs: dict[RunKey, Run] = field(default_factory=dict)
    """What it holds: runs, which take a slot each, and describes, which take none."""
    busy: int = 0
    """Slots that are taken."""
    suspects: int = 0
    """Suspected runs among them."""

    @property
    def free(self) -> int:
        """Runs that it may be given now; below zero where slots were taken out of service."""
        return self.slots - self.busy if self.state is WorkerState.READY else 0

    def makes_progress(self, now: float) -> bool:
        """Whether it has recently made progress."""
        return now - self.progress_at < PROGRESS_TIMEOUT_S

    def can_take(self, now: float) -> bool:
        """Whether it takes new runs and makes progress."""
        return self.state is WorkerState.READY and now - self.progress_at < PROGRESS_TIMEOUT_S

    def hold(self, run: Run) -> None:
        """Take a run."""
        self.runs[run.key] = run
        self.busy += run.takes_slot
        self.suspects += run.suspect

    def release(self, run: Run) -> None:
        """Be done with a run, if it has it."""
        if self.runs.pop(run.key, None) is not None:
            self.busy -= run.takes_slot
            self.suspects -= run.suspect

    def step(self, event: WorkerEvent) -> None:
        """Go on in its life cycle."""
        self.state = step(WORKER, self.state, event)


@dataclass(slots=True, eq=False, kw_only=True)
class Pool:
    """One mode: its workers and the runs that wait for them."""

    mode: str
    empty_since: float
    """Since when it has had no worker; only meaningful while it has none."""
    takes_slots: bool = True
    workers: dict[bytes, Worker] = field(default_factory=dict)
    queue: FairQueue[Run] = field(default_factory=lambda: FairQueue[Run]())
    suspects: FairQueue[Run] = field(default_factory=lambda: FairQueue[Run]())
    """Suspected runs wait apart: a worker takes few of them at a time, and nobody shall wait behind them."""
    mean_seconds: float = 1.0
    """Moving average of a run's time, for `retry_after_ms`."""
    _suspects_turn: bool = False
    _offers: list[tuple[int, int, Worker]] = field(default_factory=list[tuple[int, int, Worker]])
    """Workers by their free slots, the most first; those that are out of date are among them."""
    _order: count[int] = field(default_factory=count)

    @property
    def waiting(self) -> int:
        """Runs that wait."""
        return self.queue.count + self.suspects.count

    @property
    def waiting_bytes(self) -> int:
        """What they weigh."""
        return self.queue.bytes + self.suspects.bytes

    def queue_of(self, run: Run) -> FairQueue[Run]:
        """Where a run waits."""
        return self.suspects if run.suspect else self.queue

    def next(self, now: float) -> tuple[Run, Worker] | None:
        """What waits, taken out of its queue, and who can take it; the two queues take turns."""
        if self._suspects_turn:
            found = self._next_suspect(now) or self._next_unsuspected(now)
        else:
            found = self._next_unsuspected(now) or self._next_suspect(now)
        if found is not None:
            self._suspects_turn = not found[0].suspect
        return found

    def _next_unsuspected(self, now: float) -> tuple[Run, Worker] | None:
        worker = self.idlest(now) if self.queue.count else None
        return None if worker is None else (self.queue.pop(), worker)

    def _next_suspect(self, now: float) -> tuple[Run, Worker] | None:
        worker = self._worker_for_suspect(now) if self.suspects.count else None
        return None if worker is None else (self.suspects.pop(), worker)

    def offer(self, worker: Worker) -> None:
        """A worker has more, or fewer, free slots than when it was offered last, or makes progress again."""
        heapq.heappush(self._offers, (-worker.free, next(self._order), worker))
        if len(self._offers) > 4 * len(self.workers) + 100:
            self._offers = [(-each.free, next(self._order), each) for each in self.workers.values()]
            heapq.heapify(self._offers)

    def idlest(self, now: float) -> Worker | None:
        """The worker with the most free slots among those that make progress and can take one more.

        It is found without a look at the others: what was offered lies in a heap, and what is out of date in it
        is dropped when it comes to the top.
        """
        if not self.takes_slots:
            return max((each for each in self.workers.values() if each.can_take(now)), key=_free, default=None)
        while self._offers:
            minus_free, _, worker = self._offers[0]
            is_up_to_date = -minus_free == worker.free > 0 and worker.routing_id in self.workers
            if is_up_to_date and worker.can_take(now):
                return worker
            heapq.heappop(self._offers)
        return None

    def _worker_for_suspect(self, now: float) -> Worker | None:
        able = [worker for worker in self.workers.values() if worker.can_take(now) and worker.free > 0]
        able = [worker for worker in able if worker.suspects < SUSPECTS_PER_WORKER]
        return max(able, key=lambda worker: (-worker.suspects, worker.free), default=None)

    def retry_after_ms(self) -> int:
        """About when what waits now will have been served: 100 ms to one minute."""
        slots = sum(worker.slots for worker in self.workers.values()) or 1
        return int(min(60.0, max(0.1, self.waiting * self.mean_seconds / slots)) * 1000)

    @property
    def free(self) -> int:
        """Runs that its workers can take now."""
        return sum(max(0, worker.free) for worker in self.workers.values())


def _free(worker: Worker) -> int:
    return worker.free
