"""One request of a load test: what its reader has received, and whether a promise was broken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from axon_zmq.client import core
from axon_zmq.errors import AxonError
from axon_zmq.events import Chunk, Complete
from axon_zmq.loadtest.connection import Connection
from axon_zmq.loadtest.figures import Figures
from axon_zmq.loadtest.plan import Kind

UNREAD: Final = "not read in time"
"""Failure of a run that timed out while its stalled reader had unread messages; its end may be among them."""


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """One request and its state."""

    kind: Kind
    connection: Connection
    client_run: core.Run
    due: float
    """Time at which the request should have been sent."""
    figures: Figures | None
    """None for a request of the warm-up."""
    gap: bool = False
    """Whether a message arrived before its predecessor."""
    read_at: float = 0.0
    """Time at which a slow reader reads the next message."""
    timed_out_unread: bool = False
    """Whether the run timed out while its reader had unread messages."""
    read_is_scheduled: bool = False
    """Whether the driver's heap has an entry for the next read."""
    _text: list[str] = field(default_factory=list[str])
    _last_chunk: float | None = None

    def read_chunk(self, chunk: Chunk, now: float) -> None:
        """Record a chunk that the reader has read."""
        if self.figures is not None:
            if self._last_chunk is None:
                self.figures.first_chunk.record(now - self.due)
            else:
                self.figures.chunk_gap.record(now - self._last_chunk)
        self._last_chunk = now
        if chunk.type == "text":
            self._text.append(chunk.data)

    def broken_by(self, done: Complete) -> str | None:
        """Return the promise that a completed run has broken, or None."""
        # A lost connection loses the messages in flight. A gap breaks a promise only if the connection was not lost.
        if self.gap and not self.connection.reconnected_since(self.due):
            return "a gap in seq"
        streamed = "".join(self._text) if self.kind.mode == "run_stream" else self.kind.answer
        if self.kind.answer is not None and not streamed == done.result == self.kind.answer:
            return "text not whole"
        return None


def broken_by(error: AxonError) -> str | None:
    """Return the broken promise if the client core gave up the run; otherwise None."""
    if error.details.get("by") != "client":
        return None
    return "no end" if error.error_type == "deadline_exceeded" else "an unreadable answer"
