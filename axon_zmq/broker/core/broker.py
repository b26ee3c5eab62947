"""The broker core: makes all decisions of the broker, without I/O.

`Broker.receive` takes an event and the time, and returns effects. It implements the broker's part of the protocol:
admission, limits, fairness, duplicates, deadlines, and the end of each run. It neither reads a clock nor uses a socket;
`server` does both. Bodies are never unpacked. Messages from workers to clients do not pass through the core, because
`relay` decides about them; the core receives an event only after a terminal message was relayed.

This module distributes events to the other modules and holds messages back during recovery. `admission` handles
messages from clients, and `control` handles messages from workers. `runs`, `workers` and `clients` contain the state.
"""

from __future__ import annotations

import logging
from typing import Final

from axon_zmq.broker.core.admission import Admission
from axon_zmq.broker.core.clients import Client, Clients
from axon_zmq.broker.core.control import Control
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
    TakenOver,
    Tick,
    WorkerGone,
)
from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.broker.core.recovery import PreviousState, Recovery
from axon_zmq.broker.core.relay import DELIMITER, SINGLE, Relay
from axon_zmq.broker.core.runs import Runs
from axon_zmq.broker.core.states import ClientEvent, ClientState, RunState, WorkerState
from axon_zmq.broker.core.workers import HOUSEKEEPING_S, Workers
from axon_zmq.errors import RequestError, UnavailableError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.backend import EndReason, Status
from axon_zmq.protocol.frames import (
    ClientMessage,
    Envelope,
    RunKey,
    body_digest,
    open_envelope,
    parse,
    printable,
)
from axon_zmq.protocol.msgpack import pack

RECOVERY_S: Final = 2.0
"""Maximum seconds for which a new broker waits for workers to register before it answers `unknown_request`."""
ALIVE_INTERVAL_S: Final = 2.0
"""Seconds between two `alive` messages to a client with unfinished runs. If the send fails, the client
is gone."""
ALIVE_BATCH: Final = 500
"""Number of clients that get an `alive` at a time. Sending it to 100,000 clients at once would delay all other messages
by 349 ms; in batches it takes 2 s (docs/performance.md)."""
ALIVE_PAUSE_S: Final = 0.01
"""Seconds between two batches."""
CLIENT_GRACE_S: Final = 15.0
"""Seconds for which a client may be gone before its runs are ended, except those with `on_disconnect: "keep"`."""
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
"""`pong.features`: optional parts of the protocol that this daemon supports."""

NO_PREVIOUS: Final = PreviousState()
"""The previous state if nothing is known about an earlier broker."""


