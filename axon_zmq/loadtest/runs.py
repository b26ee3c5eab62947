"""One request of a load test: what its reader has of it so far, and whether that is what was promised."""

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
"""What is said of a run that was given up while its stalling reader had left something unread: its end may be there."""


@dataclass(slots=True, eq=False, kw_only=True)
class Run:
    """One request, and what came of it."""

    kind: Kind
    connection: Connection
    client_run: core.Run
    due: float
    """When it should have been sent."""
    figures: Figures | None
    """None in the warm-up."""
    gap: bool = False
    """Whether a message came before the one that was next."""
    read_at: float = 0.0
    """When a slow reader takes the next message."""
    is_unread: bool = False
    """Whether it was given up while its reader was behind."""
    is_due: bool = False
    """Whether a slow reader is about to."""
    _text: list[str] = field(default_factory=list[str])
    _last_chunk: float | None = None

    def take_chunk(self, chunk: Chunk, now: float) -> None:
        """Its reader has a chunk."""
        if self.figures is not None:
            if self._last_chunk is None:
                self.figures.first_chunk.record(now - self.due)
            else:
                self.figures.chunk_gap.record(now - self._last_chunk)
        self._last_chunk = now
        if chunk.type == "text":
            self._text.append(chunk.data)

    def broken_by(self, done: Complete) -> str | None:
        """Which promise was broken, now that it is complete."""
        if self.gap and not self.connection.reconnected_since(self.due):
            return "a gap in seq"
        streamed = "".join(self._text) if self.kind.mode == "run_stream" else self.kind.answer
        if self.kind.answer is not None and not streamed == done.result == self.kind.answer:
            return "text not whole"
        return None


def broken_by(error: AxonError) -> str | None:
    """The broken promise, if the client gave the run up; otherwise None."""
    if error.details.get("by") != "client":
        return None
    return "no end" if error.error_type == "deadline_exceeded" else "an unreadable answer"
