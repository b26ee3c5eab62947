"""What is served, whatever the protocol: four functions of a request's body, two that answer once, two that stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from axon_zmq.process import gc
from bench import agents
from bench.source import DELTA

NAME: Final = "bench"
"""What the service is called, where a protocol asks for a name."""


async def echo(body: dict[str, Any]) -> str:
    """Answer what was said, without an agent."""
    return body["echo"]


async def run(body: dict[str, Any]) -> str:
    """Run an agent."""
    return (await getattr(agents, body["agent"]).run(body["prompt"])).output


async def paced(body: dict[str, Any]) -> AsyncIterator[str]:
    """Stream without an agent, on a schedule."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(body["chunks"]):
        await asyncio.sleep(max(0.0, start + number * body["pause"] - loop.time()))
        yield DELTA


async def stream(body: dict[str, Any]) -> AsyncIterator[str]:
    """Stream an agent's text, each delta of the model as it comes."""
    async with getattr(agents, body["agent"]).run_stream(body["prompt"]) as answer:
        async for text in answer.stream_text(delta=True, debounce_by=None):
            yield text


async def warm_up() -> None:
    """Do what our workers do before they serve: a run, for what the first would wait for, and the garbage collector."""
    await agents.echo.run("warm")
    gc.tune_gc()


UNARY: Final[dict[str, Callable[[dict[str, Any]], Awaitable[str]]]] = {"echo": echo, "run": run}
STREAMS: Final[dict[str, Callable[[dict[str, Any]], AsyncIterator[str]]]] = {"paced": paced, "stream": stream}
