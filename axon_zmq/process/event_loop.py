"""Event loops: which one a worker has, when it has gone round, and calls between threads that have one each."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from axon_zmq.errors import ConfigurationError


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """The loop that `AXON_LOOP` asks for: `asyncio`, `uvloop`, or `auto`: uvloop if it is installed.

    Raises:
        ConfigurationError: It is not installed.
    """
    if kind != "asyncio":
        try:
            import uvloop

            return uvloop.new_event_loop()
        except ImportError:
            if kind == "uvloop":
                raise ConfigurationError(
                    "AXON_LOOP is uvloop, which is not installed: pip install 'axon-zmq[uvloop]'"
                ) from None
    return asyncio.new_event_loop()


def kind_of(loop: asyncio.AbstractEventLoop) -> str:
    """`asyncio` or `uvloop`."""
    return type(loop).__module__.partition(".")[0]


class Turns:
    """Calls back when the running loop has gone round so many times, each time after whatever else was ready."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._turn = 0
        self._waiting: deque[tuple[int, float, Callable[[], None]]] = deque()

    def call_after(self, function: Callable[[], None], give_up: float) -> None:
        """Call a function that many turns from now; at `give_up`, in seconds of the monotonic clock, at the latest."""
        self._waiting.append((self._turn + self._turns, give_up, function))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        self._turn += 1
        now = time.monotonic()
        while self._waiting:
            due, give_up, function = self._waiting[0]
            if self._turn < due and now < give_up:
                asyncio.get_running_loop().call_soon(self._pass)
                return
            self._waiting.popleft()
            function()


def call_on(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Call a function on a loop: now, or from another thread as soon as it gets there, in order."""
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if here:
        function(*arguments)
    else:
        loop.call_soon_threadsafe(function, *arguments)
