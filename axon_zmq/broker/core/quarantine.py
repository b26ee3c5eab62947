"""Requests of which workers die: suspected after the first, refused after the second.

A request is known by the digest of its body, so that one which is sent again under a new id is recognised,
whoever sends it. All runs of a worker that died are suspects; one that completes is acquitted.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

STRIKES: Final = 2
"""Workers that may die of one request, known by the digest of its body, until it is quarantined."""
QUARANTINE_S: Final = 300.0
"""How long a request of which workers died is refused, and how long a suspect stays one."""
SUSPECTS_KEPT: Final = 10_000
"""Digests that are suspected or quarantined at a time; the oldest are forgotten first."""


@dataclass(slots=True)
class _Suspect:
    strikes: int
    until: float
    """When it is forgotten, in seconds of the broker's clock."""


class Quarantine:
    """The suspects."""

    def __init__(self) -> None:
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Quarantine {len(self._suspects)} suspects>"

    def strike(self, digest: bytes, now: float) -> None:
        """A worker was lost while it ran this."""
        earlier = self._suspects.pop(digest, None)
        strikes = 1 if earlier is None or earlier.until <= now else earlier.strikes + 1
        self._suspects[digest] = _Suspect(strikes, now + QUARANTINE_S)
        if len(self._suspects) > SUSPECTS_KEPT:
            self._suspects.popitem(last=False)

    def acquit(self, digest: bytes) -> None:
        """It has completed."""
        if self._suspects:
            self._suspects.pop(digest, None)

    def suspects(self, digest: bytes, now: float) -> bool:
        """Whether a worker died of it recently."""
        suspect = self._suspects.get(digest)
        return suspect is not None and suspect.until > now

    def seconds_left(self, digest: bytes, now: float) -> float:
        """How long it is still refused; 0.0 for what may be run."""
        suspect = self._suspects.get(digest)
        if suspect is None or suspect.strikes < STRIKES:
            return 0.0
        return max(0.0, suspect.until - now)

    def refused(self, now: float) -> int:
        """How many are refused now."""
        return sum(suspect.strikes >= STRIKES and suspect.until > now for suspect in self._suspects.values())

    def tidy(self, now: float) -> None:
        """Forget those whose time is over; the oldest come first."""
        while self._suspects and next(iter(self._suspects.values())).until <= now:
            self._suspects.popitem(last=False)
