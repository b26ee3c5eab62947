"""The broker's clients: what each has open, how it wants its replies framed, and whether it is there."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from axon_zmq.broker.core.pools import Client, Run
from axon_zmq.broker.core.states import ClientEvent, ClientState
from axon_zmq.protocol import limits

DELIMITER: Final = 1
"""Framing flag: the client is REQ-style, its replies start with an empty frame."""
SINGLE: Final = 2
"""Framing flag: the client's replies are one frame."""


class Clients:
    """All identities that have unfinished requests, or lately said who they are."""

    def __init__(self) -> None:
        self.framing: dict[bytes, int] = {}
        """The framing flags of clients that do not use plain three frames."""
        self.gone: set[bytes] = set()
        """Clients with unfinished requests that the last send did not find."""
        self._known: OrderedDict[bytes, Client] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def active(self) -> list[bytes]:
        """Those with unfinished requests."""
        return [identity for identity, known in self._known.items() if known.open]

    def get(self, identity: bytes) -> Client | None:
        """A client, if it is known."""
        return self._known.get(identity)

    def set_framing(self, client: bytes, flag: int) -> None:
        """Remember how a client wants its replies from now on."""
        self.framing[client] = self.framing.get(client, 0) | flag
        if len(self.framing) > limits.REMEMBERED_CLIENTS:
            idle = next((each for each in self.framing if each not in self._known), None)
            if idle is not None:
                del self.framing[idle]

    def takes_one_reply(self, client: bytes) -> bool:
        """Whether it is a REQ socket, for which whatever comes first is the answer."""
        return bool(self.framing.get(client, 0) & DELIMITER)

    def is_shared(self, client: bytes, instance: str, now: float) -> bool:
        """Whether another process used this identity within 10 s, as the `instance` of its `ping` told."""
        known = self._of(client)
        if instance:
            if known.instance not in ("", instance) and now - known.instance_seen < limits.SHARED_WINDOW:
                known.shared_until = now + limits.SHARED_WINDOW
            known.instance, known.instance_seen = instance, now
        self._forget_idle()
        return now < known.shared_until

    def opened(self, run: Run) -> None:
        """A client has one more unfinished request."""
        known = self._of(run.client)
        known.open[run.id] = run
        known.step(ClientEvent.OPEN)

    def closed(self, run: Run) -> None:
        """A request has ended."""
        known = self._known.get(run.client)
        if known is None or known.open.pop(run.id, None) is None or known.open:
            return
        known.step(ClientEvent.CLOSE)
        self.gone.discard(run.client)
        if not known.instance:
            del self._known[run.client]

    def vanished(self, client: bytes, now: float) -> Client | None:
        """A send found no such client; the client, if that is news.

        Args:
            client: Its identity.
            now: From when on its grace period counts.
        """
        known = self._known.get(client)
        if known is None or known.state is not ClientState.ACTIVE:
            return None
        known.step(ClientEvent.VANISH)
        known.gone_since = now
        self.gone.add(client)
        return known

    def returned(self, client: bytes) -> Client | None:
        """Something came from it, or reached it; the client, if it was gone."""
        if client not in self.gone:
            return None
        self.gone.discard(client)
        known = self._known[client]
        known.step(ClientEvent.RETURN)
        return known

    def _of(self, identity: bytes) -> Client:
        known = self._known.get(identity)
        if known is None:
            known = self._known[identity] = Client()
        return known

    def _forget_idle(self) -> None:
        while len(self._known) > limits.REMEMBERED_CLIENTS:
            identity, client = self._known.popitem(last=False)
            if client.open:
                self._known[identity] = client
                return
