"""Event loops: which one a worker has, and calls between threads that have one each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from axon_zmq.errors import ConfigurationError


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """The loop that `AXON_LOOP` asks for: `asyncio`, `uvloop`, or `auto`, which is uvloop's where that is installed.

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
