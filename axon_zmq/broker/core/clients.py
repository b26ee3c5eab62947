"""Records of clients: unfinished runs, framing of replies, and whether the client is gone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from axon_zmq.broker.core.pools import Run
from axon_zmq.broker.core.relay import DELIMITER, GONE, Relay
from axon_zmq.broker.core.states import CLIENT, ClientEvent, ClientState, step

CLIENTS_KEPT: Final = 100_000
"""Maximum number of idle clients whose framing and takeovers are remembered."""
SHARED_WINDOW_S: Final = 60.0
"""Seconds for which a routing id counts as shared after a takeover. The client of the older connection must reconnect
before it can send a `ping`."""


@dataclass(slots=True, eq=False, kw_only=True)
class Client:
    """One client, identified by its routing id, with unfinished runs or a recent takeover."""

    state: ClientState = ClientState.IDLE
    open: dict[bytes, Run] = field(default_factory=dict)
    """Unfinished runs by request id."""
    gone_since: float = 0.0
    """When the grace period began; meaningful only while the client is gone."""
    shared_until: float = 0.0
    """Time until which the routing id counts as shared by two connections."""

    def step(self, event: ClientEvent) -> None:
        """Apply an event to the life cycle of the client's connection."""
        self.state = step(CLIENT, self.state, event)


class Clients:
    """All clients that have unfinished runs or whose routing id was recently taken over.

    Args:
        relay: Keeps each client's flags.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._known: OrderedDict[bytes, Client] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[tuple[bytes, Client]]:
        return iter(self._known.items())

    def __repr__(self) -> str:
        return f"<Clients {len(self._known)} known>"

    def active(self) -> list[bytes]:
        """Clients with unfinished runs."""
        return [client for client, known in self._known.items() if known.open]

    def get(self, client: bytes) -> Client | None:
        """A client, if it is known."""
        return self._known.get(client)

    def gone(self) -> list[bytes]:
        """Clients that are gone."""
        return [client for client in self._known if self.is_gone(client)]

    def is_gone(self, client: bytes) -> bool:
        """Whether a client has unfinished runs and the last send did not reach it."""
        return bool((self._relay.flags_of(client) or 0) & GONE)

    def set_framing(self, client: bytes, flag: int) -> None:
        """Remember the framing of a client's replies from now on: `DELIMITER` or `SINGLE`."""
        if self._relay.has(client, flag):
            return
        self._relay.set_flag(client, flag)
        flagged = self._relay.flagged()
        # Without this bound, clients that keep using new routing ids would fill the memory. A client with unfinished
        # runs keeps its flags, because replies will still be sent to it.
        if len(flagged) > CLIENTS_KEPT:
            idle = next((each for each in flagged if each not in self._known), None)
            if idle is not None:
                self._relay.forget_client(idle)

    def takes_one_reply(self, client: bytes) -> bool:
        """Whether a client has a REQ socket, which accepts exactly one reply per request."""
        return self._relay.has(client, DELIMITER)

    def is_shared(self, client: bytes, now: float) -> bool:
        """Whether a connection recently took over a routing id from another one, which was open."""
        known = self._known.get(client)
        return known is not None and now < known.shared_until

    def taken_over(self, client: bytes, now: float) -> None:
        """Report a routing id as shared, because a connection took it over from another one."""
        self._get_or_add(client).shared_until = now + SHARED_WINDOW_S
        self._forget_idle()

    def opened(self, run: Run) -> None:
        """Add a run to its client's unfinished runs."""
        known = self._get_or_add(run.client)
        known.open[run.id] = run
        known.step(ClientEvent.OPEN)

    def closed(self, run: Run) -> None:
        """Remove a run that has ended from its client's unfinished runs."""
        known = self._known.get(run.client)
        if known is None or known.open.pop(run.id, None) is None or known.open:
            return
        known.step(ClientEvent.CLOSE)
        if self.is_gone(run.client):
            self._relay.clear_flag(run.client, GONE)
        if not known.shared_until:
            del self._known[run.client]

    def vanished(self, client: bytes, now: float) -> Client | None:
        """Mark a client as gone, because a send did not reach it.

        Args:
            client: Routing id of the client.
            now: When the grace period begins.

        Returns:
            The client, or None if it was already gone or has no unfinished runs.
        """
        known = self._known.get(client)
        if known is None or known.state is not ClientState.ACTIVE:
            return None
        known.step(ClientEvent.VANISH)
        known.gone_since = now
        self._relay.set_flag(client, GONE)
        return known

    def returned(self, client: bytes) -> Client | None:
        """Mark a client as connected, because a message came from it or reached it; return it if it was gone."""
        if not self.is_gone(client):
            return None
        self._relay.clear_flag(client, GONE)
        known = self._known[client]
        known.step(ClientEvent.RETURN)
        return known

    def _get_or_add(self, client: bytes) -> Client:
        known = self._known.get(client)
        if known is None:
            known = self._known[client] = Client()
        return known

    def _forget_idle(self) -> None:
        while len(self._known) > CLIENTS_KEPT:
            name, client = self._known.popitem(last=False)
            if client.open:
                # The oldest client is not idle, so it becomes the newest entry. The search ends here and the next call
                # continues it: a single call could otherwise pass through all clients.
                self._known[name] = client
                return
