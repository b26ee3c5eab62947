"""Records of runs and workers, and the pools that choose the next run and its worker."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final, NamedTuple

from axon_zmq.broker.core.shares import Shares
from axon_zmq.broker.core.states import (
    RUN,
    WORKER,
    RunEvent,
    RunState,
    WorkerEvent,
    WorkerState,
    step,
)
from axon_zmq.process.fair_queue import FairQueue
from axon_zmq.protocol import kinds
from axon_zmq.protocol.frames import RunKey

PROGRESS_TIMEOUT_S: Final = 4.0
"""Seconds without progress after which a worker gets no new runs until it reports progress again. After `hang_seconds`
it is killed."""
SUSPECTS_PER_WORKER: Final = 4
"""Maximum number of suspects that one worker executes at a time. When a worker dies, all its runs become suspects. If
the request at fault then kills a second worker, at most this many requests are quarantined because of it."""
WAITING_PER_SLOT: Final = 8
"""Number of waiting runs for each slot of a worker whose slots are given to other runs, in addition to those that one
client has free of charge. It bounds the memory of a worker and, in mode `run_sync`, its threads; further waiting runs
keep their slots."""


DESCRIBES_PER_WORKER: Final = 2
"""Maximum number of `describe` requests that one worker answers at a time; one client may use half of it. A `describe`
takes no slot, so nothing else would bound the time of the worker's event loop that a flood of them takes."""


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """One run, from its admission until it is forgotten."""

    client: bytes
    id: bytes
    kind: bytes
    digest: bytes
    header_frame: bytes = b""
    body: bytes = b""
    """The request body, until the last allowed attempt has been dispatched or the run has ended; then empty."""
    undelivered: list[tuple[bytes, bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes, bytes]])
    """Messages of the client to this run that wait until a worker has the run: kind, header and body of each."""
    deadline: float = float("inf")
    """Time at which the run is ended, in seconds of the machine's monotonic clock."""
    attempts: int = 0
    max_attempts: int = 1
    keep: bool = False
    """Whether the run continues when its client is abandoned (`on_disconnect: "keep"`)."""
    state: RunState = RunState.QUEUED
    worker: bytes | None = None
    """Routing id of the worker that executes the run or, after its end, keeps its messages. None while the run is
    queued and while its messages are handed over to a successor."""
    in_flight: int = 0
    """Bytes of the run that count as in flight."""
    is_held: bool = False
    """Whether the run waits because it would exceed a bound on the bytes in flight."""
    suspect: bool = False
    """Whether a worker recently died while it executed this request."""
    journaled: bool = False
    """Whether the journal lists this run as queued."""
    started: float = 0.0
    """Time of the last dispatch, in seconds of the broker's clock."""
    waits: bool = False
    """Whether the run is counted as waiting for tools of its client. It stays true while a waiting run is ended."""
    waits_since: float = 0.0
    """Time since which it waits, in seconds of the broker's clock; meaningful only if `waits`."""
    terminal: bytes | None = None
    """Body of the `error` with which the broker ended the run; None if the run is unfinished or a worker ended it."""

    @property
    def key(self) -> RunKey:
        """The run key: routing id of the client and request id."""
        return self.client, self.id

    @property
    def size(self) -> int:
        """Bytes that the run occupies while it is queued: its body and undelivered messages."""
        return len(self.body) + sum(len(body) for _, _, body in self.undelivered)

    @property
    def takes_slot(self) -> bool:
        """Whether the run counts against its worker's concurrency. A `describe` does not: it is answered at once."""
        return self.kind != kinds.DESCRIBE

    def step(self, event: RunEvent) -> None:
        """Apply an event to the run's life cycle."""
        self.state = step(RUN, self.state, event)


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """One worker process that has registered."""

    routing_id: bytes
    mode: str
    slots: int
    name: str
    progress_at: float
    """Time of the worker's last progress, in seconds of the broker's clock."""
    pid: int = 0
    """Process id; 0 if the worker does not report it."""
    free_waiting: int = 0
    """Number of waiting runs that one client has free of charge (`max_waiting_per_client`)."""
    broken: tuple[str, ...] | None = None
    """Agents that the worker could not load; None if the worker does not report them."""
    forgot_at: float = 0.0
    """When the worker last forgot an ended run before its resume window had passed."""
    killed_at: float = 0.0
    """When the worker was sent SIGKILL; 0.0 if it was not."""
    is_leaving: bool = False
    """Whether the worker has sent `leaving`. Unlike `state`, this stays true if it is killed or exits later."""
    state: WorkerState = WorkerState.READY
    runs: dict[RunKey, Run] = field(default_factory=dict)
    """The unfinished runs of this worker, including `describe` requests."""
    holding: int = 0
    """Number of runs, without `describe` requests."""
    waiting: int = 0
    """Number of these runs that only wait for tools of their clients."""
    suspects: int = 0
    """Number of suspects among the runs."""

    @property
    def describes(self) -> int:
        """Number of `describe` requests that the worker answers now."""
        return len(self.runs) - self.holding

    @property
    def busy(self) -> int:
        """Number of runs that count against the concurrency."""
        return self.holding - min(self.waiting, self.max_waiting) if self.waiting else self.holding

    @property
    def max_waiting(self) -> int:
        """Number of waiting runs that do not count against the concurrency.

        One client has at most `free_waiting` waiting runs plus one for each slot of the mode. A worker with few slots
        must have room for all of them, or this client alone would occupy its slots.
        """
        return self.free_waiting + self.slots * WAITING_PER_SLOT

    @property
    def free(self) -> int:
        """How many runs the worker can take now.

        Negative if its concurrency was reduced while it was busy, and if waiting runs continue after others have got
        their slots.
        """
        return self.slots - self.busy if self.state is WorkerState.READY else 0

    def makes_progress(self, now: float) -> bool:
        """Whether the worker has recently made progress."""
        return now - self.progress_at < PROGRESS_TIMEOUT_S

    def can_take(self, now: float) -> bool:
        """Whether the worker accepts new runs and makes progress; it may be busy."""
        return self.state is WorkerState.READY and now - self.progress_at < PROGRESS_TIMEOUT_S

    def hold(self, run: Run) -> None:
        """Add a run to this worker's runs."""
        self.runs[run.key] = run
        # Counted here, so that neither `free` nor the choice of a worker for a suspect iterates over the runs.
        self.holding += run.takes_slot
        self.waiting += run.waits
        self.suspects += run.suspect

    def release(self, run: Run) -> bool:
        """Remove a run; return whether the worker had it."""
        if has_run := self.runs.pop(run.key, None) is not None:
            self.holding -= run.takes_slot
            self.waiting -= run.waits
            self.suspects -= run.suspect
        return has_run

    def step(self, event: WorkerEvent) -> None:
        """Apply an event to the worker's life cycle."""
        self.state = step(WORKER, self.state, event)


