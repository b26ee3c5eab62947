"""What the broker remembers: requests, workers, clients, and the pools that join them."""

from __future__ import annotations

from dataclasses import dataclass, field

from axon_zmq import limits
from axon_zmq.broker.queues import FairQueue
from axon_zmq.broker.states import REQUEST, WORKER, RequestEvent, RequestState, WorkerEvent, WorkerState, step
from axon_zmq.wire import RunKey


@dataclass(slots=True, eq=False)
class Run:
    """One request, from its admission until it is forgotten."""

    client: bytes
    id: bytes
    kind: str
    digest: bytes
    header_frame: bytes = b""
    body: bytes = b""
    """Kept while it may still be dispatched, then dropped."""
    said: list[tuple[bytes, bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes, bytes]])
    """Kind, header and body of what its client said to it while it waits."""
    deadline: float = float("inf")
    attempts: int = 0
    max_attempts: int = 1
    keep: bool = False
    """`on_disconnect: "keep"`."""
    state: RequestState = RequestState.QUEUED
    worker: bytes | None = None
    """Who holds it, or held it when it ended."""
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
        return len(self.body) + sum(len(body) for _, _, body in self.said)

    @property
    def takes_slot(self) -> bool:
        """Whether it needs a free slot; a describe is answered beside the runs."""
        return self.kind != "describe"

    def step(self, event: RequestEvent) -> None:
        """Go on in its life cycle."""
        self.state = step(REQUEST, self.state, event)


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process, as it registered."""

    identity: bytes
    mode: str
    slots: int
    name: str
    seen: float
    """When it last made progress."""
    state: WorkerState = WorkerState.READY
    runs: dict[RunKey, Run] = field(default_factory=dict)
    """What it holds: runs, which take a slot each, and describes, which take none."""
    busy: int = 0
    """Slots that are taken."""

    @property
    def free(self) -> int:
        """Runs that it may be given now; below zero where slots were taken out of service."""
        return self.slots - self.busy if self.state is WorkerState.READY else 0

    def hold(self, run: Run) -> None:
        """Take a run."""
        self.runs[run.key] = run
        self.busy += run.takes_slot

    def release(self, run: Run) -> None:
        """Be done with a run, if it has it."""
        if self.runs.pop(run.key, None) is not None:
            self.busy -= run.takes_slot

    def step(self, event: WorkerEvent) -> None:
        """Go on in its life cycle."""
        self.state = step(WORKER, self.state, event)


@dataclass(slots=True, eq=False)
class Pool:
    """One mode: its workers and what waits for them."""

    mode: str
    empty_since: float
    """Since when it has had no worker; only meaningful while it has none."""
    takes_slots: bool = True
    workers: dict[bytes, Worker] = field(default_factory=dict)
    queue: FairQueue[Run] = field(default_factory=lambda: FairQueue[Run]())
    mean_seconds: float = 1.0
    """Moving average of a run's time, for `retry_after_ms`."""

    def idlest(self, now: float) -> Worker | None:
        """The worker with the most free slots among those that make progress and can take one more."""
        able = (
            worker
            for worker in self.workers.values()
            if worker.state is WorkerState.READY
            and now - worker.seen < limits.PROGRESS_TIMEOUT
            and (worker.free > 0 or not self.takes_slots)
        )
        return max(able, key=lambda worker: worker.free, default=None)

    def retry_after_ms(self) -> int:
        """About when what waits now will have been served: 100 ms to one minute."""
        slots = sum(worker.slots for worker in self.workers.values()) or 1
        return int(min(60.0, max(0.1, self.queue.count * self.mean_seconds / slots)) * 1000)

    def to_wire(self) -> dict[str, int]:
        """The mode's entry in a `pong`."""
        return {
            "workers": len(self.workers),
            "free": sum(max(0, worker.free) for worker in self.workers.values()),
            "queued": self.queue.count,
        }


@dataclass(slots=True, eq=False)
class Client:
    """One identity that has unfinished requests, or lately said who it is."""

    open: dict[bytes, Run] = field(default_factory=dict)
    gone_since: float | None = None
    instance: str = ""
    shared_until: float = 0.0
    """While another process was seen under this identity."""
    instance_seen: float = 0.0
