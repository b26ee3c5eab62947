"""One mode's waiting requests, served round-robin over clients."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What a queue needs to know of a request."""

    @property
    def client(self) -> bytes:
        """Whose it is."""
        ...

    @property
    def size(self) -> int:
        """Bytes that wait with it; the same from `push` to `pop`, but for `grow`."""
        ...


T = TypeVar("T", bound=Waiting)


class FairQueue(Generic[T]):
    """First in, first out for each client; one request of each client in turn.

    `count` and `bytes` are of all clients; a request is counted until `pop` or `remove`.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[bytes, deque[T]] = OrderedDict()
        self.count = 0
        self.bytes = 0

    def __repr__(self) -> str:
        return f"<FairQueue {self.count} requests of {len(self._clients)} clients, {self.bytes} bytes>"

    def of_client(self, client: bytes) -> int:
        """How many requests of this client wait."""
        return len(self._clients.get(client, ()))

    def push(self, request: T) -> None:
        """Add a request behind the others of its client."""
        self._clients.setdefault(request.client, deque()).append(request)
        self._account(1, request)

    def push_front(self, request: T) -> None:
        """Give back a request that was already at the front once."""
        self._clients.setdefault(request.client, deque()).appendleft(request)
        self._account(1, request)

    def pop(self) -> T:
        """Take the next request; its client goes to the end of the round.

        Raises:
            KeyError: Nothing waits.
        """
        client, requests = self._clients.popitem(last=False)
        request = requests.popleft()
        if requests:
            self._clients[client] = requests
        self._account(-1, request)
        return request

    def remove(self, request: T) -> None:
        """Take a request out of the middle.

        Raises:
            KeyError: Its client has none waiting.
            ValueError: It does not wait.
        """
        requests = self._clients[request.client]
        requests.remove(request)
        if not requests:
            del self._clients[request.client]
        self._account(-1, request)

    def grow(self, bytes: int) -> None:
        """A request that waits has become larger."""
        self.bytes += bytes

    def _account(self, sign: int, request: T) -> None:
        self.count += sign
        self.bytes += sign * request.size