class Resume(NamedTuple):
    """A client's request for a replay."""

    run: Run
    start: int
    """The first `seq` to replay."""
    header_frame: bytes
    """The header of the client's message, which the worker reads."""


@dataclass(slots=True, eq=False, kw_only=True)
class Pool:
    """The workers of one mode and the runs that wait for them.

    A queued run is in one of three queues; clients take turns in each. `Runs.dispatch` serves them whenever a slot or
    bytes may have become free:

    1. `held`: runs with large bodies that had no room in the bytes in flight. They come first, because they have waited
       before.
    2. `queue` and `suspects`, in turns (`next`). If a run taken from them has no room, it moves to `held`.

    `gets_no_run` says which clients get no run, although a slot is free. If only runs of such clients could start, all
    but those with too many waiting runs get the slot nevertheless.
    """

    mode: str
    empty_since: float
    """Time since which the pool has had no worker; meaningful only while it has none."""
    shares: Shares
    """How many slots each client holds."""
    takes_slots: bool = True
    """Whether the pool's runs count against the concurrency of its workers; False for the pool of `describe`."""
    modes: Mapping[str, Pool] = field(default_factory=dict[str, "Pool"])
    """The pools of the modes, for the pool of `describe`; otherwise empty."""
    workers: dict[bytes, Worker] = field(default_factory=dict)
    queue: FairQueue[Run] = field(default_factory=lambda: FairQueue[Run]())
    suspects: FairQueue[Run] = field(default_factory=lambda: FairQueue[Run]())
    """The queue of suspects. It is separate because each worker executes only a few suspects at a time: in a common
    queue, all other runs would wait behind them."""
    held: FairQueue[Run] = field(default_factory=lambda: FairQueue[Run]())
    """The queue of runs that wait because they would exceed a bound on the bytes in flight, although a worker has free
    slots. It is separate so that no other run waits behind them."""
    resumes: dict[bytes, dict[bytes, Resume]] = field(default_factory=dict[bytes, dict[bytes, Resume]])
    """The requests for replays of ended runs that wait because their clients are held back: by client, then by request
    id; one for each run."""
    mean_seconds: float = 1.0
    """Moving average of the duration of a run, in seconds, for `retry_after_ms`."""
    _suspects_turn: bool = False
    """Whether the next run is taken from `suspects` if possible."""
    _offers: list[tuple[int, int, Worker]] = field(default_factory=list[tuple[int, int, Worker]])
    """Heap of workers, the one with most free slots first: negative free slots, tie-breaker, worker. Entries whose
    number of free slots has changed stay in it until they reach the top."""
    _order: count[int] = field(default_factory=count)
    """Source of tie-breakers: heapq must never compare two workers."""

    @property
    def waiting(self) -> int:
        """Number of queued runs."""
        return self.queue.count + self.suspects.count + self.held.count

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the queued runs occupy."""
        return self.queue.bytes + self.suspects.bytes + self.held.bytes

    def of_client(self, client: bytes) -> int:
        """Number of queued runs of a client."""
        return self.queue.of_client(client) + self.suspects.of_client(client) + self.held.of_client(client)

    def bytes_of_client(self, client: bytes) -> int:
        """Bytes that the queued runs of a client occupy."""
        return sum(queue.bytes_of_client(client) for queue in (self.queue, self.suspects, self.held))

    def queue_of(self, run: Run) -> FairQueue[Run]:
        """The queue in which a run waits, or will wait."""
        if run.is_held:
            return self.held
        return self.suspects if run.suspect else self.queue

    def next(self, now: float) -> tuple[Run, Worker] | None:
        """Remove the next run from `queue` or `suspects` and return it with a worker that can take it.

        The two queues take turns, so that neither delays the other. Clients that hold half of the slots are held back
        while others wait. Returns None if no run of these queues can be dispatched.
        """
        if not self.takes_slots:
            return self._next_describe(now)
        worker = self.idlest(now) if self.queue.count else None
        suspects_worker = self._worker_for_suspect(now) if self.suspects.count else None
        choices = [(self.queue, worker), (self.suspects, suspects_worker)]
        if self._suspects_turn:
            choices.reverse()
        able = [(queue, worker) for queue, worker in choices if worker is not None]
        for queue, worker in able:
            if (run := queue.pop_unless(self.gets_no_run)) is not None:
                self._suspects_turn = not run.suspect
                return run, worker
        # A slot is free and every client that could use it is held back. The rule exists for the clients that wait, and
        # an idle slot helps none of them. This is rare: the other clients' runs are suspects that no worker may take,
        # or workers have reported fewer slots than they have runs.
        for queue, worker in able:
            if (run := queue.pop_unless(self.waits_too_much)) is not None:
                self._suspects_turn = not run.suspect
                return run, worker
        return None

    def _next_describe(self, now: float) -> tuple[Run, Worker] | None:
        if not self.queue.count:
            return None
        # Asked first, because the search below goes through all clients in the queue if none of them gets a worker.
        if self.idlest(now) is None:
            return None
        run = self.queue.pop_unless(lambda client: self._worker_for_describe(client, now) is None)
        if run is None:
            return None
        worker = self._worker_for_describe(run.client, now)
        assert worker is not None
        return run, worker

    # --- fair shares -----------------------------------------------------------------------------------

    @property
    def slots(self) -> int:
        """How many runs all workers of the pool execute at a time."""
        if not self.takes_slots:
            return DESCRIBES_PER_WORKER * len(self.workers)
        return sum(worker.slots for worker in self.workers.values())

    def holds_back(self, client: bytes) -> bool:
        """Whether no new work of a client may start: it holds half of the slots or more, and another client waits."""
        others_wait = self.queue.has_others(client) or self.suspects.has_others(client)
        return others_wait and self._holds_half(client)

    def gets_no_run(self, client: bytes) -> bool:
        """Whether no new run of a client may start: it is held back, or has too many waiting runs."""
        return self.holds_back(client) or self.waits_too_much(client)

    def waits_too_much(self, client: bytes) -> bool:
        """Whether a client holds all slots because of its waiting runs, so that it gets none of those that are free."""
        return self.shares.is_over_limit(client) and self.shares.held(client) >= self.slots

    def _holds_half(self, client: bytes) -> bool:
        return 2 * self.shares.held(client) >= self.slots

    def _worker_for_describe(self, client: bytes, now: float) -> Worker | None:
        """The worker that answers a client's next `describe`; None if the client must wait.

        A client never gets more than half of the places, even if no other client waits: a toolset that hangs may occupy
        a place for many seconds, and places that stay free cost nothing. Workers of a mode in which the client is held
        back are left out.
        """
        if self._holds_half(client):
            return None
        held_back = {mode for mode, pool in self.modes.items() if pool.holds_back(client)}
        return self._least_describing([each for each in self.workers.values() if each.mode not in held_back], now)

    @staticmethod
    def _least_describing(workers: Iterable[Worker], now: float) -> Worker | None:
        able = (each for each in workers if each.can_take(now) and each.describes < DESCRIBES_PER_WORKER)
        return min(able, key=lambda worker: (worker.describes, -worker.free), default=None)

    def offer(self, worker: Worker) -> None:
        """Record that a worker's number of free slots has changed, or that it makes progress again."""
        heapq.heappush(self._offers, (-worker.free, next(self._order), worker))
        # Outdated entries below the top would accumulate without end; rebuild the heap without them.
        if len(self._offers) > 4 * len(self.workers) + 100:
            self._offers = [(-each.free, next(self._order), each) for each in self.workers.values()]
            heapq.heapify(self._offers)

    def idlest(self, now: float) -> Worker | None:
        """The worker with the most free slots that makes progress; None if no worker can take a run.

        The heap makes the cost independent of the number of workers: scanning 1,000 workers took 896 µs per request;
        with the heap, admitting and dispatching a request takes 12 µs in total (docs/performance.md). Outdated entries
        are dropped when they reach the top.
        """
        if not self.takes_slots:  # a `describe` needs no free slot
            return self._least_describing(self.workers.values(), now)
        while self._offers:
            minus_free, _, worker = self._offers[0]
            is_up_to_date = -minus_free == worker.free > 0 and worker.routing_id in self.workers
            if is_up_to_date and worker.can_take(now):
                return worker
            heapq.heappop(self._offers)
        return None

    def able(self, now: float) -> list[Worker]:
        """The workers that have a free slot and make progress."""
        return [worker for worker in self.workers.values() if worker.can_take(now) and worker.free > 0]

    def with_free_slot(self, run: Run, now: float) -> list[Worker]:
        """The workers that have a free slot for a run, the one with the most free slots first."""
        able = self.able(now)
        if run.suspect:
            able = [worker for worker in able if worker.suspects < SUSPECTS_PER_WORKER]
        return sorted(able, key=lambda worker: worker.free, reverse=True)

    def _worker_for_suspect(self, now: float) -> Worker | None:
        # Scanning all workers is acceptable here, because there are suspects only after a worker has died.
        able = [worker for worker in self.able(now) if worker.suspects < SUSPECTS_PER_WORKER]
        return max(able, key=lambda worker: (-worker.suspects, worker.free), default=None)

    def retry_after_ms(self) -> int:
        """Estimated milliseconds until all runs that are queued now have ended; from 100 ms to one minute."""
        return int(min(60.0, max(0.1, self.waiting * self.mean_seconds / (self.slots or 1))) * 1000)

    @property
    def free(self) -> int:
        """How many runs the pool's workers can take now."""
        return sum(max(0, worker.free) for worker in self.workers.values())
