"""The broker killed: in mid-stream, in mid-queue, in mid-tool-call."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from axon_zmq import AsyncClient
from axon_zmq.events import Complete
from chaos.agents import prompt
from chaos.promises import Report, Scenario
from chaos.scene import Scene, scene, settled
from chaos.workers import Load, started_once


def mid_stream(report: Report) -> None:
    """SIGKILL with 50 streams open, again and again."""
    kills = 3 if report.short else 50
    with scene("run_stream", "run_stream") as daemon:
        asyncio.run(_mid_stream(report, daemon, kills))
        started_once(report, daemon.starts())


async def _mid_stream(report: Report, daemon: Scene, kills: int) -> None:
    async with AsyncClient(daemon.endpoint) as client, Load(client, at_a_time=50, tokens=200, seconds=0.02) as load:
        for _ in range(kills):
            await asyncio.sleep(random.uniform(0.5, 1.5))
            daemon.kill_broker()
            await asyncio.to_thread(daemon.wait_for, run_stream=2)
        await load.stop(60)
    tally = load.check(report, victims={})
    report.done = f"{kills} kills with 50 streams open"
    report.measured(f"{tally['complete']} of {len(load.streams)} streams of 200 chunks whole, nothing lost or doubled")


def mid_queue(report: Report) -> None:
    """SIGKILL with runs that only wait: they are known never to have run, and the client sends them again."""
    kills = 2 if report.short else 10
    with scene("run_sync", AXON_RUN_SYNC_SLOTS="2") as daemon:
        asyncio.run(_mid_queue(report, daemon, kills))
        started_once(report, daemon.starts())


async def _mid_queue(report: Report, daemon: Scene, kills: int) -> None:
    ends: list[object] = []
    async with AsyncClient(daemon.endpoint) as client:
        for number in range(kills):
            runs = [client.run_sync("paced", prompt(f"{number}-{each}", 10, 0.02)) for each in range(30)]
            gathered = asyncio.gather(*map(settled, runs))
            await asyncio.sleep(random.uniform(0.1, 0.6))
            daemon.kill_broker()
            ends += await gathered
    failed = [end for end in ends if not isinstance(end, Complete)]
    report.done = f"{kills} kills with 30 runs on 2 slots"
    report.measured(f"{len(ends) - len(failed)} of {len(ends)} answered")
    report.expect(not failed, f"{len(failed)} runs were lost, such as {failed[:1]}")


def mid_tool_call(report: Report) -> None:
    """SIGKILL while tools of the client's run."""
    kills = 3 if report.short else 50
    with scene("run", "run_stream") as daemon:
        asyncio.run(_mid_tool_call(report, daemon, kills))


async def _mid_tool_call(report: Report, daemon: Scene, kills: int) -> None:
    called: Counter[str] = Counter()

    async def note(name: str) -> str:
        """Takes a while, and is counted."""
        called[name] += 1
        await asyncio.sleep(0.1)
        return name

    ends: list[object] = []
    asked: list[str] = []
    async with AsyncClient(daemon.endpoint) as client:
        for number in range(kills):
            runs = []
            for run in range(10):
                names = [f"{number}.{run}.{call}" for call in range(4)]
                asked += names
                calls = ", ".join(f'{{"name": "note", "args": {{"name": "{name}"}}}}' for name in names)
                runs.append(client.stream("caller", f"[{calls}]", mode=("run", "run_stream")[run % 2], tools=[note]))
            gathered = asyncio.gather(*(settled(run.complete()) for run in runs))
            await asyncio.sleep(random.uniform(0.02, 0.3))
            daemon.kill_broker()
            ends += await gathered
    failed = [end for end in ends if not isinstance(end, Complete)]
    twice = [name for name, times in called.items() if times > 1]
    missing = set(asked) - called.keys()
    report.done = f"{kills} kills with 10 runs of 4 tool calls"
    report.measured(
        f"{len(ends) - len(failed)} of {len(ends)} runs answered; {len(twice)} of {len(called)} tool calls run twice"
    )
    report.expect(not failed, f"{len(failed)} runs were lost, such as {failed[:1]}")
    report.expect(not twice, f"{len(twice)} tools ran twice, such as {twice[:1]}")
    report.expect(not missing, f"{len(missing)} tools never ran")


SCENARIOS = (
    Scenario("broker-stream", "broker killed in mid-stream", "no chunk lost or doubled, no second run", mid_stream),
    Scenario("broker-queue", "broker killed in mid-queue", "no run lost, none started twice", mid_queue),
    Scenario("broker-tool", "broker killed in mid-tool-call", "no run lost, no tool run twice", mid_tool_call),
)
