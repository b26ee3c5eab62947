"""The broker's decisions, pure: an event and the time go in, effects come out.

`Broker.receive(event, now)` holds every rule of the contract that is the broker's: admission, bounds,
fairness, duplicates, deadlines, who ends a run. It reads no clock and touches no socket; `loop` does.
Bodies pass through unopened, and what workers send to clients does not come here at all, but for the
one message that ends a run.
"""

from __future__ import annotations

import heapq
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator, Mapping
from itertools import count
from typing import Any, Final

from axon_zmq import limits, wire
from axon_zmq.broker.events import (
    ClientBack,
    ClientBlocked,
    ClientGone,
    Effect,
    Ended,
    Event,
    FromClient,
    FromWorker,
    Note,
    Stop,
    Tick,
    ToClient,
    ToWorker,
    WorkerGone,
)
from axon_zmq.broker.records import Client, Pool, Run, Worker
from axon_zmq.broker.states import RequestEvent, RequestState, WorkerEvent, WorkerState
from axon_zmq.errors import AxonError, RequestError, RunEndedError, UnavailableError
from axon_zmq.wire import CONTROL, RunKey

FEATURES: Final = (
    "ack",
    "call_tool",
    "cancel",
    "credit",
    "deferred",
    "events",
    "log",
    "output_schema",
    "resume",
    "single",
    "steer",
    "tools",
    "toolsets",
)
"""`pong.features`: optional parts of the contract that this daemon serves."""
DELIMITER: Final = 1
"""Framing flag: the client is REQ-style, its replies start with an empty frame."""
SINGLE: Final = 2
"""Framing flag: the client's replies are one frame."""


