"""Clients of any protocol: what is asked, what came, and the loop that all drivers share."""

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
    """What each client asks for: `echo` and `run` have one answer, `paced` and `stream` come in pieces."""

    kind: str
    body: dict[str, Any]
    text: str
    """What must come, over all pieces."""

    @property
    def unary(self) -> bool:
        """Whether there is one answer."""
        return self.kind in ("echo", "run")


@dataclass(slots=True)
class Came:
    """What came of one request, with times of `time.perf_counter`."""

    sent: float
    ended: float = 0.0
    pieces: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])

    @property
    def text(self) -> str:
        """All that came."""
        return "".join(piece for _, piece in self.pieces)

    def delays(self, pace: float) -> list[float]:
        """Seconds by which each delta was late, had each been due `pace` seconds after the one before."""
        late: list[float] = []
        for at, piece in self.pieces:
            late += [at - self.sent - pace * number for number in range(len(late), len(late) + len(piece) // SIZE)]
        return late


class Crowd(ABC):
    """Some clients, each with one request at a time. It runs in one thread and waits for sockets only.

    Args:
        size: How many clients.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def exchange(self, request: Request, each: int = 1, rate: float = 0.0) -> list[Came]:
        """Each client makes `each` requests, one after the other; what came, whole, in the order of the ends.

        Args:
            request: What all ask for.
            each: How often.
            rate: How many clients begin in a second; 0 is all at once.
        """
        done: list[Came] = []
        under_way: dict[int, Came] = {}
        left = [each] * self._size
        begun, heard = 0, time.perf_counter()
        start = heard
        while len(done) < self._size * each:
            now = time.perf_counter()
            while begun < self._size and (not rate or start + begun / rate <= now):
                under_way[begun] = self._begin(begun, request)
                begun += 1
            due = start + begun / rate - now if begun < self._size else WAIT_TIMEOUT_S
            for client, piece, ended in self._heard(max(0.0, due)):
                came = under_way[client]
                heard = time.perf_counter()
                if piece:
                    came.pieces.append((heard, piece))
                if ended:
                    came.ended = heard
                    done.append(came)
                    left[client] -= 1
                    if left[client]:
                        under_way[client] = self._begin(client, request)
            if time.perf_counter() - heard > WAIT_TIMEOUT_S:
                raise RuntimeError(f"{sum(left)} requests waited {WAIT_TIMEOUT_S:g} s for an answer")
        torn = sum(came.text != request.text for came in done)
        if torn:
            raise RuntimeError(f"{torn} of {len(done)} answers to {request.kind!r} are not whole")
        return done

    def _begin(self, client: int, request: Request) -> Came:
        came = Came(time.perf_counter())
        self._send(client, request)
        return came

    def latencies(self, request: Request, times: int, pause: float) -> list[float]:
        """The first client makes requests one after the other, with a pause before each.

        Milliseconds of each, from before its body is packed until the answer's is unpacked.
        """
        took: list[float] = []
        for _ in range(times):
            time.sleep(pause)
            start = time.perf_counter()
            self._send(0, request)
            while not any(ended for _, _, ended in list(self._heard(WAIT_TIMEOUT_S))):
                if time.perf_counter() - start > WAIT_TIMEOUT_S:
                    raise RuntimeError(f"a client waited {WAIT_TIMEOUT_S:g} s for an answer")
            took.append((time.perf_counter() - start) * 1000)
        return took

    @abstractmethod
    def _send(self, client: int, request: Request) -> None:
        """Send a client's request."""

    @abstractmethod
    def _heard(self, seconds: float) -> Iterable[tuple[int, str, bool]]:
        """Wait at most so long; then which client, what piece of text came, and whether its request has ended."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""
