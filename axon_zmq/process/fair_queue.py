"""The fair queue: waiting requests, served round-robin over clients.

A client that queues many requests therefore delays its own requests only: any other client's next request waits for at
most one request of each client. The broker queues runs in it; a worker queues the starts of runs and the replays.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
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
        self._bytes_of: dict[bytes, int] = {}
        """Bytes of each client's requests, if they have any."""
        self.count = 0
        self.bytes = 0

    def __repr__(self) -> str:
        return f"<FairQueue {self.count} requests of {len(self._clients)} clients, {self.bytes} bytes>"

    def of_client(self, client: bytes) -> int:
        """Number of requests of a client in the queue."""
        return len(self._clients.get(client, ()))

    def bytes_of_client(self, client: bytes) -> int:
        """Total size of a client's requests in the queue, in bytes."""
        return self._bytes_of.get(client, 0)

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

    def pop_unless(self, is_held_back: Callable[[bytes], bool]) -> T | None:
        """Remove and return the next request of a client that is not held back; None if there is none.

        A client that is held back keeps its place in the round.

        Args:
            is_held_back: Whether requests of a client must wait. It is called for clients in the order of the round,
                until it returns False.
        """
        client = next((each for each in self._clients if not is_held_back(each)), None)
        if client is None:
            return None
        self._clients.move_to_end(client, last=False)
        return self.pop()

    def has_others(self, client: bytes) -> bool:
        """Whether the queue has a request of any other client."""
        return len(self._clients) > (client in self._clients)

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

    def grow(self, request: T, bytes: int) -> None:
        """Account for a request in the queue that has become larger by this number of bytes."""
        self.bytes += bytes
        if of_client := self.bytes_of_client(request.client) + bytes:
            self._bytes_of[request.client] = of_client
        else:
            self._bytes_of.pop(request.client, None)

    def _account(self, sign: int, request: T) -> None:
        self.count += sign
        self.grow(request, sign * request.size)
