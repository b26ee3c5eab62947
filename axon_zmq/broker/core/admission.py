"""Admission: new requests, accepted or refused, and clients' messages about the runs they have."""

from __future__ import annotations

from typing import Final

from axon_zmq.broker.core.clients import Clients
from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.broker.core.pools import Pool, Run
from axon_zmq.broker.core.recovery import Recovery
from axon_zmq.broker.core.runs import DUPLICATE, FROM_START, NO_WORKER_GRACE_S, Runs, no_worker
from axon_zmq.broker.core.states import RunState
from axon_zmq.broker.core.workers import Workers
from axon_zmq.errors import AxonError, RequestError, RunEndedError, UnavailableError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.backend import EndReason
from axon_zmq.protocol.frames import ClientMessage, printable

UNDELIVERED_KEPT: Final = 16
"""`steer` and `credit` messages that are kept for a run which still waits in the queue."""


class Admission:
    """Accepts or refuses what clients send.

    Args:
        outgoing: Where effects go.
        clients: Whose messages they are.
        workers: Whose pools runs wait in.
        runs: All runs.
        recovery: Knows what is certain about runs that are not remembered.
        bounds: What an operator may set.
    """

    def __init__(
        self,
        *,
        outgoing: Outgoing,
        clients: Clients,
        workers: Workers,
        runs: Runs,
        recovery: Recovery,
        bounds: limits.BrokerLimits,
    ) -> None:
        self._out = outgoing
        self._clients = clients
        self._workers = workers
        self._runs = runs
        self._recovery = recovery
        self._bounds = bounds

    def __repr__(self) -> str:
        return f"<Admission {self._bounds}>"

    # --- a new request -----------------------------------------------------------------------------

    def request(self, client: bytes, message: ClientMessage, digest: bytes, now: float, arrived: float) -> None:
        """Take a request, or the repetition of one.

        Args:
            client: Who asks.
            message: `run_sync`, `run`, `run_stream`, `call_tool` or `describe`.
            digest: Of its body.
            now: The time.
            arrived: When it came, from which its own time counts.
        """
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
            deadline=arrived + (limits.DESCRIBE_TIMEOUT if message.kind == kinds.DESCRIBE else timeout_ms / 1000),
            max_attempts=message.header.get("max_attempts", 1),
            keep=message.header.get("on_disconnect") == "keep",
        )
        if error := self._inadmissible(self._workers.pool_of(run), run, timeout_ms, now):
            self._out.error(client, run.id, error)
            self._out.log_bad_input(f"{error} (from {printable(client)})", run.id, now)
            return
        if message.header.get("ack"):
            self._out.send(client, kinds.ACCEPTED, run.id, DUPLICATE[False])
        self._runs.start(run, now)

    def _repeat(self, run: Run, message: ClientMessage, digest: bytes) -> None:
        if (message.kind, digest) != (run.kind, run.digest):
            error = RequestError("invalid_request", "this id was used for another kind or body: choose a new one")
            self._out.refuse(run.client, run.id, message.kind, error)
            return
        self._out.send(run.client, kinds.ACCEPTED, run.id, DUPLICATE[True])
        self._runs.resume(run, 1, FROM_START)

    def _inadmissible(self, pool: Pool, run: Run, timeout_ms: int, now: float) -> AxonError | None:
        bounds = self._bounds
        if timeout_ms > bounds.max_timeout_ms:
            return RequestError(
                "invalid_request",
                f"header key 'timeout_ms' is {timeout_ms}; at most {bounds.max_timeout_ms} (pong.limits)",
            )
        if self._runs.quarantine.seconds_left(run.digest, now):
            return self._runs.quarantined(run.digest, now)
        if not pool.workers and now - pool.empty_since > NO_WORKER_GRACE_S:
            return no_worker(pool)
        if not pool.waiting and pool.idlest(now) is not None:
            return None  # it need not wait
        mine = pool.queue.of_client(run.client) + pool.suspects.of_client(run.client)
        waiting_bytes = self._workers.waiting_bytes() + run.size
        for what, waiting, most in (
            ("of this client wait", mine + 1, bounds.max_queued_per_client),
            ("wait", pool.waiting + 1, bounds.max_queued),
            ("wait, in bytes,", waiting_bytes, bounds.max_queued_bytes),
        ):
            if waiting > most:
                message = f"as many {pool.mode} requests {what} as may: {most}"
                return UnavailableError("overloaded", message, {"retry_after_ms": pool.retry_after_ms()})
        return None

    # --- about a run -------------------------------------------------------------------------------

    def about_a_run(self, client: bytes, message: ClientMessage, now: float) -> None:
        """Take what a client says about a request that it has sent before."""
        run = self._runs.get((client, message.id))
        if run is None:
            self._out.error(client, message.id, self._recovery.unknown_run((client, message.id), now))
        elif message.kind == kinds.RESUME:
            self._runs.resume(run, message.header.get("from", 1), message.header_frame)
        elif run.state is RunState.ENDED:
            self._refuse(run, message, "the run has already ended")
        elif run.state is RunState.QUEUED:
            self._about_a_queued_run(run, message, now)
        elif message.kind == kinds.CANCEL:
            self._runs.ask_to_end(run, EndReason.CANCELLED)
        else:
            self._runs.pass_on(run, message.kind, message.header_frame, message.body)

    def _about_a_queued_run(self, run: Run, message: ClientMessage, now: float) -> None:
        room = self._bounds.max_queued_bytes - self._workers.waiting_bytes()
        match message.kind:
            case kinds.CANCEL:
                self._runs.end_queued(run, RunEndedError("cancelled", "cancelled before it was started"), now)
            case kinds.STEER | kinds.CREDIT if len(run.undelivered) < UNDELIVERED_KEPT and room >= len(message.body):
                run.undelivered.append((message.kind, message.header_frame, message.body))
                self._workers.pool_of(run).queue_of(run).grow(len(message.body))
            case kinds.STEER | kinds.CREDIT:
                self._refuse(run, message, "it has not started yet, and too much waits already", "overloaded")
            case _:
                self._refuse(run, message, "it has not started yet, and called no tool")

    def _refuse(self, run: Run, message: ClientMessage, why: str, error_type: str = "invalid_request") -> None:
        more = {"call_id": message.header["call_id"]} if "call_id" in message.header else {}
        self._out.refuse(run.client, run.id, message.kind, AxonError.of(error_type, why), **more)
