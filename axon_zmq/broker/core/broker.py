"""The broker's decisions, pure: an event and the time go in, effects come out.

`Broker.receive(event, now)` holds every rule of the contract that is the broker's: admission, bounds,
fairness, duplicates, deadlines, who ends a run. It reads no clock and touches no socket; `loop` does.
BodyHasher pass through unopened, and what workers send to clients does not come here at all, but for the
one message that ends a run.

Here is the way in: what an event is about, and what waits while the broker settles. What clients ask for
is judged in `admission`; a run's life is in `runs`, who executes it in `workers`, who asked in `clients`.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from axon_zmq.broker.core.admission import Admission
from axon_zmq.broker.core.clients import DELIMITER, SINGLE, Clients
from axon_zmq.broker.core.effects import Effect
from axon_zmq.broker.core.events import (
    ClientBack,
    ClientBlocked,
    ClientGone,
    Ended,
    Event,
    FromClient,
    FromWorker,
    Stop,
    Tick,
    WorkerGone,
)
from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.broker.core.pools import Client, PreviousState
from axon_zmq.broker.core.runs import Runs
from axon_zmq.broker.core.states import ClientEvent, ClientState, RequestState, WorkerState
from axon_zmq.broker.core.workers import Workers
from axon_zmq.errors import RequestError, UnavailableError
from axon_zmq.protocol import frames, kinds, limits
from axon_zmq.protocol.frames import ClientMessage, Envelope, RunKey, open_envelope, parse, printable
from axon_zmq.protocol.msgpack import pack

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


NOTHING: Final = PreviousState()
"""Of an earlier broker nothing is known."""


class Broker:
    """The rules. One instance per broker process; not thread-safe.

    Args:
        boot: This process's random name, in every `pong` and `alive`.
        bounds: What an operator may set.
        version: The package's version, for `pong`.
        expected_workers: How many to wait for while settling; 0: those that supervisord has started.
        now: Seconds of a monotonic clock, as in every call of `receive`.
        past: What an earlier broker left.
    """

    def __init__(
        self,
        boot: str,
        bounds: limits.BrokerLimits,
        version: str,
        expected_workers: int,
        now: float,
        past: PreviousState = NOTHING,
    ) -> None:
        self.boot = boot
        self.bounds = bounds
        self.version = version
        self.settling = True
        self.stopping = False
        """It was told to stop; it settles first, since before that it knows of nothing whether it runs."""
        self.stopped = False
        """It has said its last words."""
        self.dropped = 0
        """Messages without a readable id."""
        self._out = Outgoing(now)
        self._clients = Clients()
        self._runs = Runs(self._out, self._clients, past, now)
        self._workers = Workers(self._out, self._runs, bounds.hang_seconds, past, now)
        self._admission = Admission(self._out, self._clients, self._runs, bounds)
        self.framing = self._clients.framing
        """The framing flags of clients that do not use plain three frames; `loop` reads it."""
        self.gone = self._clients.gone
        """Clients with unfinished requests that the last send did not find; `loop` reads it."""
        self._expected_workers = expected_workers
        self._settled_at = now + limits.SETTLE_TIME
        self._held: list[FromClient] = []
        """What came while settling."""
        self._held_keys: set[RunKey] = set()
        self._held_bytes = 0
        self.next_alive = now + limits.ALIVE_INTERVAL
        """When clients are told again that the broker is there."""
        self._to_tell: list[bytes] = []
        """Clients that are still to be told so in this round."""
        self._next_look = now + limits.HOUSEKEEPING

    def __repr__(self) -> str:
        pools = ", ".join(f"{mode} {pool.to_wire()}" for mode, pool in self._runs.pools.items())
        return f"<Broker {self.boot} {len(self._clients)} clients, {len(self._runs)} runs; {pools}>"

    @property
    def disowned(self) -> set[tuple[bytes, bytes, bytes]]:
        """Worker, client and id of runs of which that worker is no longer heard; `loop` reads it."""
        return self._runs.disowned

    def receive(self, event: Event, now: float) -> list[Effect]:
        """Take one event and say what is to be done, in order.

        Args:
            event: What happened.
            now: Seconds of a monotonic clock, the same as workers have.
        """
        match event:
            case FromClient():
                self._from_client(event, now)
            case Ended(worker, client, id, kind):
                self._runs.ended(worker, (client, id), kind, now)
            case FromWorker(peer, kind, body):
                self._from_backend(peer, kind, body, now)
            case WorkerGone(worker, relayed):
                self._workers.lost(worker, relayed, now)
            case ClientGone(client):
                self._client_gone(client, now)
            case ClientBack(client):
                self._client_back(client)
            case ClientBlocked(client):
                self._client_blocked(client)
            case Tick():
                self._tick(now)
            case Stop():
                self.stopping = True
                if not self.settling:
                    self._stop(now)
        return self._out.take()

    def next_timer(self) -> float:
        """When a `Tick` is due at the latest, in seconds of the same clock."""
        due = min(self.next_alive, self._next_look, self._runs.next_timer())
        return min(due, self._settled_at) if self.settling else due

    # --- from clients ------------------------------------------------------------------------------

    def _from_client(self, event: FromClient, now: float) -> None:
        client = event.client
        self._client_back(client)
        envelope = open_envelope(event.frames)
        if envelope.delimiter:
            self._clients.set_framing(client, DELIMITER)
        try:
            message = parse(envelope.frames, self.bounds.max_body)
        except RequestError as error:
            self._malformed(client, envelope, error, now)
            return
        if "frames" in message.header:
            self._clients.set_framing(client, SINGLE)
        if message.kind == kinds.PING:
            self._ping(client, message, now)
        elif self.settling and message.kind != kinds.DESCRIBE and self._runs.get((client, message.id)) is None:
            self._hold(event, message)
        elif message.kind in _ABOUT_A_RUN:
            self._admission.about_a_run(client, message, now)
        else:
            digest = event.digest or frames.body_digest(message.body)
            self._admission.request(client, message, digest, now, event.arrived)

    def _malformed(self, client: bytes, envelope: Envelope, error: RequestError, now: float) -> None:
        if not envelope.id:
            self.dropped += 1
            self._out.complain(f"dropped a message of {printable(client)}: {error.message}", b"", now)
            return
        if self._runs.get((client, envelope.id)) is not None:
            self._out.refuse(client, envelope.id, envelope.frames[0], error, **error.details)
        else:
            self._out.error(client, envelope.id, error)
        self._out.complain(f"{error} (from {printable(client)})", envelope.id, now)

    def _hold(self, event: FromClient, message: ClientMessage) -> None:
        self._held_bytes += len(message.body)
        if len(self._held) < self.bounds.max_queued and self._held_bytes <= self.bounds.max_queued_bytes:
            self._held.append(event)
            self._held_keys.add((event.client, message.id))
            return
        self._held_bytes -= len(message.body)
        retry = {"retry_after_ms": int(limits.SETTLE_TIME * 1000)}
        error = UnavailableError("overloaded", "the daemon has just started and holds too much already", retry)
        if message.kind in _ABOUT_A_RUN or (event.client, message.id) in self._held_keys:
            self._out.refuse(event.client, message.id, message.kind, error)  # there may be a run, and it is not touched
        else:
            self._out.error(event.client, message.id, error)

    def _ping(self, client: bytes, message: ClientMessage, now: float) -> None:
        body = {
            "protocol": limits.PROTOCOL,
            "version": self.version,
            "features": list(FEATURES),
            "shared": self._clients.is_shared(client, message.header.get("instance", ""), now),
            "limits": self.bounds.to_wire(),
            "dropped": self.dropped,
            **self._state(),
            "modes": {
                mode: {**pool.to_wire(), "degraded": bool(self._workers.degraded(mode, now))}
                for mode, pool in self._runs.pools.items()
            },
        }
        self._out.send(client, kinds.PONG, message.id, pack(body))

    def _state(self) -> dict[str, Any]:
        return {"boot": self.boot, "settling": self.settling, "draining": self._workers.all_leave()}

    # --- from the backend --------------------------------------------------------------------------

    def _from_backend(self, peer: bytes, kind: bytes, body: bytes, now: float) -> None:
        if kind == kinds.STATUS:
            self._out.control(peer, kinds.STATUS, self._status(now))
            return
        self._workers.hear(peer, kind, body, now)
        if self.settling and self._workers.are_all_there(self._expected_workers):
            self._settle(now)

    def _status(self, now: float) -> dict[str, Any]:
        """What an operator's tools are told; more than clients are."""
        modes: dict[str, Any] = {}
        for mode, pool in self._runs.pools.items():
            reasons = self._workers.degraded(mode, now)
            modes[mode] = {**pool.to_wire(), "degraded": bool(reasons), "reasons": reasons}
        return {
            **self._state(),
            "modes": modes,
            "workers": self._workers.to_wire(now),
            "quarantined": self._runs.quarantine.refused(now),
        }

    # --- clients that go or stall ------------------------------------------------------------------

    def _client_gone(self, client: bytes, now: float) -> None:
        since = max(now, self._settled_at) if self.settling else now
        if (known := self._clients.vanished(client, since)) is not None:
            self._tell_holders(known, kinds.GONE)
            text = f"client {printable(client)} is gone, with {len(known.open)} open requests"
            self._out.note(logging.INFO, text)

    def _client_back(self, client: bytes) -> None:
        if (known := self._clients.returned(client)) is not None:
            self._tell_holders(known, kinds.BACK)

    def _tell_holders(self, known: Client, kind: bytes) -> None:
        for run in known.open.values():
            if run.state is not RequestState.QUEUED:
                self._out.tell(run, kind)

    def _client_blocked(self, client: bytes) -> None:
        if (known := self._clients.get(client)) is not None:
            running = [run for run in known.open.values() if run.state is RequestState.RUNNING]
            if running:
                text = f"client {printable(client)} is too slow: {len(running)} runs are ended"
                self._out.note(logging.WARNING, text)
            for run in running:
                self._runs.ask_to_end(run, "slow_consumer")

    # --- time --------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if self.settling and now >= self._settled_at:
            self._settle(now)
        self._runs.tick(now)
        if now >= self._next_look:
            self._next_look = now + limits.HOUSEKEEPING
            self._workers.tick(now)
        if now >= self.next_alive:
            self._alive(now)

    def _alive(self, now: float) -> None:
        """Tell clients with unfinished requests that the broker is there; some at a time, for others wait."""
        if not self._to_tell:
            self._to_tell = self._clients.active()
        due, self._to_tell = self._to_tell[-limits.ALIVE_AT_A_TIME :], self._to_tell[: -limits.ALIVE_AT_A_TIME]
        bodies: dict[int, bytes] = {}
        for identity in due:
            client = self._clients.get(identity)
            if client is None or not client.open:
                continue
            if not self._clients.takes_one_reply(identity):
                count = len(client.open)
                body = bodies.get(count) or bodies.setdefault(count, pack({"boot": self.boot, "open": count}))
                self._out.send(identity, kinds.ALIVE, b"", body)
            if client.state is ClientState.GONE and now - client.gone_since > limits.CLIENT_GRACE:
                client.step(ClientEvent.GIVE_UP)
                self._runs.abandon(client, now)
        self.next_alive = now + (limits.ALIVE_PAUSE if self._to_tell else limits.ALIVE_INTERVAL)

    def _settle(self, now: float) -> None:
        self.settling = False
        self._workers.settled(now)
        held, self._held, self._held_bytes = self._held, [], 0
        self._held_keys.clear()
        self._out.note(logging.INFO, f"settled with {len(self._workers)} workers; {len(held)} messages were held")
        for event in held:
            self._from_client(event, now)
        if self.stopping:
            self._stop(now)

    def _stop(self, now: float) -> None:
        """End what waits, but for what another broker can take up: workers that stay are there for it."""
        self.stopped = True
        for pool in self._runs.all_pools():
            stay = pool.takes_slots and any(w.state is WorkerState.READY for w in pool.workers.values())
            if not stay:
                why = UnavailableError("shutting_down", "the daemon is stopping")
                self._runs.end_all(pool, lambda _, why=why: why, now)


_ABOUT_A_RUN: Final = frozenset((kinds.CANCEL, kinds.CREDIT, kinds.RESUME, kinds.STEER, kinds.TOOL_RESULT))
