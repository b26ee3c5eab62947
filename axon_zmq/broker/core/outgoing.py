"""What the core wants done: the effects of one event, collected in order."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from axon_zmq.broker.core.effects import (
    Dequeued,
    Effect,
    Enqueued,
    Kill,
    Note,
    Registered,
    ToClient,
    ToWorker,
    Unregistered,
)
from axon_zmq.broker.core.pools import Run, Worker
from axon_zmq.errors import AxonError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import RunKey, error_body, refused_body
from axon_zmq.protocol.kinds import CONTROL
from axon_zmq.protocol.msgpack import pack


class Outgoing:
    """The effects so far; the parts of the core add to them, `take` hands them over.

    Args:
        now: Seconds of a monotonic clock.
    """

    def __init__(self, now: float) -> None:
        self._effects: list[Effect] = []
        self._complaints = 0
        """Log lines about bad input in this second."""
        self._complaints_since = now

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

    def tell(self, run: Run, kind: bytes, *rest: bytes) -> None:
        """Tell the worker of a run something about it."""
        assert run.worker is not None
        self._effects.append(ToWorker(run.worker, run.client, kind, run.id, rest))

    def end(self, worker: bytes, key: RunKey, reason: str) -> None:
        """Ask a worker to end a run."""
        client, id = key
        self._effects.append(ToWorker(worker, client, kinds.END, id, (pack({"reason": reason}),)))

    def control(self, peer: bytes, kind: bytes, body: Mapping[str, Any] | None = None) -> None:
        """Tell a peer at the backend something that is about no run."""
        rest = () if body is None else (pack(body),)
        self._effects.append(ToWorker(peer, CONTROL, kind, b"", rest))

    def kill(self, worker: bytes, name: str, pid: int) -> None:
        """End a worker's process."""
        self._effects.append(Kill(worker, name, pid))

    # --- to the disk -------------------------------------------------------------------------------

    def enqueued(self, run: Run) -> None:
        """A run waits that was never with a worker."""
        run.noted = True
        self._effects.append(Enqueued(*run.key))

    def dequeued(self, run: Run) -> None:
        """It waits no longer."""
        if run.noted:
            run.noted = False
            self._effects.append(Dequeued(*run.key))

    def forgotten(self, key: RunKey) -> None:
        """What waited when an earlier broker died is no longer asked for."""
        self._effects.append(Dequeued(*key))

    def registered(self, worker: Worker) -> None:
        """A worker is there."""
        self._effects.append(Registered(worker.identity, worker.pid))

    def unregistered(self, worker: bytes, lost_at: float) -> None:
        """It is there no more; when runs were last lost with it, 0.0 where none were."""
        self._effects.append(Unregistered(worker, lost_at))

    # --- to the log --------------------------------------------------------------------------------

    def note(self, level: int, text: str, id: bytes = b"") -> None:
        """Write a line."""
        self._effects.append(Note(level, text, id))

    def complain(self, text: str, id: bytes, now: float) -> None:
        """Write a line about what a client sent; of a flood of them some, and their number."""
        if now - self._complaints_since >= 1.0:
            if (more := self._complaints - limits.COMPLAINTS_PER_SECOND) > 0:
                self.note(logging.WARNING, f"{more} more messages were malformed or refused")
            self._complaints, self._complaints_since = 0, now
        self._complaints += 1
        if self._complaints <= limits.COMPLAINTS_PER_SECOND:
            self.note(logging.WARNING, text, id)
