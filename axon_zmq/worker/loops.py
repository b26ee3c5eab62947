"""Calls between threads that have an event loop each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


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
