"""Starts the code of runs one after the other, round-robin over clients.

Internal: may change in any release.

The code of a run takes a few milliseconds of the event loop, in about 50 turns of the loop, before it ends or waits for
a model. If a client sends hundreds of requests at once and the code of all of them were started at once, each turn
would take as long as one step of all of them, and a run of another client, which needs as many turns, would take as
long as all of them together. Therefore only one run may be in this first part of its execution at a time.

Whether a run waits for its model cannot be seen from outside. A run counts as young until it ends, until the loop has
made `YOUNG_TURNS` turns, or until the process has used `YOUNG_CPU_S` of CPU time. If the loop has nothing else to do,
its turns take microseconds, so a run that waits for a model delays the next start by less than a millisecond.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

from axon_zmq.process.fair_queue import FairQueue, Waiting

MAX_YOUNG: Final = 1
"""Maximum number of young runs."""
YOUNG_TURNS: Final = 64
"""Turns of the event loop after which a run is no longer young. The first part of a run takes about 50."""
YOUNG_CPU_S: Final = 0.05
"""Seconds of CPU time of the process after which a run is no longer young. It counts if each turn takes long because of
other work, such as hundreds of streams: the worker then still starts 20 runs in each second of CPU time."""

T = TypeVar("T", bound=Waiting)


class _Young(NamedTuple):
    """When a run is no longer young, whichever comes first."""

    turn: int
    cpu: float
    """Seconds of CPU time of the process."""


class Starts(Generic[T]):
    """The runs of a worker whose code was not started or that are young. Not thread-safe.

    Args:
        start: Starts the code of a run.
    """

    def __init__(self, start: Callable[[T], None]) -> None:
        self._start = start
        self._queue: FairQueue[T] = FairQueue()
        self._waiting: set[T] = set()
        """The runs in the queue, so that `remove` need not search in it."""
        self._young: OrderedDict[T, _Young] = OrderedDict()
        """The young runs, the oldest first."""
        self._turn = 0
        """Number of turns of the loop; counted only while runs wait for their start."""
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Starts {len(self)} waiting, {len(self._young)} young>"

    def __len__(self) -> int:
        return self._queue.count

    def add(self, run: T) -> None:
        """Start the code of a run: now, or in a later turn of the event loop."""
        if not self._queue.count:
            self._grow_up()
            if len(self._young) < MAX_YOUNG:
                self._start_now(run)
                return
            self._loop.call_soon(self._next_turn)
        self._waiting.add(run)
        self._queue.push(run)

    def remove(self, run: T) -> bool:
        """Forget a run whose code must not be started any more; return whether it was still waiting."""
        if run not in self._waiting:
            return False
        self._waiting.discard(run)
        self._queue.remove(run)
        return True

    def ended(self, run: T) -> None:
        """Record that the code of a run has returned."""
        self._young.pop(run, None)

    def _next_turn(self) -> None:
        self._turn += 1
        self._grow_up()
        while self._queue.count and len(self._young) < MAX_YOUNG:
            run = self._queue.pop()
            self._waiting.discard(run)
            self._start_now(run)
        if self._queue.count:
            self._loop.call_soon(self._next_turn)

    def _start_now(self, run: T) -> None:
        self._young[run] = _Young(self._turn + YOUNG_TURNS, time.process_time() + YOUNG_CPU_S)
        self._start(run)

    def _grow_up(self) -> None:
        cpu = time.process_time()
        while self._young:
            run, until = next(iter(self._young.items()))
            if self._turn < until.turn and cpu < until.cpu:
                return
            del self._young[run]
