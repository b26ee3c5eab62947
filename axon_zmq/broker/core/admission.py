"""Admission: accepts or refuses new requests, and handles clients' messages about their runs."""

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
"""Maximum number of `steer` and `credit` messages that are kept for a queued run."""


class Admission:
    """Accepts or refuses clients' messages.

    Args:
        outgoing: Collects the effects.
        clients: Records of clients.
        workers: Records of workers, and the pools in which runs are queued.
        runs: All runs.
        recovery: Creates the error for a message about an unknown run.
        bounds: The limits that the operator may set.
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
        """Start a run for a request, or attach a repeated request to its run.

        Args:
            client: Routing id of the client.
            message: A message of kind `run_sync`, `run`, `run_stream`, `call_tool` or `describe`.
            digest: Digest of the message's body.
            now: The time.
            arrived: When the message was received; `timeout_ms` counts from then.
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
        # A request that is not accepted leaves no record in the broker.
        if error := self._inadmissible(self._workers.pool_of(run), run, timeout_ms, now):
            self._out.error(client, run.id, error)
            self._out.log_bad_input(f"{error} (from {printable(client)})", run.id, now)
            return
        if message.header.get("ack"):
            self._out.send(client, kinds.ACCEPTED, run.id, DUPLICATE[False])
        self._runs.start(run, now)

    def _repeat(self, run: Run, message: ClientMessage, digest: bytes) -> None:
        if (message.kind, digest) != (run.kind, run.digest):
            error = RequestError(
                "invalid_request", "this request id was used for a request of another kind or body; choose a new id"
            )
            self._out.refuse(run.client, run.id, message.kind, error)
            return
        self._out.send(run.client, kinds.ACCEPTED, run.id, DUPLICATE[True])
        self._runs.resume(run, 1, FROM_START)

    def _inadmissible(self, pool: Pool, run: Run, timeout_ms: int, now: float) -> AxonError | None:
        """The error for a request that is not accepted, or None."""
        bounds = self._bounds
        if timeout_ms > bounds.max_timeout_ms:
            return RequestError(
                "invalid_request",
                f"header key 'timeout_ms' is {timeout_ms}, the limit is {bounds.max_timeout_ms} (max_timeout_ms)",
            )
        if self._runs.quarantine.seconds_left(run.digest, now):
            return self._runs.quarantined(run.digest, now)
        if not pool.workers and now - pool.empty_since > NO_WORKER_GRACE_S:
            return no_worker(pool)
        # The bounds are for queued runs only: a run that is dispatched at once is accepted even if they are 0.
        if self._runs.starts_at_once(pool, run, now):
            return None
        if (full := self._full_queue(pool, run)) is None:
            return None
        retry_after_ms = pool.retry_after_ms()
        message = f"queue full: {full}; retry in {retry_after_ms} ms"
        return UnavailableError("overloaded", message, {"retry_after_ms": retry_after_ms})

    def _full_queue(self, pool: Pool, run: Run) -> str | None:
        """Describe the bound that a run would exceed if it were queued; None if it would exceed none."""
        bounds = self._bounds
        of_client = pool.of_client(run.client)
        if of_client >= bounds.max_queued_per_client:
            # The number in an id that ZeroMQ has assigned must stay secret: see `connections`.
            client = repr(printable(run.client)) if run.client[:1] != b"\0" else "without a routing id"
            return f"client {client} already has {of_client} queued {pool.mode} requests (max_queued_per_client)"
        if pool.waiting >= bounds.max_queued:
            return f"{pool.waiting} {pool.mode} requests are already queued (max_queued)"
        return self._no_room(run.client, run.size)

    def _no_room(self, client: bytes, size: int) -> str | None:
        """Describe why the queues have no room for another body of a client; None if they have.

        One client may use half of the bytes: if it could use all of them, every request of other clients that cannot
        start at once would be refused. A client without queued bytes may exceed its half with one body.
        """
        most = self._bounds.max_queued_bytes
        of_client = self._workers.waiting_bytes_of(client)
        if size and of_client and of_client + size > most // 2:
            used, whose, limit = of_client, " of this client", f"{most // 2} (half of max_queued_bytes)"
        elif (used := self._workers.waiting_bytes()) + size > most:
            whose, limit = "", f"{most} (max_queued_bytes)"
        else:
            return None
        return f"queued requests{whose} have {used} bytes and this message {size}, the limit is {limit}"

    # --- about a run -------------------------------------------------------------------------------

    def about_a_run(self, client: bytes, message: ClientMessage, now: float) -> None:
        """Handle a client's message about a run: `cancel`, `credit`, `resume`, `steer` or `tool_result`."""
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
        elif (why := self._runs.in_flight.refusal(run, len(message.body))) is not None:
            self._refuse(run, message, why, "too_large")
        else:
            self._runs.pass_on(run, message.kind, message.header_frame, message.body)

    def _about_a_queued_run(self, run: Run, message: ClientMessage, now: float) -> None:
        # No worker has the run yet. `steer` and `credit` are kept for it, and count against the bounds of the queue.
        match message.kind:
            case kinds.CANCEL:
                self._runs.end_queued(run, RunEndedError("cancelled", "cancelled before it was started"), now)
            case kinds.STEER | kinds.CREDIT:
                self._keep(run, message)
            case _:
                self._refuse(run, message, "the run is still queued, so it has not called a tool")

    def _keep(self, run: Run, message: ClientMessage) -> None:
        """Keep a message for a queued run, or refuse it if it exceeds a bound."""
        is_full = len(run.undelivered) >= UNDELIVERED_KEPT
        why = f"at most {UNDELIVERED_KEPT} messages are kept for it" if is_full else None
        why = why or self._no_room(run.client, len(message.body))
        if why is not None:
            text = f"the run is still queued, and {why}; send it again when the run has started"
            self._refuse(run, message, text, "overloaded")
            return
        run.undelivered.append((message.kind, message.header_frame, message.body))
        self._workers.pool_of(run).queue_of(run).grow(run, len(message.body))

    def _refuse(self, run: Run, message: ClientMessage, why: str, error_type: str = "invalid_request") -> None:
        more = {"call_id": message.header["call_id"]} if "call_id" in message.header else {}
        self._out.refuse(run.client, run.id, message.kind, AxonError.of(error_type, why), **more)
