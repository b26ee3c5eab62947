"""Collects the effects of one event, in order."""

from __future__ import annotations

import logging
from typing import Any, Final

from axon_zmq.broker.core.effects import (
    Dequeued,
    Effect,
    Enqueued,
    Kill,
    Note,
    ProbeWorkers,
    Registered,
    ToClient,
    ToWorker,
    Unregistered,
)
from axon_zmq.broker.core.pools import Run, Worker
from axon_zmq.errors import AxonError
from axon_zmq.protocol import kinds
from axon_zmq.protocol.backend import End, EndReason, Message
from axon_zmq.protocol.frames import RunKey, error_body, refused_body
from axon_zmq.protocol.kinds import CONTROL

BAD_INPUT_LINES_PER_SECOND: Final = 20
"""Maximum number of log lines per second about malformed or refused messages. Further ones are only counted, so that a
flood of them does not rotate all other lines out of the log."""


class Outgoing:
    """The effects of the current event. All parts of the core add to them.

    Args:
        now: Seconds of a monotonic clock.
    """

    def __init__(self, now: float) -> None:
        self._effects: list[Effect] = []
        self._bad_inputs = 0
        """Number of malformed or refused messages in the current second."""
        self._bad_inputs_since = now

    def take(self) -> list[Effect]:
        """Return all effects since the last call."""
        effects, self._effects = self._effects, []
        return effects

    # --- to clients --------------------------------------------------------------------------------

    def send(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> None:
        """Send a message to a client."""
        self._effects.append(ToClient(client, kind, id, body))

    def error(self, client: bytes, id: bytes, error: AxonError) -> None:
        """Send the terminal message `error` for a request id."""
        self.send(client, kinds.ERROR, id, error_body(error))

    def refuse(self, client: bytes, id: bytes, of: bytes, error: AxonError, **more: Any) -> None:
        """Send `refused`: a message for a run was not accepted, and the run continues.

        Args:
            client: Routing id of the client.
            id: Request id.
            of: Kind of the message that was not accepted.
            error: The reason.
            **more: Further keys of the body.
        """
        self.send(client, kinds.REFUSED, id, refused_body(of, error, **more))

    # --- to workers --------------------------------------------------------------------------------

    def to_worker(self, run: Run, kind: bytes, *rest: bytes) -> None:
        """Send a message about a run to the run's worker."""
        assert run.worker is not None
        self._effects.append(ToWorker(run.worker, run.client, kind, run.id, rest))

    def end(self, worker: bytes, key: RunKey, reason: EndReason) -> None:
        """Ask a worker to end a run."""
        client, id = key
        self._effects.append(ToWorker(worker, client, kinds.END, id, (End(reason).pack(),)))

    def control(self, peer: bytes, message: Message) -> None:
        """Send a control message to a worker or another peer at the backend."""
        rest = (message.pack(),) if message.has_fields() else ()
        self._effects.append(ToWorker(peer, CONTROL, message.kind, b"", rest))

    def kill(self, worker: bytes, name: str, pid: int, *, is_linked: bool) -> None:
        """Kill a worker's process."""
        self._effects.append(Kill(worker, name, pid, is_linked))

    def probe_workers(self) -> None:
        """Check which workers' links are down."""
        self._effects.append(ProbeWorkers())

    # --- to the journal ----------------------------------------------------------------------------

    def enqueued(self, run: Run) -> None:
        """Record in the journal that a run is queued and was never dispatched."""
        run.journaled = True
        self._effects.append(Enqueued(*run.key))

    def dequeued(self, run: Run) -> None:
        """Record in the journal that a run is no longer queued, if the journal lists it as queued."""
        if run.journaled:
            run.journaled = False
            self._effects.append(Dequeued(*run.key))

    def forgotten(self, key: RunKey) -> None:
        """Remove a run that was queued in an earlier broker from the journal."""
        self._effects.append(Dequeued(*key))

    def registered(self, worker: Worker) -> None:
        """Record in the journal that a worker has registered."""
        self._effects.append(Registered(worker.routing_id, worker.pid))

    def unregistered(self, worker: bytes, lost_at: float) -> None:
        """Record in the journal that a worker is no longer registered.

        Args:
            worker: Routing id of the worker.
            lost_at: When the worker last lost or forgot runs, in seconds of the monotonic clock; 0.0 if it never did.
        """
        self._effects.append(Unregistered(worker, lost_at))

    # --- to the log --------------------------------------------------------------------------------

    def log(self, level: int, text: str, id: bytes = b"") -> None:
        """Write a line to the log; `id` is the request id that it is about."""
        self._effects.append(Note(level, text, id))

    def log_bad_input(self, text: str, id: bytes, now: float) -> None:
        """Write a line about a malformed or refused message, at most `BAD_INPUT_LINES_PER_SECOND` of them."""
        if now - self._bad_inputs_since >= 1.0:
            if (more := self._bad_inputs - BAD_INPUT_LINES_PER_SECOND) > 0:
                self.log(logging.WARNING, f"{more} more malformed or refused messages, not logged one by one")
            self._bad_inputs, self._bad_inputs_since = 0, now
        self._bad_inputs += 1
        if self._bad_inputs <= BAD_INPUT_LINES_PER_SECOND:
            self.log(logging.WARNING, text, id)
