"""The fair queue: waiting runs of a pool, served round-robin over clients.

A client that queues many runs therefore delays its own runs only: any other client's next run waits for at most one run
of each client.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """The attributes of an item that a fair queue uses."""

    @property
    def client(self) -> bytes:
        """Routing id of the client that sent the request."""
        ...

    @property
    def size(self) -> int:
        """Bytes that the request occupies. While it is in the queue, only `grow` accounts for a change."""
        ...


T = TypeVar("T", bound=Waiting)


class FairQueue(Generic[T]):
    """A queue that is first in, first out for each client, and takes one request from each client in turn.

    Attributes:
        count: Number of requests in the queue, over all clients.
        bytes: Their total size in bytes.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[bytes, deque[T]] = OrderedDict()
        self.count = 0
        self.bytes = 0

    def __repr__(self) -> str:
        return f"<FairQueue {self.count} requests of {len(self._clients)} clients, {self.bytes} bytes>"

    def of_client(self, client: bytes) -> int:
        """Number of requests of a client in the queue."""
        return len(self._clients.get(client, ()))

    def push(self, request: T) -> None:
        """Add a request after its client's other requests."""
        self._clients.setdefault(request.client, deque()).append(request)
        self._account(1, request)

    def push_front(self, request: T) -> None:
        """Put back a request that was taken out before: it becomes the first of its client."""
        self._clients.setdefault(request.client, deque()).appendleft(request)
        self._account(1, request)

    def pop(self) -> T:
        """Remove and return the next request. Its client goes to the end of the round.

        Raises:
            KeyError: The queue is empty.
        """
        client, requests = self._clients.popitem(last=False)
        request = requests.popleft()
        if requests:
            self._clients[client] = requests
        self._account(-1, request)
        return request

    def firsts(self) -> list[T]:
        """The first request of each client, in the order in which `pop` would return them."""
        return [requests[0] for requests in self._clients.values()]

    def take(self, request: T) -> None:
        """Remove the first request of a client. The client goes to the end of the round, as with `pop`."""
        requests = self._clients.pop(request.client)
        requests.popleft()
        if requests:
            self._clients[request.client] = requests
        self._account(-1, request)

    def remove(self, request: T) -> None:
        """Remove a request, wherever it is in the queue.

        Raises:
            KeyError: The queue has no request of this client.
            ValueError: The request is not in the queue.
        """
        requests = self._clients[request.client]
        requests.remove(request)
        if not requests:
            del self._clients[request.client]
        self._account(-1, request)

    def grow(self, bytes: int) -> None:
        """Account for a request in the queue that has become larger by this number of bytes."""
        self.bytes += bytes

    def _account(self, sign: int, request: T) -> None:
        self.count += sign
        self.bytes += sign * request.size
