"""The events that supervisord writes to an event listener, decoded once into typed values. No I/O.

An event is a header line of `key:value` pairs and a payload of `len` bytes. Malformed input is an event of its own:
supervisord waits for an answer to each event, also to one that nobody understands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from supervisor.childutils import get_headers

_STATE: Final = "PROCESS_STATE_"
"""Prefix of the names of events about a process; the state follows."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process of supervisord's has entered a state."""

    name: str
    state: str
    """Such as `RUNNING`."""
    pid: int
    """0 if the event names none."""


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """An event that is not about the state of a process."""


@dataclass(frozen=True, slots=True)
class MalformedEvent:
    """Input that cannot be decoded."""

    what: str
    """What was expected: `header` or the name of the event."""
    data: bytes | str


Event = ProcessState | OtherEvent | MalformedEvent


class EventReader:
    """Splits the bytes that supervisord writes into events."""

    def __init__(self) -> None:
        self._unread = b""

    def __repr__(self) -> str:
        return f"<EventReader {len(self._unread)} bytes unread>"

    def feed(self, data: bytes) -> None:
        """Take bytes, in whatever pieces they arrive."""
        self._unread += data

    def next(self) -> Event | None:
        """The next event; None until it is complete."""
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
