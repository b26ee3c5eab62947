"""The service of all peers: two functions that answer a request body once, and two that stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from axon_zmq.process import gc
from bench import agents
from bench.source import DELTA

NAME: Final = "bench"
"""Name of the service in protocols that need one."""


async def echo(body: dict[str, Any]) -> str:
    """Return the text of the request, without an agent."""
    return body["echo"]


async def run(body: dict[str, Any]) -> str:
    """Run an agent and return its output."""
    return (await getattr(agents, body["agent"]).run(body["prompt"])).output


async def paced(body: dict[str, Any]) -> AsyncIterator[str]:
    """Stream without an agent, on a schedule."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(body["chunks"]):
        await asyncio.sleep(max(0.0, start + number * body["pause"] - loop.time()))
        yield DELTA


async def stream(body: dict[str, Any]) -> AsyncIterator[str]:
    """Stream the text of an agent, each delta of the model separately."""
    async with getattr(agents, body["agent"]).run_stream(body["prompt"]) as answer:
        async for text in answer.stream_text(delta=True, debounce_by=None):
            yield text


async def warm_up() -> None:
    """Prepare in the same way as our workers: execute one run, and configure the garbage collector."""
    await agents.echo.run("warm")
    gc.tune_gc()


UNARY: Final[dict[str, Callable[[dict[str, Any]], Awaitable[str]]]] = {"echo": echo, "run": run}
STREAMS: Final[dict[str, Callable[[dict[str, Any]], AsyncIterator[str]]]] = {"paced": paced, "stream": stream}