class Broker:
    """The rules. One instance per broker process; not thread-safe.

    Args:
        boot: This process's random name, in every `pong` and `alive`.
        bounds: What an operator may set.
        version: The package's version, for `pong`.
        expected_workers: How many to wait for while settling; 0 waits the whole time.
        now: Seconds of a monotonic clock, as in every call of `receive`.
    """

    def __init__(self, boot: str, bounds: limits.BrokerLimits, version: str, expected_workers: int, now: float) -> None:
        self.boot = boot
        self.bounds = bounds
        self.version = version
        self.settling = True
        self.framing: dict[bytes, int] = {}
        """The framing flags of clients that do not use plain three frames; `loop` reads it."""
        self.gone: set[bytes] = set()
        """Clients with unfinished requests that the last send did not find; `loop` reads it."""
        self.dropped = 0
        """Messages without a readable id."""
        self._expected_workers = expected_workers
        self._settled_at = now + limits.SETTLE_TIME
        self._pools = {mode: Pool(mode, empty_since=now) for mode in wire.MODES}
        self._describes = Pool("describe", empty_since=now, takes_slots=False)
        self._workers: dict[bytes, Worker] = {}
        self._clients: OrderedDict[bytes, Client] = OrderedDict()
        self._runs: dict[RunKey, Run] = {}
        self._ended: deque[tuple[float, Run]] = deque()
        self._held: list[tuple[float, FromClient]] = []
        """What came while settling, and when."""
        self._held_bytes = 0
        self._deadlines: list[tuple[float, int, Run]] = []
        self._order = count()
        self._next_alive = now + limits.ALIVE_INTERVAL
        self._effects: list[Effect] = []
        self._complaints = 0
        """Log lines about bad input in this second."""
        self._complaints_since = now

    def __repr__(self) -> str:
        pools = ", ".join(f"{mode} {pool.to_wire()}" for mode, pool in self._pools.items())
        return f"<Broker {self.boot} {len(self._clients)} clients, {len(self._runs)} runs; {pools}>"

    def receive(self, event: Event, now: float) -> list[Effect]:
        """Take one event and say what is to be done, in order.

        Args:
            event: What happened.
            now: Seconds of a monotonic clock, the same as workers have.
        """
        match event:
            case FromClient():
                self._from_client(event, now)
            case Ended(worker, client, id):
                self._terminal(worker, (client, id), now)
            case FromWorker(worker, kind, body):
                self._from_worker(worker, kind, body, now)
            case WorkerGone(worker, relayed):
                self._worker_gone(worker, relayed, now)
            case ClientGone(client):
                self._client_gone(client, now)
            case ClientBack(client):
                self._client_back(client)
            case ClientBlocked(client):
                self._client_blocked(client)
            case Tick():
                self._tick(now)
            case Stop():
                if self.settling:
                    self._settle(now)
                for pool in self._all_pools():
                    self._end_all(pool, lambda _: UnavailableError("shutting_down", "the daemon is stopping"), now)
        effects, self._effects = self._effects, []
        return effects

    def next_timer(self) -> float:
        """When a `Tick` is due at the latest, in seconds of the same clock."""
        due = self._next_alive
        if self.settling:
            due = min(due, self._settled_at)
        if self._deadlines:
            due = min(due, self._deadlines[0][0])
        return due

    # --- from clients ------------------------------------------------------------------------------

    def _from_client(self, event: FromClient, now: float, arrived: float | None = None) -> None:
        client = event.client
        self._client_back(client)
        envelope = wire.open_envelope(event.frames)
        if envelope.delimiter:
            self._set_framing(client, DELIMITER)
        try:
            message = wire.parse(envelope.frames, self.bounds.max_body)
        except RequestError as error:
            self._malformed(client, envelope, error, now)
            return
        if "frames" in message.header:
            self._set_framing(client, SINGLE)
        if message.kind == "ping":
            self._ping(client, message, now)
        elif self.settling and message.kind != "describe" and (client, message.id) not in self._runs:
            self._hold(event, message, now)
        elif message.kind in _ABOUT_A_RUN:
            self._about_a_run(client, message, now)
        else:
            self._request(client, message, now, now if arrived is None else arrived)

    def _malformed(self, client: bytes, envelope: wire.Envelope, error: RequestError, now: float) -> None:
        if not envelope.id:
            self.dropped += 1
            self._complain(f"dropped a message of {wire.shown(client)}: {error.message}", b"", now)
            return
        if (client, envelope.id) in self._runs:
            self._refuse(client, envelope.id, wire.shown(envelope.frames[0]), error, **error.details)
        else:
            self._send(client, b"error", envelope.id, wire.error_body(error))
        self._complain(f"{error} (from {wire.shown(client)})", envelope.id, now)

    def _complain(self, text: str, id: bytes, now: float) -> None:
        """A log line about what a client sent; of a flood of them some, and their number."""
        if now - self._complaints_since >= 1.0:
            if (more := self._complaints - limits.COMPLAINTS_PER_SECOND) > 0:
                self._note(logging.WARNING, f"{more} more messages were malformed or refused")
            self._complaints, self._complaints_since = 0, now
        self._complaints += 1
        if self._complaints <= limits.COMPLAINTS_PER_SECOND:
            self._note(logging.WARNING, text, id)

    def _set_framing(self, client: bytes, flag: int) -> None:
        self.framing[client] = self.framing.get(client, 0) | flag
        if len(self.framing) > limits.REMEMBERED_CLIENTS:
            idle = next((c for c in self.framing if c not in self._clients), None)
            if idle is not None:
                del self.framing[idle]

    def _hold(self, event: FromClient, message: wire.ClientMessage, now: float) -> None:
        self._held_bytes += len(message.body)
        if len(self._held) >= self.bounds.max_queued or self._held_bytes > self.bounds.max_queued_bytes:
            self._held_bytes -= len(message.body)
            retry = {"retry_after_ms": int(limits.SETTLE_TIME * 1000)}
            error = UnavailableError("overloaded", "the daemon has just started and holds too much already", retry)
            self._send(event.client, b"error", message.id, wire.error_body(error))
        else:
            self._held.append((now, event))

    def _ping(self, client: bytes, message: wire.ClientMessage, now: float) -> None:
        known = self._client(client)
        instance = message.header.get("instance", "")
        if instance:
            if known.instance not in ("", instance) and now - known.instance_seen < limits.SHARED_WINDOW:
                known.shared_until = now + limits.SHARED_WINDOW
            known.instance, known.instance_seen = instance, now
        self._forget_idle_clients()
        body = {
            "protocol": limits.PROTOCOL,
            "version": self.version,
            "features": list(FEATURES),
            "boot": self.boot,
            "settling": self.settling,
            "draining": bool(self._workers) and not any(w.state is WorkerState.READY for w in self._workers.values()),
            "shared": now < known.shared_until,
            "limits": self.bounds.to_wire(),
            "modes": {mode: pool.to_wire() for mode, pool in self._pools.items()},
            "dropped": self.dropped,
        }
        self._send(client, b"pong", message.id, wire.pack(body))

    def _about_a_run(self, client: bytes, message: wire.ClientMessage, now: float) -> None:
        run = self._runs.get((client, message.id))
        if run is None:
            error = RequestError(
                "unknown_request", "no run with this id is known, or no longer", {"may_have_run": True}
            )
            self._send(client, b"error", message.id, wire.error_body(error))
        elif message.kind == "resume":
            self._resume(run, message.header.get("from", 1), message.header_frame)
        elif run.state is RequestState.ENDED:
            self._refuse_message(run, message, "the run has already ended")
        elif run.state is RequestState.QUEUED:
            self._about_a_queued_run(run, message, now)
        elif message.kind == "cancel":
            self._ask_to_end(run, "cancelled")
        else:
            self._pass_on(run, message.kind.encode(), message.header_frame, message.body)

    def _about_a_queued_run(self, run: Run, message: wire.ClientMessage, now: float) -> None:
        queue = self._pool(run).queue
        room = self.bounds.max_queued_bytes - self._waiting_bytes()
        match message.kind:
            case "cancel":
                self._end_queued(run, RunEndedError("cancelled", "cancelled before it was started"), now)
            case "steer" | "credit" if len(run.said) < limits.MAX_SAID and room >= len(message.body):
                run.said.append((message.kind.encode(), message.header_frame, message.body))
                queue.grow(len(message.body))
            case "steer" | "credit":
                self._refuse_message(run, message, "it has not started yet, and too much waits already", "overloaded")
            case _:
                self._refuse_message(run, message, "it has not started yet, and called no tool")

    def _request(self, client: bytes, message: wire.ClientMessage, now: float, arrived: float) -> None:
        digest = wire.digest(message.body)
        if (earlier := self._runs.get((client, message.id))) is not None:
            self._repeat(earlier, message, digest)
            return
        timeout_ms = message.header.get("timeout_ms", limits.DEFAULT_TIMEOUT_MS)
        run = Run(
            client=client,
            id=message.id,
            kind=message.kind,
            digest=digest,
            header_frame=message.header_frame,
            body=message.body,
            deadline=arrived + (limits.DESCRIBE_TIMEOUT if message.kind == "describe" else timeout_ms / 1000),
            max_attempts=message.header.get("max_attempts", 1),
            keep=message.header.get("on_disconnect") == "keep",
        )
        pool = self._pool(run)
        if error := self._inadmissible(pool, run, timeout_ms, now):
            self._send(client, b"error", run.id, wire.error_body(error))
            self._complain(f"{error} (from {wire.shown(client)})", run.id, now)
            return
        self._runs[run.key] = run
        self._client(client).open[run.id] = run
        if message.header.get("ack"):
            self._send(client, b"accepted", run.id, _DUPLICATE[False])
        pool.queue.push(run)
        self._dispatch(pool, now)
        if run.state is RequestState.QUEUED:
            self._watch_deadline(run)

    def _watch_deadline(self, run: Run) -> None:
        heapq.heappush(self._deadlines, (run.deadline, next(self._order), run))
        if len(self._deadlines) > 2 * sum(pool.queue.count for pool in self._all_pools()) + 1000:
            self._deadlines = [entry for entry in self._deadlines if entry[2].state is RequestState.QUEUED]
            heapq.heapify(self._deadlines)

    def _inadmissible(self, pool: Pool, run: Run, timeout_ms: int, now: float) -> AxonError | None:
        bounds = self.bounds
        if timeout_ms > bounds.max_timeout_ms:
            return RequestError(
                "invalid_request",
                f"header key 'timeout_ms' is {timeout_ms}; at most {bounds.max_timeout_ms} (pong.limits)",
            )
        if not pool.workers and now - pool.empty_since > limits.NO_WORKER_GRACE:
            return _no_worker(pool)
        if not pool.queue.count and pool.idlest(now) is not None:
            return None  # it need not wait
        mine = pool.queue.of_client(run.client)
        waiting_bytes = self._waiting_bytes() + run.size
        for what, waiting, most in (
            ("of this client wait", mine + 1, bounds.max_queued_per_client),
            ("wait", pool.queue.count + 1, bounds.max_queued),
            ("wait, in bytes,", waiting_bytes, bounds.max_queued_bytes),
        ):
            if waiting > most:
                message = f"as many {pool.mode} requests {what} as may: {most}"
                return UnavailableError("overloaded", message, {"retry_after_ms": pool.retry_after_ms()})
        return None

    def _waiting_bytes(self) -> int:
        return sum(pool.queue.bytes for pool in self._all_pools())

    def _repeat(self, run: Run, message: wire.ClientMessage, digest: bytes) -> None:
        if (message.kind, digest) != (run.kind, run.digest):
            error = RequestError("invalid_request", "this id was used for another kind or body: choose a new one")
            self._refuse(run.client, run.id, message.kind, error)
            return
        self._send(run.client, b"accepted", run.id, _DUPLICATE[True])
        self._resume(run, 1, _FROM_START)

    def _resume(self, run: Run, start: int, header_frame: bytes) -> None:
        if run.state is RequestState.QUEUED or run.terminal is not None or not run.takes_slot:
            self._send(run.client, b"resumed", run.id, wire.pack({"from": start, "gap": False, "open_calls": []}))
            if run.terminal is not None:
                self._send(run.client, b"error", run.id, run.terminal)
        elif run.worker in self._workers:
            self._tell(run, b"resume", header_frame, b"")
        else:
            error = RequestError(
                "unknown_request",
                "the run has ended and its worker has gone, with its messages",
                {"may_have_run": True},
            )
            self._send(run.client, b"error", run.id, wire.error_body(error))

    # --- runs --------------------------------------------------------------------------------------

    def _dispatch(self, pool: Pool, now: float) -> None:
        """Give waiting requests to free workers, one client after the other."""
        while pool.queue.count and (worker := pool.idlest(now)) is not None:
            run = pool.queue.pop()
            if run.deadline <= now:
                self._end(run, _too_late(), now)
                continue
            run.step(RequestEvent.DISPATCH)
            run.worker, run.started = worker.identity, now
            run.attempts += 1
            worker.hold(run)
            lease = wire.pack({"deadline": run.deadline, "attempt": run.attempts})
            self._tell(run, run.kind.encode(), run.header_frame, run.body, lease)
            self._tell_what_was_said(run)
            if run.max_attempts == run.attempts:
                run.body = run.header_frame = b""

    def _tell_what_was_said(self, run: Run) -> None:
        """A worker has a run now: tell it what it missed."""
        for said in run.said:
            self._pass_on(run, *said)
        run.said.clear()
        if run.client in self.gone:
            self._tell(run, b"gone")

    def _terminal(self, worker: bytes, key: RunKey, now: float) -> None:
        run = self._runs.get(key)
        if run is None or run.worker != worker or run.state is RequestState.ENDED:
            return
        run.step(RequestEvent.TERMINAL)
        self._release(run, now)
        pool = self._pool(run)
        pool.mean_seconds += 0.1 * (now - run.started - pool.mean_seconds)
        self._dispatch(pool, now)

    def _release(self, run: Run, now: float) -> None:
        """An ended run leaves its slot and its client, and is remembered for the resume window."""
        run.body = run.header_frame = b""
        for kind, *_ in run.said:
            self._refuse(run.client, run.id, kind.decode(), RequestError("invalid_request", "the run has ended"))
        run.said.clear()
        if run.worker is not None and (worker := self._workers.get(run.worker)) is not None:
            worker.release(run)
        if (client := self._clients.get(run.client)) is not None:
            client.open.pop(run.id, None)
            if not client.open:
                self._client_idle(run.client, client)
        if run.kind == "describe":
            self._forget(run)
            return
        self._ended.append((now + limits.RESUME_WINDOW, run))
        if len(self._ended) > limits.REMEMBERED_RUNS:
            self._forget(self._ended.popleft()[1])

    def _forget(self, run: Run) -> None:
        if self._runs.get(run.key) is run:
            del self._runs[run.key]

    def _end(self, run: Run, error: AxonError, now: float, event: RequestEvent = RequestEvent.TERMINAL) -> None:
        """End a run that no worker holds: without `seq`, and the terminal is kept for who asks again."""
        run.step(event)
        error.details["by"] = "broker"
        run.terminal = wire.error_body(error)
        self._release(run, now)
        self._send(run.client, b"error", run.id, run.terminal)
        self._note(logging.WARNING, f"{run.kind} of {wire.shown(run.client)} ended: {error}", run.id)

    def _pass_on(self, run: Run, kind: bytes, header_frame: bytes, body: bytes) -> None:
        """Give a run what its client has sent for it; a second start would know nothing of that."""
        run.max_attempts = run.attempts
        self._tell(run, kind, header_frame, body)

    def _ask_to_end(self, run: Run, reason: str) -> None:
        if run.state is RequestState.RUNNING:
            run.step(RequestEvent.ASK_TO_END)
            self._tell(run, b"end", wire.pack({"reason": reason}))

    def _end_queued(self, run: Run, error: AxonError, now: float) -> None:
        self._pool(run).queue.remove(run)
        self._end(run, error, now)

    def _end_all(self, pool: Pool, why: Callable[[Pool], AxonError], now: float) -> None:
        while pool.queue.count:
            self._end(pool.queue.pop(), why(pool), now)

    # --- from workers ------------------------------------------------------------------------------

    def _from_worker(self, identity: bytes, kind: bytes, body: bytes, now: float) -> None:
        worker = self._workers.get(identity)
        if kind == b"ready":
            try:
                self._ready(identity, wire.unpack(body, "ready"), now)
            except (RequestError, KeyError, TypeError) as fault:
                self._note(logging.ERROR, f"{wire.shown(identity)} registers as nobody understands: {fault!r}")
        elif worker is None:
            self._note(logging.WARNING, f"{wire.shown(kind)} from {wire.shown(identity)}, which is not registered")
        elif kind == b"progress":
            was_silent = now - worker.seen >= limits.PROGRESS_TIMEOUT
            worker.seen = now
            if was_silent:
                self._dispatch_all(now)
        elif kind == b"slots":
            worker.slots = wire.unpack(body, "slots").get("slots", worker.slots)
            self._dispatch_all(now)
        elif kind == b"leaving":
            worker.step(WorkerEvent.LEAVE)
            self._effects.append(ToWorker(identity, CONTROL, b"left", b"", ()))
            self._note(logging.INFO, f"worker {worker.name} is leaving with {len(worker.runs)} runs")

    def _ready(self, identity: bytes, body: Mapping[str, Any], now: float) -> None:
        if body.get("v") != limits.BACKEND_PROTOCOL:
            self._note(logging.ERROR, f"{wire.shown(identity)} speaks protocol {body.get('v')}: it gets no work")
            return
        mode, slots, name = body["mode"], body["slots"], body["name"]
        worker = self._workers.get(identity)
        if mode not in self._pools:
            self._note(logging.ERROR, f"worker {name} serves mode {mode!r}, which this broker does not know")
        elif worker is None:
            worker = self._workers[identity] = Worker(identity, mode, slots, name, seen=now)
            self._pools[mode].workers[identity] = self._describes.workers[identity] = worker
            for held in body["holds"]:
                self._adopt(worker, held, now)
            self._note(logging.INFO, f"worker {name} is ready: {mode}, {slots} slots, {len(body['holds'])} runs held")
        else:
            worker.step(WorkerEvent.READY)
            worker.slots, worker.seen = slots, now
            for run in worker.runs.values():  # it takes all clients to be there again
                self._tell_what_was_said(run)
        if self.settling and 0 < self._expected_workers <= len(self._workers):
            self._settle(now)
        self._dispatch_all(now)

    def _adopt(self, worker: Worker, held: Mapping[str, Any], now: float) -> None:
        """Take up a run that a worker holds from before this broker, or from before its link broke."""
        key = held["client"], held["id"]
        run = self._runs.get(key)
        if run is not None and run.state is RequestState.QUEUED:
            self._pool(run).queue.remove(run)
            run.step(RequestEvent.DISPATCH)
        elif run is None:
            run = self._runs[key] = Run(*key, kind=held["kind"], digest=held["digest"], state=RequestState.RUNNING)
            run.keep = held["keep"]
        else:
            return
        run.worker, run.started, run.deadline = worker.identity, now, held["deadline"]
        if held["ended"]:
            run.step(RequestEvent.TERMINAL)
            self._release(run, now)
            return
        worker.hold(run)
        self._client(run.client).open[run.id] = run
        self._tell_what_was_said(run)

    def _worker_gone(self, identity: bytes, relayed: Container[RunKey], now: float) -> None:
        worker = self._workers.pop(identity, None)
        if worker is None:
            return
        worker.step(WorkerEvent.LOSE)
        for pool in (self._pools[worker.mode], self._describes):
            del pool.workers[identity]
            if not pool.workers:
                pool.empty_since = now
        lost = list(worker.runs.values())
        level = logging.WARNING if lost else logging.INFO
        self._note(level, f"worker {worker.name} is gone, with {len(lost)} runs")
        for run in lost:
            may_run_again = run.attempts < run.max_attempts and run.key not in relayed
            if may_run_again and run.state is RequestState.RUNNING:
                run.step(RequestEvent.REQUEUE)
                run.worker = None
                self._pool(run).queue.push_front(run)
                self._watch_deadline(run)
            else:
                message = f"the worker {worker.name} died while it ran this"
                self._end(run, RunEndedError("worker_lost", message), now, RequestEvent.LOSE)
        self._dispatch_all(now)

    # --- clients that go or stall ------------------------------------------------------------------

    def _client_gone(self, client: bytes, now: float) -> None:
        known = self._clients.get(client)
        if known is not None and known.open and known.gone_since is None:
            known.gone_since = now
            self.gone.add(client)
            self._tell_holders(known, b"gone")
            self._note(logging.INFO, f"client {wire.shown(client)} is gone, with {len(known.open)} open requests")

    def _client_back(self, client: bytes) -> None:
        if client in self.gone:
            self.gone.discard(client)
            known = self._clients[client]
            known.gone_since = None
            self._tell_holders(known, b"back")

    def _tell_holders(self, known: Client, kind: bytes) -> None:
        for run in known.open.values():
            if run.state is not RequestState.QUEUED:
                self._tell(run, kind)

    def _client_blocked(self, client: bytes) -> None:
        if (known := self._clients.get(client)) is not None:
            running = [run for run in known.open.values() if run.state is RequestState.RUNNING]
            if running:
                self._note(logging.WARNING, f"client {wire.shown(client)} is too slow: {len(running)} runs are ended")
            for run in running:
                self._ask_to_end(run, "slow_consumer")

    def _end_abandoned(self, known: Client, now: float) -> None:
        for run in [run for run in known.open.values() if not run.keep]:
            if run.state is RequestState.QUEUED:
                self._end_queued(run, RunEndedError("cancelled", "its client went away"), now)
            else:
                self._ask_to_end(run, "client_gone")

    def _client_idle(self, identity: bytes, known: Client) -> None:
        self.gone.discard(identity)
        known.gone_since = None
        if not known.instance:
            del self._clients[identity]

    def _client(self, identity: bytes) -> Client:
        known = self._clients.get(identity)
        if known is None:
            known = self._clients[identity] = Client()
        return known

    def _forget_idle_clients(self) -> None:
        while len(self._clients) > limits.REMEMBERED_CLIENTS:
            identity, client = self._clients.popitem(last=False)
            if client.open:
                self._clients[identity] = client
                return

    # --- time --------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if self.settling and now >= self._settled_at:
            self._settle(now)
        while self._deadlines and self._deadlines[0][0] <= now:
            run = heapq.heappop(self._deadlines)[2]
            if run.state is RequestState.QUEUED:
                self._end_queued(run, _too_late(), now)
        while self._ended and self._ended[0][0] <= now:
            self._forget(self._ended.popleft()[1])
        for pool in self._all_pools():
            if not pool.workers and now - pool.empty_since > limits.NO_WORKER_GRACE:
                self._end_all(pool, _no_worker, now)
        if now >= self._next_alive:
            self._next_alive = now + limits.ALIVE_INTERVAL
            self._alive(now)

    def _alive(self, now: float) -> None:
        for identity, client in list(self._clients.items()):
            if client.open:
                # A REQ socket takes one reply, and that is the answer.
                if not self.framing.get(identity, 0) & DELIMITER:
                    self._send(identity, b"alive", b"", wire.pack({"boot": self.boot, "open": len(client.open)}))
                if client.gone_since is not None and now - client.gone_since > limits.CLIENT_GRACE:
                    self._end_abandoned(client, now)

    def _settle(self, now: float) -> None:
        self.settling = False
        held, self._held, self._held_bytes = self._held, [], 0
        self._note(logging.INFO, f"settled with {len(self._workers)} workers; {len(held)} messages were held")
        for arrived, event in held:
            self._from_client(event, now, arrived)

    # --- small things ------------------------------------------------------------------------------

    def _pool(self, run: Run) -> Pool:
        return self._pools[wire.POOLS[run.kind]] if run.kind in wire.POOLS else self._describes

    def _all_pools(self) -> Iterator[Pool]:
        yield from self._pools.values()
        yield self._describes

    def _dispatch_all(self, now: float) -> None:
        for pool in self._all_pools():
            self._dispatch(pool, now)

    def _tell(self, run: Run, kind: bytes, *rest: bytes) -> None:
        assert run.worker is not None
        self._effects.append(ToWorker(run.worker, run.client, kind, run.id, rest))

    def _send(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> None:
        self._effects.append(ToClient(client, kind, id, body))

    def _refuse(self, client: bytes, id: bytes, of: str, error: AxonError, **more: Any) -> None:
        self._send(client, b"refused", id, wire.refused_body(of, error, **more))

    def _refuse_message(
        self, run: Run, message: wire.ClientMessage, why: str, error_type: str = "invalid_request"
    ) -> None:
        more = {"call_id": message.header["call_id"]} if "call_id" in message.header else {}
        self._refuse(run.client, run.id, message.kind, AxonError.of(error_type, why), **more)

    def _note(self, level: int, text: str, id: bytes = b"") -> None:
        self._effects.append(Note(level, text, id))


_ABOUT_A_RUN: Final = frozenset(("cancel", "credit", "resume", "steer", "tool_result"))
_DUPLICATE: Final = {flag: wire.pack({"duplicate": flag}) for flag in (False, True)}
_FROM_START: Final = wire.pack({"from": 1})


def _no_worker(pool: Pool) -> AxonError:
    message = f"no worker serves {pool.mode}; see `supervisorctl status`"
    return UnavailableError("no_worker", message, {"retry_after_ms": int(limits.NO_WORKER_GRACE * 1000)})


def _too_late() -> AxonError:
    return RunEndedError("deadline_exceeded", "timeout_ms passed in the queue")
