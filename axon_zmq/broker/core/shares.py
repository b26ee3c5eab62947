"""The share of a pool's slots that each client holds. No I/O.

A run that only waits for tools of its client leaves its slot to the runs of other clients. For the client itself, the
first `max_waiting_per_client` waiting runs are free of charge, and each further one counts as a slot that the client
holds. Therefore the waiting runs of one client do not block another, and their number is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Share:
    """The unfinished runs of one client that workers of one pool have."""

    active: int = 0
    """Number of runs that are not waiting."""
    waiting: int = 0
    """Number of runs that only wait for tools of the client."""


class Shares:
    """The shares of all clients in one pool.

    Args:
        max_waiting: Number of waiting runs of one client that do not count as held slots (`max_waiting_per_client`).
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._shares: dict[bytes, Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    def __repr__(self) -> str:
        return f"<Shares of {len(self._shares)} clients>"

    def held(self, client: bytes) -> int:
        """How many slots a client holds: its runs, except the waiting ones that are free of charge."""
        share = self._shares.get(client)
        return 0 if share is None else share.active + max(0, share.waiting - self._max_waiting)

    def waiting(self, client: bytes) -> int:
        """How many runs of a client wait for its tools."""
        share = self._shares.get(client)
        return 0 if share is None else share.waiting

    def is_over_limit(self, client: bytes) -> bool:
        """Whether a client has more waiting runs than are free of charge."""
        return self.waiting(client) > self._max_waiting

    def add(self, client: bytes) -> None:
        """Count a run that a worker has got."""
        share = self._shares.get(client)
        if share is None:
            share = self._shares[client] = Share()
        share.active += 1

    def set_waiting(self, client: bytes, waits: bool) -> None:
        """Count a run as waiting that was active, or as active that was waiting."""
        share, change = self._shares[client], 1 if waits else -1
        share.active -= change
        share.waiting += change

    def remove(self, client: bytes, waits: bool) -> None:
        """Stop counting a run that no worker has any more.

        Args:
            client: The client.
            waits: Whether the run was counted as waiting.
        """
        share = self._shares[client]
        if waits:
            share.waiting -= 1
        else:
            share.active -= 1
        if not share.active and not share.waiting:
            del self._shares[client]
