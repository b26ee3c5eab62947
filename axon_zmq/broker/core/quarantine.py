"""Quarantine: refuses requests during whose execution workers repeatedly died.

A request is identified by the digest of its body, so it is recognized under another id and from another client. When a
worker dies, the broker cannot see which of its runs was the cause, so all of them become suspects. A suspect that
completes is acquitted. A suspect that is in flight when a second worker dies is refused for a while.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

STRIKES: Final = 2
"""Number of workers that may die while they execute a request before it is refused."""
QUARANTINE_S: Final = 300.0
"""Seconds for which a request is a suspect or refused, from the last death of a worker that executed it."""
SUSPECTS_KEPT: Final = 10_000
"""Maximum number of digests that are remembered; the oldest are forgotten first."""


@dataclass(slots=True)
class _Suspect:
    strikes: int
    """Number of workers that died while they executed the request."""
    until: float
    """When the suspect is forgotten, in seconds of the broker's clock."""


class Quarantine:
    """Digests of the requests that were in flight on workers that died."""

    def __init__(self) -> None:
        self._suspects: OrderedDict[bytes, _Suspect] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Quarantine {len(self._suspects)} suspects>"

    def strike(self, digest: bytes, now: float) -> None:
        """Record that a worker was lost while it executed a request."""
        earlier = self._suspects.pop(digest, None)
        strikes = 1 if earlier is None or earlier.until <= now else earlier.strikes + 1
        self._suspects[digest] = _Suspect(strikes, now + QUARANTINE_S)
        if len(self._suspects) > SUSPECTS_KEPT:
            self._suspects.popitem(last=False)

    def acquit(self, digest: bytes) -> None:
        """Forget a request, because it has completed."""
        if self._suspects:
            self._suspects.pop(digest, None)

    def suspects(self, digest: bytes, now: float) -> bool:
        """Whether a worker recently died while it executed this request."""
        suspect = self._suspects.get(digest)
        return suspect is not None and suspect.until > now

    def seconds_left(self, digest: bytes, now: float) -> float:
        """Seconds for which a request will still be refused; 0.0 if it is accepted."""
        suspect = self._suspects.get(digest)
        if suspect is None or suspect.strikes < STRIKES:
            return 0.0
        return max(0.0, suspect.until - now)

    def refused(self, now: float) -> int:
        """Number of requests that are refused now."""
        return sum(suspect.strikes >= STRIKES and suspect.until > now for suspect in self._suspects.values())

    def tidy(self, now: float) -> None:
        """Forget suspects whose time is over."""
        # `strike` moves a suspect to the end, so the first one is always the first to expire.
        while self._suspects and next(iter(self._suspects.values())).until <= now:
            self._suspects.popitem(last=False)
