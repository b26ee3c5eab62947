"""The life of each run in the broker: queued, dispatched, ended, lost, taken up again, forgotten."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from itertools import count
from typing import Any, Final

from axon_zmq.broker.core.clients import Clients
from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.broker.core.pools import Client, Pool, PreviousState, Run, Worker
from axon_zmq.broker.core.quarantine import Quarantine
from axon_zmq.broker.core.states import ClientState, RequestEvent, RequestState
from axon_zmq.errors import AxonError, RequestError, RunEndedError, UnavailableError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import RunKey, error_body, printable
from axon_zmq.protocol.kinds import MODES, POOLS
from axon_zmq.protocol.msgpack import pack


class Runs:
    """All runs that are queued, held by a worker, or ended and still remembered.

    Args:
        outgoing: Where effects go.
        clients: Whose runs they are.
        past: What an earlier broker left.
        now: Seconds of a monotonic clock.
    """

    def __init__(self, outgoing: Outgoing, clients: Clients, past: PreviousState, now: float) -> None:
        self.pools = {mode: Pool(mode, empty_since=now) for mode in MODES}
        self.describes = Pool("describe", empty_since=now, takes_slots=False)
        self.workers: dict[bytes, Worker] = {}
        self.quarantine = Quarantine()
        self.disowned: set[tuple[bytes, bytes, bytes]] = set()
        """Worker, client and id of runs that went on elsewhere: what this worker says of them is dropped."""
        self._out = outgoing
        self._clients = clients
        self._runs: dict[RunKey, Run] = {}
        self._ended: deque[tuple[float, Run]] = deque()
        self._deadlines: list[tuple[float, int, Run]] = []
        self._order = count()
        self._was_queued = set(past.waiting)
        self._was_queued_until = now + limits.RESUME_WINDOW
        self.complete_since = now
        """Every run that was sent later and reached a worker is known here, until the resume window has passed."""

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, key: RunKey) -> Run | None:
        """A run, if it is remembered."""
        return self._runs.get(key)

    def pool(self, run: Run) -> Pool:
        """Whose workers take a run."""
        return self.pools[POOLS[run.kind]] if run.kind in POOLS else self.describes

    def all_pools(self) -> Iterator[Pool]:
        """The modes', and that of `describe`."""
        yield from self.pools.values()
        yield self.describes

    def waiting_bytes(self) -> int:
        """What waits, over all modes and clients."""
        return sum(pool.waiting_bytes for pool in self.all_pools())

    def unknown(self, key: RunKey, now: float) -> AxonError:
        """The error for a run that is not remembered: what is known of it all the same."""
        sure = int(max(0.0, min(limits.RESUME_WINDOW, now - self.complete_since)) * 1000)
        never_ran = key in self._was_queued
        why = "it waited when the daemon was restarted: send it again" if never_ran else "or no longer"
        details = {"may_have_run": not never_ran, "never_ran_within_ms": sure}
        return RequestError("unknown_request", f"no run with this id is known, {why}", details)

    # --- queued and dispatched ---------------------------------------------------------------------

    def start(self, run: Run, now: float) -> None:
        """Take a new run: it goes to a worker at once, or waits for one."""
        if run.key in self._was_queued:
            self._was_queued.discard(run.key)
            self._out.forgotten(run.key)
        self._runs[run.key] = run
        self._clients.opened(run)
        pool = self.pool(run)
        run.suspect = self.quarantine.suspects(run.digest, now)
        pool.queue_of(run).push(run)
        self.dispatch(pool, now)
        if run.state is RequestState.QUEUED:
            self._watch_deadline(run)
            if run.takes_slot:
                self._out.enqueued(run)

    def dispatch(self, pool: Pool, now: float) -> None:
        """Give waiting runs to free workers, one client after the other."""
        while (found := pool.next(now)) is not None:
            run, worker = found
            if run.deadline <= now:
                self._end(run, too_late(), now)
            elif self.quarantine.seconds_left(run.digest, now):
                self._end(run, self.quarantined(run.digest, now), now)
            elif not run.suspect and self.quarantine.suspects(run.digest, now):
                run.suspect = True
                pool.suspects.push(run)
            else:
                self._give(run, worker, now)

    def offer(self, worker: Worker) -> None:
        """A worker can take more, or less, than before."""
        self.pools[worker.mode].offer(worker)

    def dispatch_all(self, now: float) -> None:
        """As `dispatch`, in every pool."""
        for pool in self.all_pools():
            self.dispatch(pool, now)

    def _give(self, run: Run, worker: Worker, now: float) -> None:
        run.step(RequestEvent.DISPATCH)
        run.worker, run.started = worker.identity, now
        run.attempts += 1
        worker.hold(run)
        self.offer(worker)
        lease = pack({"deadline": run.deadline, "attempt": run.attempts, "digest": run.digest})
        self._out.dequeued(run)
        self._out.tell(run, run.kind, run.header_frame, run.body, lease)
        self.tell_what_was_said(run)
        if run.max_attempts == run.attempts:
            run.body = run.header_frame = b""

    def tell_what_was_said(self, run: Run) -> None:
        """A worker has a run now: tell it what it missed."""
        for said in run.said:
            self.pass_on(run, *said)
        run.said.clear()
        if run.client in self._clients.gone:
            self._out.tell(run, kinds.GONE)

    def pass_on(self, run: Run, kind: bytes, header_frame: bytes, body: bytes) -> None:
        """Give a run what its client has sent for it; a second start would know nothing of that."""
        run.max_attempts = run.attempts
        self._out.tell(run, kind, header_frame, body)

    def resume(self, run: Run, start: int, header_frame: bytes) -> None:
        """Have a run's messages sent again, from `seq` `start` on."""
        if run.state is RequestState.QUEUED or run.terminal is not None or not run.takes_slot:
            body = pack({"from": start, "gap": False, "open_calls": []})
            self._out.send(run.client, kinds.RESUMED, run.id, body)
            if run.terminal is not None:
                self._out.send(run.client, kinds.ERROR, run.id, run.terminal)
        elif run.worker is None:  # its messages are on their way to another worker
            run.said = [(kinds.RESUME, header_frame, b"")]
        elif run.worker in self.workers:
            self._out.tell(run, kinds.RESUME, header_frame, b"")
        else:
            self._out.error(run.client, run.id, _messages_are_gone())

    # --- how a run ends ----------------------------------------------------------------------------

    def ended(self, worker: bytes, key: RunKey, kind: bytes, now: float) -> None:
        """A worker's terminal message was relayed."""
        run = self._runs.get(key)
        if run is None or run.worker != worker or run.state is RequestState.ENDED:
            return
        if kind == kinds.COMPLETE:
            self.quarantine.acquit(run.digest)
        run.step(RequestEvent.TERMINAL)
        self._release(run, now)
        pool = self.pool(run)
        pool.mean_seconds += 0.1 * (now - run.started - pool.mean_seconds)
        self.dispatch(pool, now)

    def ask_to_end(self, run: Run, reason: str) -> None:
        """Ask a run's worker to end it, once."""
        if run.state is RequestState.RUNNING:
            assert run.worker is not None
            run.step(RequestEvent.ASK_TO_END)
            self._out.end(run.worker, run.key, reason)

    def end_queued(self, run: Run, error: AxonError, now: float) -> None:
        """End a run that waits."""
        self.pool(run).queue_of(run).remove(run)
        self._end(run, error, now)

    def end_all(self, pool: Pool, why: Callable[[Pool], AxonError], now: float) -> None:
        """End whatever waits in a pool."""
        for queue in (pool.queue, pool.suspects):
            while queue.count:
                self._end(queue.pop(), why(pool), now)

    def abandon(self, known: Client, now: float) -> None:
        """End a client's runs, but for those that it wants kept."""
        for run in [run for run in known.open.values() if not run.keep]:
            if run.state is RequestState.QUEUED:
                self.end_queued(run, RunEndedError("cancelled", "its client went away"), now)
            else:
                self.ask_to_end(run, "client_gone")

    def _end(self, run: Run, error: AxonError, now: float, event: RequestEvent = RequestEvent.TERMINAL) -> None:
        """End a run that no worker holds: without `seq`, and the terminal is kept for who asks again."""
        run.step(event)
        error.details["by"] = "broker"
        run.terminal = error_body(error)
        self._release(run, now)
        self._out.send(run.client, kinds.ERROR, run.id, run.terminal)
        self._out.note(logging.WARNING, f"{printable(run.kind)} of {printable(run.client)} ended: {error}", run.id)

    def _release(self, run: Run, now: float) -> None:
        """An ended run leaves its slot and its client, and is remembered for the resume window."""
        run.body = run.header_frame = b""
        self._out.dequeued(run)
        for kind, *_ in run.said:
            error = RequestError("invalid_request", "the run has ended")
            self._out.refuse(run.client, run.id, kind, error)
        run.said.clear()
        if run.worker is not None and (worker := self.workers.get(run.worker)) is not None:
            worker.release(run)
            self.offer(worker)
        self._clients.closed(run)
        if run.kind == kinds.DESCRIBE:
            self._forget(run)
            return
        self._ended.append((now + limits.RESUME_WINDOW, run))
        if len(self._ended) > limits.REMEMBERED_RUNS:
            self._forget(self._ended.popleft()[1])
            self.complete_since = now

    def _forget(self, run: Run) -> None:
        if self._runs.get(run.key) is run:
            del self._runs[run.key]
            if run.said:  # who asked for its messages waited for a worker to have them
                self._out.error(run.client, run.id, _messages_are_gone())

    # --- workers that come and go ------------------------------------------------------------------

    def adopt(self, worker: Worker, held: Mapping[str, Any], now: float) -> None:
        """Take up a run that a worker holds: from before this broker, or out of another worker's hands.

        Raises:
            KeyError: The entry lacks something.
        """
        key = held["client"], held["id"]
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = Run(*key, kind=held["kind"].encode(), digest=held["digest"], keep=held["keep"])
        elif run.state is RequestState.QUEUED:
            self.pool(run).queue_of(run).remove(run)
            self._out.send(run.client, kinds.ACCEPTED, run.id, DUPLICATE[True])
            run.said.append((kinds.RESUME, FROM_START, b""))
        else:
            self._second_holder(run, worker, held["ended"])
            return
        self._out.dequeued(run)
        run.step(RequestEvent.DISPATCH)
        run.worker, run.started, run.deadline = worker.identity, now, held["deadline"]
        run.attempts = run.max_attempts  # what became of it before is not known
        if held["ended"]:
            resumes = [each for each in run.said if each[0] == kinds.RESUME]
            run.said = [each for each in run.said if each[0] != kinds.RESUME]
            run.step(RequestEvent.TERMINAL)
            self._release(run, now)
            for each in resumes:
                self._out.tell(run, *each)
            return
        worker.hold(run)
        self.offer(worker)
        self._clients.opened(run)
        self.tell_what_was_said(run)
        known = self._clients.get(run.client)
        if known is not None and known.state is ClientState.ABANDONED and not run.keep:
            self.ask_to_end(run, "client_gone")

    def _second_holder(self, run: Run, worker: Worker, has_ended: bool) -> None:
        """A worker holds a run that is known already, as another's or as ended."""
        if run.worker == worker.identity and run.terminal is None:
            return
        if not has_ended:
            self.disowned.add((worker.identity, *run.key))
            self._out.end(worker.identity, run.key, "superseded")
        elif run.state is RequestState.ENDED and run.terminal is None and run.worker not in self.workers:
            self._move(run, worker.identity)

    def hand_over(self, old: bytes | None, heir: bytes | None) -> None:
        """The ended runs of a worker that goes are another's now.

        Args:
            old: Who had them; None: nobody, since it went before there was an heir.
            heir: Who has them; None: nobody yet.
        """
        for run in self._runs.values():
            if run.worker == old and run.state is RequestState.ENDED and run.terminal is None:
                self._move(run, heir)

    def has_left(self, worker: bytes) -> bool:
        """Whether ended runs are a worker's still, which goes."""
        return any(run.worker == worker and run.terminal is None for run in self._runs.values())

    def _move(self, run: Run, heir: bytes | None) -> None:
        run.worker = heir
        if heir is not None:
            for said in run.said:
                self._out.tell(run, *said)
            run.said.clear()

    def lose(self, worker: Worker, relayed: Container[RunKey], now: float) -> None:
        """A worker is lost, and its runs with it, but for those that may be started again.

        Args:
            worker: Already out of its pool.
            relayed: Runs of which something went to the client.
            now: The time.
        """
        lost = list(worker.runs.values())
        if not worker.is_leaving:
            for digest in {run.digest for run in lost if run.takes_slot}:
                self.quarantine.strike(digest, now)
        for run in lost:
            if run.state is RequestState.RUNNING and run.attempts < run.max_attempts and run.key not in relayed:
                self._try_again(run, now)
            else:
                error = RunEndedError("worker_lost", f"the worker {worker.name} died while it ran this")
                self._end(run, error, now, RequestEvent.LOSE)
        self.disowned.difference_update([entry for entry in self.disowned if entry[0] == worker.identity])
        self.dispatch_all(now)

    def _try_again(self, run: Run, now: float) -> None:
        if self.quarantine.seconds_left(run.digest, now):
            self._end(run, self.quarantined(run.digest, now), now, RequestEvent.LOSE)
            return
        run.step(RequestEvent.REQUEUE)
        run.worker = None
        run.suspect = self.quarantine.suspects(run.digest, now)
        self.pool(run).queue_of(run).push_front(run)
        self._watch_deadline(run)

    def quarantined(self, digest: bytes, now: float) -> AxonError:
        """The error for a request of which workers died."""
        left = self.quarantine.seconds_left(digest, now)
        message = f"{limits.STRIKES} workers died while they ran this request; it is refused for {left:.0f} s more"
        return RunEndedError("quarantined", message, {"retry_after_ms": int(left * 1000)})

    # --- time --------------------------------------------------------------------------------------

    def next_timer(self) -> float:
        """When the first deadline in a queue passes."""
        return self._deadlines[0][0] if self._deadlines else float("inf")

    def tick(self, now: float) -> None:
        """End what waited too long, and forget what ended long ago."""
        while self._deadlines and self._deadlines[0][0] <= now:
            run = heapq.heappop(self._deadlines)[2]
            if run.state is RequestState.QUEUED:
                self.end_queued(run, too_late(), now)
        while self._ended and self._ended[0][0] <= now:
            self._forget(self._ended.popleft()[1])
        for pool in self.all_pools():
            if not pool.workers and now - pool.empty_since > limits.NO_WORKER_GRACE:
                self.end_all(pool, no_worker, now)
        self.quarantine.tidy(now)
        if self._was_queued and now >= self._was_queued_until:
            for key in self._was_queued:
                self._out.forgotten(key)
            self._was_queued.clear()

    def _watch_deadline(self, run: Run) -> None:
        heapq.heappush(self._deadlines, (run.deadline, next(self._order), run))
        if len(self._deadlines) > 2 * sum(pool.waiting for pool in self.all_pools()) + 1000:
            self._deadlines = [entry for entry in self._deadlines if entry[2].state is RequestState.QUEUED]
            heapq.heapify(self._deadlines)


DUPLICATE: Final = {flag: pack({"duplicate": flag}) for flag in (False, True)}
"""The bodies of `accepted`."""
FROM_START: Final = pack({"from": 1})
"""The header of a `resume` that wants everything."""


def no_worker(pool: Pool) -> AxonError:
    """The error for what waits in a pool without workers."""
    message = f"no worker serves {pool.mode}; see `axon-zmq status`"
    return UnavailableError("no_worker", message, {"retry_after_ms": int(limits.NO_WORKER_GRACE * 1000)})


def too_late() -> AxonError:
    """The error for what waited until its time was over."""
    return RunEndedError("deadline_exceeded", "timeout_ms passed in the queue")


def _messages_are_gone() -> AxonError:
    message = "the run has ended and its worker has gone, with its messages"
    return RequestError("unknown_request", message, {"may_have_run": True})
