"""Event loops of a worker: choosing the implementation, counting a loop's turns, and calls between loops in threads."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from axon_zmq.errors import ConfigurationError


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """Create an event loop of the kind that `AXON_LOOP` names.

    Args:
        kind: `asyncio`; `uvloop`; or `auto`, which is uvloop if it is installed and asyncio otherwise.

    Raises:
        ConfigurationError: `kind` is `uvloop` and it is not installed.
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
    """The kind of an event loop: `asyncio` or `uvloop`."""
    return type(loop).__module__.partition(".")[0]


class Turns:
    """Calls functions after a number of turns of the running event loop.

    A turn ends when every callback that was ready at its start has run. Code that needs a few awaits to finish
    therefore gets the same chance on a busy loop as on an idle one. A fixed time would not give it that chance.

    Args:
        turns: How many turns pass before each call.
    """

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._turn = 0
        self._waiting: deque[tuple[int, float, Callable[[], None]]] = deque()
        """Turn at which each function is due, time at which it is called in any case, and the function."""

    def call_after(self, function: Callable[[], None], give_up: float) -> None:
        """Call a function after the number of turns, or at a given time if that is earlier.

        Args:
            function: What to call.
            give_up: Time of the latest call, in seconds of the monotonic clock: with hundreds of runs, turns are slow.
        """
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
    """Call a function on an event loop: at once on the loop's own thread, otherwise soon and in order."""
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:  # this thread has no running loop
        here = False
    if here:
        function(*arguments)
    else:
        loop.call_soon_threadsafe(function, *arguments)
