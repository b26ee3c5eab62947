"""What the core wants done: the effects of one event, collected in order."""

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
"""Log lines about malformed or refused messages; more are counted, so that a flood does not push the rest out."""


class Outgoing:
    """The effects so far; the parts of the core add to them, `take` hands them over.

    Args:
        now: Seconds of a monotonic clock.
    """

    def __init__(self, now: float) -> None:
        self._effects: list[Effect] = []
        self._bad_inputs = 0
        """Log lines about bad input in this second."""
        self._bad_inputs_since = now

    def take(self) -> list[Effect]:
        """All effects since the last call."""
        effects, self._effects = self._effects, []
        return effects

    # --- to clients --------------------------------------------------------------------------------

    def send(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> None:
        """Send a client a message."""
        self._effects.append(ToClient(client, kind, id, body))

    def error(self, client: bytes, id: bytes, error: AxonError) -> None:
        """End an id."""
        self.send(client, kinds.ERROR, id, error_body(error))

    def refuse(self, client: bytes, id: bytes, of: bytes, error: AxonError, **more: Any) -> None:
        """Say that something for a run could not be taken."""
        self.send(client, kinds.REFUSED, id, refused_body(of, error, **more))

    # --- to workers --------------------------------------------------------------------------------

    def to_worker(self, run: Run, kind: bytes, *rest: bytes) -> None:
        """Send the worker of a run a message about it."""
        assert run.worker is not None
        self._effects.append(ToWorker(run.worker, run.client, kind, run.id, rest))

    def end(self, worker: bytes, key: RunKey, reason: EndReason) -> None:
        """Ask a worker to end a run."""
        client, id = key
        self._effects.append(ToWorker(worker, client, kinds.END, id, (End(reason).pack(),)))

    def control(self, peer: bytes, message: Message) -> None:
        """Send a peer at the backend a message that is about no run."""
        rest = (message.pack(),) if message.has_fields() else ()
        self._effects.append(ToWorker(peer, CONTROL, message.kind, b"", rest))

    def kill(self, worker: bytes, name: str, pid: int, *, is_linked: bool) -> None:
        """End a worker's process."""
        self._effects.append(Kill(worker, name, pid, is_linked))

    def probe_workers(self) -> None:
        """Have the links of workers looked at."""
        self._effects.append(ProbeWorkers())

    # --- to the disk -------------------------------------------------------------------------------

    def enqueued(self, run: Run) -> None:
        """A run waits that was never with a worker."""
        run.journaled = True
        self._effects.append(Enqueued(*run.key))

    def dequeued(self, run: Run) -> None:
        """It waits no longer."""
        if run.journaled:
            run.journaled = False
            self._effects.append(Dequeued(*run.key))

    def forgotten(self, key: RunKey) -> None:
        """What waited when an earlier broker died is no longer asked for."""
        self._effects.append(Dequeued(*key))

    def registered(self, worker: Worker) -> None:
        """A worker is there."""
        self._effects.append(Registered(worker.routing_id, worker.pid))

    def unregistered(self, worker: bytes, lost_at: float) -> None:
        """It is there no more; when runs were last lost with it, 0.0 where none were."""
        self._effects.append(Unregistered(worker, lost_at))

    # --- to the log --------------------------------------------------------------------------------

    def log(self, level: int, text: str, id: bytes = b"") -> None:
        """Write a line."""
        self._effects.append(Note(level, text, id))

    def log_bad_input(self, text: str, id: bytes, now: float) -> None:
        """Write a line about what a client sent; of a flood of them some, and their number."""
        if now - self._bad_inputs_since >= 1.0:
            if (more := self._bad_inputs - BAD_INPUT_LINES_PER_SECOND) > 0:
                self.log(logging.WARNING, f"{more} more messages were malformed or refused")
            self._bad_inputs, self._bad_inputs_since = 0, now
        self._bad_inputs += 1
        if self._bad_inputs <= BAD_INPUT_LINES_PER_SECOND:
            self.log(logging.WARNING, text, id)
