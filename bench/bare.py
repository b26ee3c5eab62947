"""Bare pydantic-ai in a separate process: the same agents, called directly.

A line on stdin, such as `["run", 32, 10]`, requests a measurement; the result is a line of JSON on stdout.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

from pydantic_ai import Agent

from axon_zmq.process import gc, lifeline
from bench import agents
from bench.numbers import percentiles

PROMPT = "hello there"


async def _stream(agent: Agent = agents.stream, prompt: str = PROMPT) -> None:
    async with agent.run_stream_events(prompt) as events:
        async for _event in events:
            pass


async def _run() -> None:
    await agents.echo.run(PROMPT)


async def _cpu(call: Callable[[], Awaitable[None]], tasks: int, each: int) -> float:
    """Microseconds of CPU time for each call, with `tasks` calls at a time."""

    async def repeat() -> None:
        for _ in range(each):
            await call()

    before = time.process_time()
    await asyncio.gather(*(repeat() for _ in range(tasks)))
    return (time.process_time() - before) * 1e6 / (tasks * each)


async def _latency(times: int, pause: float) -> dict[str, float]:
    """Percentiles of the milliseconds of consecutive runs, with a pause before each."""
    took: list[float] = []
    for _ in range(times):
        await asyncio.sleep(pause)
        start = time.perf_counter()
        await _run()
        took.append((time.perf_counter() - start) * 1000)
    return percentiles(took)


async def answer(name: str, *numbers: float) -> dict[str, float]:
    """Perform one measurement."""
    if name == "latency":
        times, pause = numbers
        return await _latency(int(times), pause)
    tasks, each = map(int, numbers)
    if name == "paced":
        await asyncio.gather(*(_stream(agents.paced, str(each)) for _ in range(tasks)))
        return {}
    if name == "stream":
        return {"server": await _cpu(_stream, tasks, each) / agents.DELTAS}
    return {"server": await _cpu(_run, tasks, each)}


async def main() -> None:
    """Perform the measurements that stdin requests, until it ends."""
    await _run()
    gc.tune_gc()  # Workers do the same; otherwise the ratio would include this difference.
    for line in sys.stdin:
        print(json.dumps(await answer(*json.loads(line))), flush=True)


if __name__ == "__main__":
    lifeline.die_with_parent()
    asyncio.run(main())