class Broker:
    """The core of one broker process. It is not thread-safe.

    Args:
        boot: Random name of this process, contained in every `pong` and `alive`.
        bounds: The limits that the operator may set.
        version: Version of the package, for `pong`.
        expected_workers: Number of workers to wait for during recovery; 0: all that supervisord has started.
        now: Seconds of a monotonic clock, as in every call of `receive`.
        previous: The state that an earlier broker left.
    """

    def __init__(
        self,
        *,
        boot: str,
        bounds: limits.BrokerLimits,
        version: str,
        expected_workers: int,
        now: float,
        previous: PreviousState = NO_PREVIOUS,
    ) -> None:
        self.boot = boot
        self.bounds = bounds
        self.version = version
        self.recovering = True
        self.stopping = False
        """Whether the broker was asked to stop. It completes recovery first: before that, it cannot answer held
        messages correctly."""
        self.stopped = False
        """Whether all shutdown messages have been sent, so that the process can exit."""
        self.dropped = 0
        """Number of messages that were dropped because they have no readable request id."""
        self.takeovers = 0
        """Number of times that a connection took over the routing id of another one, which was open."""
        self.relay = Relay()
        """Decides about messages from workers to clients, which do not pass through `receive`."""
        self._out = Outgoing(now)
        self.clients = Clients(self.relay)
        self.workers = Workers(self._out, bounds, now)
        self._recovery = Recovery(self._out, previous, now)
        self.runs = Runs(
            outgoing=self._out,
            clients=self.clients,
            workers=self.workers,
            relay=self.relay,
            recovery=self._recovery,
            bounds=bounds,
        )
        self._control = Control(
            outgoing=self._out,
            workers=self.workers,
            runs=self.runs,
            relay=self.relay,
            recovery=self._recovery,
            previous=previous,
            hang_seconds=bounds.hang_seconds,
        )
        self._admission = Admission(
            outgoing=self._out,
            clients=self.clients,
            workers=self.workers,
            runs=self.runs,
            recovery=self._recovery,
            bounds=bounds,
        )
        self._expected_workers = expected_workers
        self._recovery_ends_at = now + RECOVERY_S
        """When recovery ends at the latest."""
        self._held: list[FromClient] = []
        """Messages about unknown runs that were received during recovery."""
        self._held_keys: set[RunKey] = set()
        """Run keys of these messages."""
        self._held_bytes = 0
        """Total size of their bodies in bytes."""
        self.next_alive = now + ALIVE_INTERVAL_S
        """When the next batch of clients gets `alive`."""
        self._alive_due: list[bytes] = []
        """Clients that will still get `alive` in this round."""
        self._housekeeping_at = now + HOUSEKEEPING_S

    def __repr__(self) -> str:
        pools = ", ".join(
            f"{mode}: {len(pool.workers)} workers, {pool.waiting} queued" for mode, pool in self.workers.pools.items()
        )
        return f"<Broker {self.boot} {len(self.clients)} clients, {len(self.runs)} runs; {pools}>"

    # --- events ----------------------------------------------------------------------------------------

    def receive(self, event: Event, now: float) -> list[Effect]:
        """Process one event.

        Args:
            event: The event.
            now: Seconds of the machine's monotonic clock, which the workers use, too.

        Returns:
            The effects to apply, in order.
        """
        match event:
            case FromClient():
                self._from_client(event, now)
            case Ended(worker, client, id, kind):
                self.runs.ended(worker, (client, id), kind, now)
            case FromWorker(peer, kind, body):
                self._from_backend(peer, kind, body, now)
            case WorkerGone(worker):
                self._control.lost(worker, now)
            case ClientGone(client):
                self._client_gone(client, now)
            case ClientBack(client):
                self._client_back(client)
            case ClientBlocked(client):
                self._client_blocked(client)
            case TakenOver(client):
                self.takeovers += 1
                self.clients.taken_over(client, now)
            case Tick():
                self._tick(now)
            case Stop():
                self.stopping = True
                if not self.recovering:
                    self._stop(now)
        return self._out.take()

    def next_timer(self) -> float:
        """When the next `Tick` is due, in seconds of the monotonic clock."""
        due = min(self.next_alive, self._housekeeping_at, self.runs.next_timer())
        return min(due, self._recovery_ends_at) if self.recovering else due

    # --- from clients ------------------------------------------------------------------------------

    def _from_client(self, event: FromClient, now: float) -> None:
        client = event.client
        self._client_back(client)  # any message shows that the client is connected
        if len(event.frames) > limits.MAX_FRAMES:
            self.dropped += 1
            text = f"dropped a message from client {printable(client)}: it has more than {limits.MAX_FRAMES} frames"
            self._out.log_bad_input(text, b"", now)
            return
        envelope = open_envelope(event.frames)
        if envelope.delimiter:
            self.clients.set_framing(client, DELIMITER)
        try:
            message = parse(envelope.frames, self.bounds.max_body)
        except RequestError as error:
            self._malformed(client, envelope, error, now)
            return
        if "frames" in message.header:
            self.clients.set_framing(client, SINGLE)
        if message.kind == kinds.PING:
            self._ping(client, message, now)
        elif self.recovering and message.kind != kinds.DESCRIBE and self.runs.get((client, message.id)) is None:
            # A worker that has not registered yet may have this run. A `describe` starts no run and is not held back.
            self._hold(event, message)
        elif message.kind in _ABOUT_A_RUN:
            self._admission.about_a_run(client, message, now)
        else:
            digest = event.digest or body_digest(message.body)
            self._admission.request(client, message, digest, now, event.arrived)

    def _malformed(self, client: bytes, envelope: Envelope, error: RequestError, now: float) -> None:
        if not envelope.id:  # an error needs a request id
            self.dropped += 1
            self._out.log_bad_input(f"dropped a message from client {printable(client)}: {error.message}", b"", now)
            return
        # `error` is a terminal message, so it must not be sent for a run that exists.
        if self.runs.get((client, envelope.id)) is not None:
            self._out.refuse(client, envelope.id, envelope.frames[0], error, **error.details)
        else:
            self._out.error(client, envelope.id, error)
        self._out.log_bad_input(f"{error} (from {printable(client)})", envelope.id, now)

    def _hold(self, event: FromClient, message: ClientMessage) -> None:
        self._held_bytes += len(message.body)
        if len(self._held) < self.bounds.max_queued and self._held_bytes <= self.bounds.max_queued_bytes:
            self._held.append(event)
            self._held_keys.add((event.client, message.id))
            return
        self._held_bytes -= len(message.body)
        retry_after_ms = int(RECOVERY_S * 1000)
        text = (
            f"the broker is recovering from a restart and already holds {len(self._held)} messages with "
            f"{self._held_bytes} bytes (max_queued, max_queued_bytes); retry in {retry_after_ms} ms"
        )
        error = UnavailableError("overloaded", text, {"retry_after_ms": retry_after_ms})
        # The run may exist. An `error` would end it for the client; a `refused` does not.
        if message.kind in _ABOUT_A_RUN or (event.client, message.id) in self._held_keys:
            self._out.refuse(event.client, message.id, message.kind, error)
        else:
            self._out.error(event.client, message.id, error)

    def _ping(self, client: bytes, message: ClientMessage, now: float) -> None:
        modes = {mode: self._control.mode_status(pool, now).for_clients() for mode, pool in self.workers.pools.items()}
        body = {
            "protocol": limits.PROTOCOL,
            "version": self.version,
            "features": list(FEATURES),
            "shared": self.clients.is_shared(client, now),
            "limits": self.bounds.to_wire(),
            "dropped": self.dropped,
            "boot": self.boot,
            "settling": self.recovering,
            "draining": self.workers.all_leave(),
            "modes": modes,
        }
        self._out.send(client, kinds.PONG, message.id, pack(body))

    # --- from the backend --------------------------------------------------------------------------

    def _from_backend(self, peer: bytes, kind: bytes, body: bytes, now: float) -> None:
        if kind == kinds.STATUS:
            self._out.control(peer, self._status(now))
            return
        self._control.receive(peer, kind, body, now)
        if self.recovering and self._control.all_registered(self._expected_workers):
            self._recovered(now)

    def _status(self, now: float) -> Status:
        """The answer to `status`, for operators' tools; it contains more than the `pong` for clients."""
        return Status(
            boot=self.boot,
            settling=self.recovering,
            draining=self.workers.all_leave(),
            modes={mode: self._control.mode_status(pool, now) for mode, pool in self.workers.pools.items()},
            workers=self._control.worker_statuses(now),
            quarantined=self.runs.quarantine.refused(now),
            takeovers=self.takeovers,
        )

    # --- clients that are gone or blocked ----------------------------------------------------------

    def _client_gone(self, client: bytes, now: float) -> None:
        # The restart of the broker disconnected all clients, so their grace period starts when recovery ends.
        since = max(now, self._recovery_ends_at) if self.recovering else now
        if (known := self.clients.vanished(client, since)) is not None:
            self._notify_workers(known, kinds.GONE)
            text = f"client {printable(client)} is gone, with {len(known.open)} open runs"
            self._out.log(logging.INFO, text)

    def _client_back(self, client: bytes) -> None:
        if (known := self.clients.returned(client)) is not None:
            self._notify_workers(known, kinds.BACK)

    def _notify_workers(self, known: Client, kind: bytes) -> None:
        for run in known.open.values():
            if run.state is not RunState.QUEUED:
                self._out.to_worker(run, kind)

    def _client_blocked(self, client: bytes) -> None:
        if (known := self.clients.get(client)) is not None:
            running = [run for run in known.open.values() if run.state in (RunState.RUNNING, RunState.WAITING)]
            if running:
                text = f"client {printable(client)} reads too slowly (send queue full): ending {len(running)} runs"
                self._out.log(logging.WARNING, text)
            for run in running:
                self.runs.ask_to_end(run, EndReason.SLOW_CONSUMER)

    # --- time --------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if self.recovering and now >= self._recovery_ends_at:
            self._recovered(now)
        self.runs.tick(now)
        self._recovery.tick(now)
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + HOUSEKEEPING_S
            self._control.tick(now)
        if now >= self.next_alive:
            self._alive(now)

    def _alive(self, now: float) -> None:
        """Send `alive` to the next batch of clients with unfinished runs, and abandon clients gone for too long."""
        if not self._alive_due:
            self._alive_due = self.clients.active()
        due, self._alive_due = self._alive_due[-ALIVE_BATCH:], self._alive_due[:-ALIVE_BATCH]
        bodies: dict[int, bytes] = {}
        for identity in due:
            client = self.clients.get(identity)
            if client is None or not client.open:
                continue
            # A REQ socket would take `alive` for the reply to its request.
            if not self.clients.takes_one_reply(identity):
                count = len(client.open)
                body = bodies.get(count) or bodies.setdefault(count, pack({"boot": self.boot, "open": count}))
                self._out.send(identity, kinds.ALIVE, b"", body)
            if client.state is ClientState.GONE and now - client.gone_since > CLIENT_GRACE_S:
                client.step(ClientEvent.GIVE_UP)
                self.runs.abandon(client, now)
            if client.state in (ClientState.GONE, ClientState.ABANDONED):
                self.runs.end_kept(client, now - self.bounds.max_keep_ms / 1000)
        self.next_alive = now + (ALIVE_PAUSE_S if self._alive_due else ALIVE_INTERVAL_S)

    def _recovered(self, now: float) -> None:
        """End recovery, and process the messages that were held back."""
        self.recovering = False
        self._control.recovered(now)
        held, self._held, self._held_bytes = self._held, [], 0
        self._held_keys.clear()
        text = f"recovery is complete: {len(self.workers)} workers registered, processing {len(held)} held messages"
        self._out.log(logging.INFO, text)
        for event in held:
            self._from_client(event, now)
        if self.stopping:
            self._stop(now)

    def _stop(self, now: float) -> None:
        """End the queued runs of each pool whose workers are all leaving, because the whole daemon is stopping.

        If workers stay, only the broker is restarted. Its queued runs remain in the journal, and the next broker tells
        their clients to send them again.
        """
        self.stopped = True
        # The pool of `describe` is always included: a `describe` is not a run, so the journal does not contain it.
        for pool in self.workers.all_pools():
            stay = pool.takes_slots and any(w.state is WorkerState.READY for w in pool.workers.values())
            if not stay:
                why = UnavailableError("shutting_down", "the daemon is stopping; retry after it has been restarted")
                self.runs.end_all(pool, lambda _, why=why: why, now)


_ABOUT_A_RUN: Final = frozenset((kinds.CANCEL, kinds.CREDIT, kinds.RESUME, kinds.STEER, kinds.TOOL_RESULT))
