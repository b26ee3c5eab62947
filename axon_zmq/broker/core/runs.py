"""The life of each run in the broker: it is queued, dispatched or adopted, ended or lost, and finally forgotten."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Final

from axon_zmq.broker.core.clients import Client, Clients
from axon_zmq.broker.core.in_flight import SMALL_BODY_BYTES, InFlight
from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.broker.core.pools import Pool, Resume, Run, Worker
from axon_zmq.broker.core.quarantine import STRIKES, Quarantine
from axon_zmq.broker.core.recovery import Recovery
from axon_zmq.broker.core.relay import Relay
from axon_zmq.broker.core.states import ClientState, RunEvent, RunState
from axon_zmq.broker.core.workers import Workers
from axon_zmq.errors import AxonError, RequestError, RunEndedError, UnavailableError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.backend import EndReason, Held, pack_lease
from axon_zmq.protocol.frames import RunKey, error_body, printable
from axon_zmq.protocol.msgpack import pack

NO_WORKER_GRACE_S: Final = 10.0
"""Seconds without any worker after which a pool's queued runs end as `no_worker`. supervisord takes 1 to 3 s to restart
a worker."""
ENDED_RUNS_KEPT: Final = 100_000
"""Maximum number of ended runs that are remembered; the oldest are forgotten first. Each occupies about 0.8 KiB,
measured with `scripts/bench --only memory --requests 500000`."""


class Runs:
    """All runs that are queued, executed by a worker, or ended and still remembered.

    Args:
        outgoing: Collects the effects.
        clients: Records of clients with their unfinished runs.
        workers: Records of workers, and the pools in which runs are queued.
        relay: Knows which runs have been relayed.
        recovery: Keeps track of what is certain about runs from before the start of this broker.
        bounds: The limits that the operator may set.
    """

    def __init__(
        self,
        *,
        outgoing: Outgoing,
        clients: Clients,
        workers: Workers,
        relay: Relay,
        recovery: Recovery,
        bounds: limits.BrokerLimits,
    ) -> None:
        self.quarantine = Quarantine()
        self.in_flight = InFlight(bounds)
        self._out = outgoing
        self._clients = clients
        self._workers = workers
        self._relay = relay
        self._recovery = recovery
        self._runs: dict[RunKey, Run] = {}
        self._ended: deque[tuple[float, Run]] = deque()
        """Ended runs, oldest first, and when each is forgotten."""
        self._deadlines: list[tuple[float, int, Run]] = []
        """Heap of queued runs by deadline: deadline, tie-breaker, run. A run that is dispatched stays in it until its
        deadline passes or the heap is rebuilt, because removing it from the middle of the heap would be slow."""
        self._order = count()
        self._forget_unknown_at = 0.0
        """When the relay next forgets the marks of unknown runs."""

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def deadlines(self) -> int:
        """Number of entries in the heap of deadlines. It follows the number of queued runs, not of all runs so far."""
        return len(self._deadlines)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def __repr__(self) -> str:
        return f"<Runs {len(self._runs)} known, {len(self._ended)} of them ended>"

    def get(self, key: RunKey) -> Run | None:
        """A run that is remembered, or None."""
        return self._runs.get(key)

    # --- queued and dispatched ---------------------------------------------------------------------

    def start(self, run: Run, now: float) -> None:
        """Add a new run and dispatch it to a worker; it stays queued if no worker can take it."""
        self._recovery.request_received(run.key)
        self._runs[run.key] = run
        self._clients.opened(run)
        pool = self._workers.pool_of(run)
        run.suspect = self.quarantine.suspects(run.digest, now)
        pool.queue_of(run).push(run)
        self.dispatch(pool, now)
        # A run that was dispatched at once costs neither a deadline entry nor a journal record.
        if run.state is RunState.QUEUED:
            self._watch_deadline(run)
            if run.takes_slot:
                self._out.enqueued(run)

    def starts_at_once(self, pool: Pool, run: Run, now: float) -> bool:
        """Whether a new run would be dispatched without waiting."""
        if pool.suspects.count or pool.idlest(now) is None:
            return False
        if not run.takes_slot:
            return not pool.queue.count
        # As a slot is free, the queue has at most runs of clients with too many waiting runs. These delay no other
        # client, and neither do the runs that wait for room.
        if pool.waits_too_much(run.client):
            return False
        return run.size <= SMALL_BODY_BYTES or self._with_room(pool, run, None, now) is not None

    def dispatch(self, pool: Pool, now: float) -> None:
        """Dispatch the queued runs of a pool while workers can take them, round-robin over clients."""
        if pool.held.count:
            self._dispatch_held(pool, pool.gets_no_run, now)
        while (found := pool.next(now)) is not None:
            self._dispatch_or_end(pool, *found, now)
        if pool.held.count and (pool.queue.count or pool.suspects.count):
            # As in `Pool.next`: no slot stays free for runs that no worker may take.
            self._dispatch_held(pool, pool.waits_too_much, now)
        self._release_resumes(pool)
        # A client that was held back in this mode may now get its `describe` answered by a worker of the mode.
        if pool.takes_slots and self._workers.describes.waiting:
            self.dispatch(self._workers.describes, now)

    def _dispatch_or_end(self, pool: Pool, run: Run, worker: Worker, now: float) -> None:
        """Dispatch a run that was taken from its queue; end it, or put it back, if there is a reason to."""
        if run.deadline <= now:
            self._end(run, deadline_exceeded(), now)
        elif self.quarantine.seconds_left(run.digest, now):
            self._end(run, self.quarantined(run.digest, now), now)
        elif not run.suspect and self.quarantine.suspects(run.digest, now):
            # A worker died while it executed the same request, after this run had been queued.
            run.suspect = True
            pool.suspects.push(run)
        elif run.size <= SMALL_BODY_BYTES or not run.takes_slot:
            self._dispatch_to(run, worker, now)
        elif (with_room := self._with_room(pool, run, worker, now)) is not None:
            self._dispatch_to(run, with_room, now)
        else:
            run.is_held = True
            pool.held.push(run)

    def _with_room(self, pool: Pool, run: Run, first: Worker | None, now: float) -> Worker | None:
        """The worker that may get a large run, `first` if possible; None if the run would exceed a bound."""
        if not self.in_flight.client_has_room(run):
            return None
        if first is not None and self.in_flight.worker_has_room(run, first):
            return first
        able = pool.with_free_slot(run, now)
        return next((worker for worker in able if self.in_flight.worker_has_room(run, worker)), None)

    def _dispatch_held(self, pool: Pool, gets_no_run: Callable[[bytes], bool], now: float) -> None:
        """Dispatch the runs that waited for room and have it now, round-robin over the clients that may get a run."""
        dispatched = True
        while dispatched:
            dispatched = False
            # Without this, each dispatch would search a worker for every client: 50 ms with 2,000 clients.
            room = max((self.in_flight.room(worker) for worker in pool.able(now)), default=0)
            if room <= SMALL_BODY_BYTES:
                return
            for run in pool.held.firsts():
                if run.size > room or gets_no_run(run.client):
                    continue
                if (worker := self._with_room(pool, run, None, now)) is not None:
                    pool.held.take(run)
                    run.is_held = False
                    self._dispatch_or_end(pool, run, worker, now)
                    dispatched = True

    def dispatch_all(self, now: float) -> None:
        """Dispatch queued runs of all pools."""
        for pool in self._workers.all_pools():
            self.dispatch(pool, now)

    def _dispatch_to(self, run: Run, worker: Worker, now: float) -> None:
        run.step(RunEvent.DISPATCH)
        run.worker, run.started = worker.routing_id, now
        run.attempts += 1
        self._workers.hold(worker, run)
        # The journal record must be written before the run is sent. Otherwise, if this broker died in between, the next
        # one would tell the client that the run was never started, and the client would send it a second time.
        self._out.dequeued(run)
        self.in_flight.add(run, len(run.body))
        lease = pack_lease(run.deadline, run.attempts, run.digest)
        self._out.to_worker(run, run.kind, run.header_frame, run.body, lease)
        self.deliver_pending(run)
        if run.max_attempts == run.attempts:
            run.body = run.header_frame = b""  # no further attempt will need them

    def deliver_pending(self, run: Run) -> None:
        """Send the client's waiting messages to the run's worker, and `gone` if the client is gone."""
        for message in run.undelivered:
            self.pass_on(run, *message)
        run.undelivered.clear()
        if self._clients.is_gone(run.client):
            self._out.to_worker(run, kinds.GONE)

    def pass_on(self, run: Run, kind: bytes, header_frame: bytes, body: bytes) -> None:
        """Pass a client's message on to the worker that executes the run."""
        # No further attempt is allowed: it would execute without this message, which the broker does not keep.
        run.max_attempts = run.attempts
        self.in_flight.add(run, len(body))
        self._out.to_worker(run, kind, header_frame, body)

    def resume(self, run: Run, start: int, header_frame: bytes) -> None:
        """Have a run's messages replayed to its client; later if the run has ended and the client is held back.

        The replay of an open run never waits: the run may need its client to continue, for the answer to a tool call
        or for `credit`, and would otherwise keep its slot, because of which its client is held back.

        Args:
            run: The run.
            start: The first `seq` to replay.
            header_frame: The header of the client's `resume`, which the worker reads.
        """
        # No worker has messages to replay if the run is queued, was ended by the broker, or is a `describe`.
        if run.state is RunState.QUEUED or run.terminal is not None or not run.takes_slot:
            body = pack({"from": start, "gap": False, "open_calls": []})
            self._out.send(run.client, kinds.RESUMED, run.id, body)
            if run.terminal is not None:
                self._out.send(run.client, kinds.ERROR, run.id, run.terminal)
        elif run.worker is None:
            # The messages are in a handover file that no worker has read yet. A newer `resume` replaces an older one.
            run.undelivered = [(kinds.RESUME, header_frame, b"")]
        elif run.worker not in self._workers:
            self._out.error(run.client, run.id, _messages_lost())
        elif run.state is RunState.ENDED and (pool := self._workers.pool_of(run)).holds_back(run.client):
            # A newer `resume` replaces an older one.
            pool.resumes.setdefault(run.client, {})[run.id] = Resume(run, start, header_frame)
        else:
            self._out.to_worker(run, kinds.RESUME, header_frame, b"")

    def _release_resumes(self, pool: Pool) -> None:
        """Continue with the requests for a replay of clients that are no longer held back."""
        if pool.resumes:
            for client in [each for each in pool.resumes if not pool.holds_back(each)]:
                for resume in pool.resumes.pop(client).values():
                    self.resume(*resume)

    def _forget_resume(self, run: Run) -> bool:
        """Drop the request for a replay of a run; return whether there was one."""
        resumes = self._workers.pool_of(run).resumes
        of_client = resumes.get(run.client, {})
        if of_client.pop(run.id, None) is None:
            return False
        if not of_client:
            del resumes[run.client]
        return True

    # --- how a run ends ----------------------------------------------------------------------------

    def ended(self, worker: bytes, key: RunKey, kind: bytes, now: float) -> None:
        """End a run whose terminal message from its worker was relayed."""
        run = self._runs.get(key)
        # A replay of an ended run contains its terminal message again.
        if run is None or run.worker != worker or run.state is RunState.ENDED:
            return
        if kind == kinds.COMPLETE:
            self.quarantine.acquit(run.digest)
        run.step(RunEvent.TERMINAL)
        has_made_room = self._release(run, now)
        pool = self._workers.pool_of(run)
        pool.mean_seconds += 0.1 * (now - run.started - pool.mean_seconds)
        self.dispatch(pool, now)
        if has_made_room:  # perhaps for a run of the same client in another mode
            self.dispatch_all(now)

    def ask_to_end(self, run: Run, reason: EndReason) -> None:
        """Ask the worker of a run to end it; nothing is sent if it was asked before."""
        if run.state in (RunState.RUNNING, RunState.WAITING):
            assert run.worker is not None
            run.step(RunEvent.ASK_TO_END)
            self._out.end(run.worker, run.key, reason)

    def set_waiting(self, worker: Worker, key: RunKey, waits: bool, now: float) -> None:
        """Record that a worker's run only waits for tools of its client, or that it continues.

        Nothing happens if the run is not this worker's, or is known to be in this state.
        """
        run = worker.runs.get(key)
        if run is None or run.waits is waits:
            return
        if run.state is not RunState.ENDING:  # the worker may not have read `end` yet
            run.step(RunEvent.WAIT if waits else RunEvent.CONTINUE)
        run.waits_since = now
        self._workers.set_waiting(worker, run, waits)
        self.dispatch(self._workers.pool_of(run), now)

    def end_kept(self, known: Client, since: float) -> None:
        """End the runs of a gone client that have only waited for its tools since the given time or longer.

        Args:
            known: The client.
            since: Time in seconds of the broker's clock; the client must have been gone since then, too.
        """
        if known.gone_since <= since:
            for run in known.open.values():
                if run.waits and run.waits_since <= since:
                    self.ask_to_end(run, EndReason.KEPT_TOO_LONG)

    def end_queued(self, run: Run, error: AxonError, now: float) -> None:
        """End a queued run with an error."""
        self._workers.pool_of(run).queue_of(run).remove(run)
        self._end(run, error, now)

    def end_all(self, pool: Pool, why: Callable[[Pool], AxonError], now: float) -> None:
        """End all queued runs of a pool.

        Args:
            pool: The pool.
            why: Creates the error for each run. Runs cannot share one error, because `_end` adds details to it.
            now: The time.
        """
        for queue in (pool.queue, pool.suspects, pool.held):
            while queue.count:
                self._end(queue.pop(), why(pool), now)

    def abandon(self, known: Client, now: float) -> None:
        """End all runs of an abandoned client, except those with `on_disconnect: "keep"`."""
        for run in [run for run in known.open.values() if not run.keep]:
            if run.state is RunState.QUEUED:
                error = RunEndedError("cancelled", "the client disconnected and did not return in time")
                self.end_queued(run, error, now)
            else:
                self.ask_to_end(run, EndReason.CLIENT_GONE)

    def _end(self, run: Run, error: AxonError, now: float, event: RunEvent = RunEvent.TERMINAL) -> None:
        """End a run that no worker executes. The broker keeps the terminal message for replay; it has no `seq`."""
        run.step(event)
        self._relay.forget(run.key)
        error.details["by"] = "broker"
        run.terminal = error_body(error)
        self._release(run, now)
        self._out.send(run.client, kinds.ERROR, run.id, run.terminal)
        text = f"{printable(run.kind)} of client {printable(run.client)} ended: {error}"
        self._out.log(logging.WARNING, text, run.id)

    def _release(self, run: Run, now: float) -> bool:
        """Detach an ended run from its worker and client, and remember it for the resume window.

        Returns:
            Whether it had bytes in flight.
        """
        has_made_room = self.in_flight.remove(run)
        run.body = run.header_frame = b""
        self._out.dequeued(run)
        for kind, *_ in run.undelivered:
            error = RequestError("invalid_request", "the run has already ended")
            self._out.refuse(run.client, run.id, kind, error)
        run.undelivered.clear()
        self._workers.release(run)
        self._clients.closed(run)
        if run.kind == kinds.DESCRIBE:
            self._forget(run)
            return has_made_room
        self._ended.append((now + limits.RESUME_WINDOW, run))
        if len(self._ended) > ENDED_RUNS_KEPT:
            # The broker can then no longer be certain that an unknown run never ran.
            self._forget(self._ended.popleft()[1])
            self._recovery.run_forgotten(now)
        return has_made_room

    def _forget(self, run: Run) -> None:
        if self._runs.get(run.key) is run:
            del self._runs[run.key]
            # Replayed messages mark the run as relayed again. If its worker was lost during the replay, no terminal
            # message has removed the mark.
            self._relay.forget(run.key)
            # `undelivered`: a `resume` for which no successor has read the handover file in time.
            if self._forget_resume(run) or run.undelivered:
                self._out.error(run.client, run.id, _messages_lost())

    # --- workers that come and go ------------------------------------------------------------------

    def adopt(self, worker: Worker, held: Held, now: float) -> None:
        """Take over a run that a worker holds: a run of an earlier broker, or one from a handover file.

        There are three cases:

        - The run is unknown to this broker.
        - A request with the same id is queued: the client has sent it again, and it turns out to be this run.
        - The run is already known, as another worker's run or as ended.
        """
        key = held.client, held.id
        run = self._runs.get(key)
        if run is None:
            run = Run(client=held.client, id=held.id, kind=held.kind.encode(), digest=held.digest, keep=held.keep)
            self._runs[key] = run
        elif run.state is RunState.QUEUED:
            # The client attaches to the run as with any repeated request: `accepted`, then a replay from the start.
            self._workers.pool_of(run).queue_of(run).remove(run)
            self._out.send(run.client, kinds.ACCEPTED, run.id, DUPLICATE[True])
            run.undelivered.append((kinds.RESUME, FROM_START, b""))
        else:
            self._second_holder(run, worker, held.ended)
            return
        self._out.dequeued(run)
        run.step(RunEvent.DISPATCH)
        run.worker, run.started, run.deadline = worker.routing_id, now, held.deadline
        run.attempts = run.max_attempts  # the number of earlier attempts is unknown, so there must be no further one
        run.body = run.header_frame = b""
        if held.ended:
            self._adopt_ended(run, now)
        else:
            self.in_flight.add(run, held.size)
            self._adopt_open(run, worker)
            self.set_waiting(worker, key, held.waiting, now)

    def _adopt_ended(self, run: Run, now: float) -> None:
        # An ended run can still be replayed, so a `resume` is delivered; `_release` refuses all other messages.
        resumes = [each for each in run.undelivered if each[0] == kinds.RESUME]
        run.undelivered = [each for each in run.undelivered if each[0] != kinds.RESUME]
        run.step(RunEvent.TERMINAL)
        self._release(run, now)
        for each in resumes:
            self._out.to_worker(run, *each)

    def _adopt_open(self, run: Run, worker: Worker) -> None:
        self._workers.hold(worker, run)
        self._clients.opened(run)
        self.deliver_pending(run)
        known = self._clients.get(run.client)
        if known is not None and known.state is ClientState.ABANDONED and not run.keep:
            self.ask_to_end(run, EndReason.CLIENT_GONE)

    def _second_holder(self, run: Run, worker: Worker, has_ended: bool) -> None:
        """Decide about a run that a worker holds and that is already known, as another worker's run or as ended."""
        if run.worker == worker.routing_id and run.terminal is None:
            return
        if not has_ended:
            # Two workers execute the same run, or this one executes a run that has ended. Only the run that this broker
            # knows may continue: the client could not tell the messages of two workers apart, as both count from 1.
            self._relay.disown(worker.routing_id, run.key)
            self._out.end(worker.routing_id, run.key, EndReason.SUPERSEDED)
        elif run.state is RunState.ENDED and run.terminal is None and run.worker not in self._workers:
            # The worker that kept this run's messages is lost, but this worker has them, too.
            self._move(run, worker.routing_id)

    def hand_over(self, old: bytes | None, successor: bytes | None) -> None:
        """Assign the ended runs of a leaving worker to its successor.

        Args:
            old: Routing id of the leaving worker. None: the runs that no worker has, because their worker left when no
                successor was registered.
            successor: Routing id of the successor; None if no successor is registered yet.
        """
        for run in self._runs.values():
            if run.worker == old and run.state is RunState.ENDED and run.terminal is None:
                self._move(run, successor)

    def has_ended_runs_of(self, worker: bytes) -> bool:
        """Whether a worker has runs whose messages exist nowhere else."""
        return any(run.worker == worker and run.terminal is None for run in self._runs.values())

    def _move(self, run: Run, successor: bytes | None) -> None:
        run.worker = successor
        if successor is not None:
            for message in run.undelivered:
                self._out.to_worker(run, *message)
            run.undelivered.clear()

    def lose(self, worker: Worker, now: float) -> None:
        """End or requeue the runs of a lost worker.

        Args:
            worker: The worker, which was already removed from its pool.
            now: The time.
        """
        lost = list(worker.runs.values())
        # A leaving worker was going to end anyway, so its loss says nothing about the requests that it executed.
        if not worker.is_leaving:
            for digest in {run.digest for run in lost if run.takes_slot}:
                self.quarantine.strike(digest, now)
        for run in lost:
            may_retry = run.state is RunState.RUNNING and run.attempts < run.max_attempts
            if may_retry and not self._relay.was_relayed(run.key):
                self._requeue(run, now)
            else:
                error = RunEndedError("worker_lost", f"worker {worker.name} died while it executed this run")
                self._end(run, error, now, RunEvent.LOSE)
        self.dispatch_all(now)

    def _requeue(self, run: Run, now: float) -> None:
        if self.quarantine.seconds_left(run.digest, now):
            self._end(run, self.quarantined(run.digest, now), now, RunEvent.LOSE)
            return
        run.step(RunEvent.REQUEUE)
        self.in_flight.remove(run)
        run.worker = None
        run.suspect = self.quarantine.suspects(run.digest, now)
        self._workers.pool_of(run).queue_of(run).push_front(run)
        self._watch_deadline(run)

    def quarantined(self, digest: bytes, now: float) -> AxonError:
        """The error for a request that is in quarantine."""
        left = self.quarantine.seconds_left(digest, now)
        message = f"{STRIKES} workers died while they executed this request; it is refused for another {left:.0f} s"
        return RunEndedError("quarantined", message, {"retry_after_ms": int(left * 1000)})

    # --- time --------------------------------------------------------------------------------------

    def next_timer(self) -> float:
        """When the earliest deadline of a queued run passes; infinity if there is none."""
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def tick(self, now: float) -> None:
        """End queued runs whose deadline has passed or whose pool has no worker, and forget ended runs."""
        while self._deadlines and self._deadlines[0][0] <= now:
            run = heapq.heappop(self._deadlines)[2]
            if run.state is RunState.QUEUED:
                self.end_queued(run, deadline_exceeded(), now)
        while self._ended and self._ended[0][0] <= now:
            self._forget(self._ended.popleft()[1])
        for pool in self._workers.all_pools():
            if not pool.workers and now - pool.empty_since > NO_WORKER_GRACE_S:
                self.end_all(pool, no_worker, now)
            self.dispatch(pool, now)  # a client may no longer be held back, if the runs of others ended in the queue
        self.quarantine.tidy(now)
        if now >= self._forget_unknown_at:
            self._forget_unknown_at = now + limits.RESUME_WINDOW
            self._relay.forget_unknown(self._runs.keys())

    def _watch_deadline(self, run: Run) -> None:
        heapq.heappush(self._deadlines, (run.deadline, next(self._order), run))
        # Rebuild the heap without the runs that were dispatched. Otherwise it would contain every run that was ever
        # queued and whose deadline has not passed: its size would follow the traffic, not the queue.
        if len(self._deadlines) > 2 * sum(pool.waiting for pool in self._workers.all_pools()) + 1000:
            self._deadlines = [entry for entry in self._deadlines if entry[2].state is RunState.QUEUED]
            heapq.heapify(self._deadlines)


DUPLICATE: Final = {flag: pack({"duplicate": flag}) for flag in (False, True)}
"""The body of `accepted`, for a new request (False) and for a repeated one (True)."""
FROM_START: Final = pack({"from": 1})
"""The header of a `resume` from the first message."""


def no_worker(pool: Pool) -> AxonError:
    """The error for runs of a pool without workers."""
    message = f"no worker for {pool.mode} is running; see `axon-zmq status`"
    return UnavailableError("no_worker", message, {"retry_after_ms": int(NO_WORKER_GRACE_S * 1000)})


def deadline_exceeded() -> AxonError:
    """The error for a run whose deadline passed while it was queued."""
    return RunEndedError("deadline_exceeded", "timeout_ms passed while the run was queued")


def _messages_lost() -> AxonError:
    message = "the run has ended, and its messages were lost with its worker"
    return RequestError("unknown_request", message, {"may_have_run": True})
