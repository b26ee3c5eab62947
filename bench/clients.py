"""Clients of any protocol: requests, replies, and the loop that all drivers share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bench.agents import SIZE
from bench.processes import WAIT_TIMEOUT_S


@dataclass(frozen=True)
class Request:
    """The request of each client: `echo` and `run` have one reply, `paced` and `stream` have many pieces."""

    kind: str
    body: dict[str, Any]
    text: str
    """The expected text of all pieces together."""

    @property
    def unary(self) -> bool:
        """Whether the request has a single reply."""
        return self.kind in ("echo", "run")


@dataclass(slots=True)
class Reply:
    """The reply to one request, with times of `time.perf_counter`."""

    sent: float
    ended: float = 0.0
    pieces: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])

    @property
    def text(self) -> str:
        """The text of all pieces."""
        return "".join(piece for _, piece in self.pieces)

    def delays(self, pace: float) -> list[float]:
        """Seconds by which each delta was late, if one is due every `pace` seconds from the time of the request."""
        late: list[float] = []
        for at, piece in self.pieces:
            late += [at - self.sent - pace * number for number in range(len(late), len(late) + len(piece) // SIZE)]
        return late


class Crowd(ABC):
    """A number of clients with one request at a time each, in one thread that only waits for sockets.

    Args:
        size: Number of clients.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def exchange(self, request: Request, each: int = 1, rate: float = 0.0) -> list[Reply]:
        """Let each client make `each` requests, one after the other.

        Args:
            request: The request, the same for all.
            each: Requests of each client.
            rate: Number of clients that start per second; 0 starts all at once.

        Returns:
            The complete replies, in the order in which they ended.

        Raises:
            RuntimeError: No piece arrived for `WAIT_TIMEOUT_S`, or a reply lacks text.
        """
        done: list[Reply] = []
        open_requests: dict[int, Reply] = {}
        left = [each] * self._size
        started, last_piece_at = 0, time.perf_counter()
        start = last_piece_at
        while len(done) < self._size * each:
            now = time.perf_counter()
            while started < self._size and (not rate or start + started / rate <= now):
                open_requests[started] = self._begin(started, request)
                started += 1
            due = start + started / rate - now if started < self._size else WAIT_TIMEOUT_S
            for client, piece, ended in self._receive(max(0.0, due)):
                reply = open_requests[client]
                last_piece_at = time.perf_counter()
                if piece:
                    reply.pieces.append((last_piece_at, piece))
                if ended:
                    reply.ended = last_piece_at
                    done.append(reply)
                    left[client] -= 1
                    if left[client]:
                        open_requests[client] = self._begin(client, request)
            if time.perf_counter() - last_piece_at > WAIT_TIMEOUT_S:
                raise RuntimeError(f"{sum(left)} requests got no reply within {WAIT_TIMEOUT_S:g} s")
        incomplete = sum(reply.text != request.text for reply in done)
        if incomplete:
            raise RuntimeError(f"{incomplete} of {len(done)} replies to {request.kind!r} lack text")
        return done

    def _begin(self, client: int, request: Request) -> Reply:
        reply = Reply(time.perf_counter())
        self._send(client, request)
        return reply

    def latencies(self, request: Request, times: int, pause: float) -> list[float]:
        """Milliseconds of consecutive requests of the first client, with `pause` seconds before each.

        Each time is measured from before the request body is packed until the reply is unpacked.
        """
        latencies: list[float] = []
        for _ in range(times):
            time.sleep(pause)
            start = time.perf_counter()
            self._send(0, request)
            while not any(ended for _, _, ended in list(self._receive(WAIT_TIMEOUT_S))):
                if time.perf_counter() - start > WAIT_TIMEOUT_S:
                    raise RuntimeError(f"a request got no reply within {WAIT_TIMEOUT_S:g} s")
            latencies.append((time.perf_counter() - start) * 1000)
        return latencies

    @abstractmethod
    def _send(self, client: int, request: Request) -> None:
        """Send a client's request."""

    @abstractmethod
    def _receive(self, seconds: float) -> Iterable[tuple[int, str, bool]]:
        """Wait at most `seconds`, then yield for each piece: client, text, and whether its request has ended."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""
