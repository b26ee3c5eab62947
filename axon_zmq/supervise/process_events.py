"""Decodes the events that supervisord writes to an event listener into typed values, without I/O.

An event is a header line of `key:value` pairs and a payload of `len` bytes. Malformed input becomes a `MalformedEvent`,
because supervisord waits for an answer to each event, even to one that cannot be decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from supervisor.childutils import get_headers

_STATE: Final = "PROCESS_STATE_"
"""Prefix of the event names for process states; the rest of the name is the state."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process has entered a state."""

    name: str
    state: str
    """State in supervisord, such as `RUNNING`."""
    pid: int
    """0 if the event has no pid."""


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """An event that is not about the state of a process."""


@dataclass(frozen=True, slots=True)
class MalformedEvent:
    """Input that cannot be decoded."""

    what: str
    """The malformed part: `header`, or the name of the event whose payload is malformed."""
    data: bytes | str


Event = ProcessState | OtherEvent | MalformedEvent


class EventReader:
    """Splits the bytes from supervisord into events."""

    def __init__(self) -> None:
        self._unread = b""

    def __repr__(self) -> str:
        return f"<EventReader {len(self._unread)} bytes unread>"

    def feed(self, data: bytes) -> None:
        """Add received bytes, in pieces of any size."""
        self._unread += data

    def next(self) -> Event | None:
        """Return the next complete event, or None."""
        head, newline, rest = self._unread.partition(b"\n")
        if not newline:
            return None
        try:
            headers = get_headers(head.decode())
            length = int(headers["len"])
        except (ValueError, KeyError):
            self._unread = rest
            return MalformedEvent("header", head)
        if len(rest) < length:
            return None
        self._unread = rest[length:]
        return _decode(headers.get("eventname", ""), rest[:length].decode(errors="replace"))


def _decode(name: str, payload: str) -> Event:
    if not name.startswith(_STATE):
        return OtherEvent()
    try:
        headers = get_headers(payload)
        return ProcessState(headers["processname"], name.removeprefix(_STATE), int(headers.get("pid", 0)))
    except (ValueError, KeyError):
        return MalformedEvent(name, payload)
