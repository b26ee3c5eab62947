"""Scenarios in which the broker is killed: with open streams, with queued runs, during tool calls."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from axon_zmq import AsyncClient
from axon_zmq.events import Complete
from chaos.agents import prompt
from chaos.daemons import Daemon, outcome, run_daemon
from chaos.promises import Report, Scenario
from chaos.workers import Load, started_once


def mid_stream(report: Report) -> None:
    """Kill the broker repeatedly while 50 streams are open."""
    kills = 3 if report.short else 50
    with run_daemon("run_stream", "run_stream") as daemon:
        asyncio.run(_mid_stream(report, daemon, kills))
        started_once(report, daemon.starts())


async def _mid_stream(report: Report, daemon: Daemon, kills: int) -> None:
    async with AsyncClient(daemon.endpoint) as client, Load(client, at_a_time=50, tokens=200, seconds=0.02) as load:
        for _ in range(kills):
            await asyncio.sleep(random.uniform(0.5, 1.5))
            daemon.kill_broker()
            await asyncio.to_thread(daemon.wait_for, run_stream=2)
        await load.stop(60)
    tally = load.check(report, victims={})
    report.done = f"{kills} kills with 50 streams open"
    report.measured(
        f"{tally['complete']} of {len(load.streams)} streams of 200 chunks complete, no chunk lost or repeated"
    )


def mid_queue(report: Report) -> None:
    """Kill the broker while runs wait in its queue.

    The next broker knows from the journal that they never ran, and the client sends them again.
    """
    kills = 2 if report.short else 10
    with run_daemon("run_sync", AXON_RUN_SYNC_SLOTS="2") as daemon:
        asyncio.run(_mid_queue(report, daemon, kills))
        started_once(report, daemon.starts())


async def _mid_queue(report: Report, daemon: Daemon, kills: int) -> None:
    ends: list[object] = []
    async with AsyncClient(daemon.endpoint) as client:
        for number in range(kills):
            runs = [client.run_sync("paced", prompt(f"{number}-{each}", 10, 0.02)) for each in range(30)]
            gathered = asyncio.gather(*map(outcome, runs))
            await asyncio.sleep(random.uniform(0.1, 0.6))
            daemon.kill_broker()
            ends += await gathered
    failed = [end for end in ends if not isinstance(end, Complete)]
    report.done = f"{kills} kills with 30 runs on 2 slots"
    report.measured(f"{len(ends) - len(failed)} of {len(ends)} answered")
    report.expect(not failed, f"{len(failed)} runs failed, such as {failed[:1]}")


def mid_tool_call(report: Report) -> None:
    """Kill the broker while the client executes tools."""
    kills = 3 if report.short else 50
    with run_daemon("run", "run_stream") as daemon:
        asyncio.run(_mid_tool_call(report, daemon, kills))


async def _mid_tool_call(report: Report, daemon: Daemon, kills: int) -> None:
    called: Counter[str] = Counter()

    async def note(name: str) -> str:
        """Count the call, and return the name after 0.1 s."""
        called[name] += 1
        await asyncio.sleep(0.1)
        return name

    ends: list[object] = []
    expected: list[str] = []
    async with AsyncClient(daemon.endpoint) as client:
        for number in range(kills):
            runs = []
            for run in range(10):
                names = [f"{number}.{run}.{call}" for call in range(4)]
                expected += names
                calls = ", ".join(f'{{"name": "note", "args": {{"name": "{name}"}}}}' for name in names)
                runs.append(client.stream("caller", f"[{calls}]", mode=("run", "run_stream")[run % 2], tools=[note]))
            gathered = asyncio.gather(*(outcome(run.complete()) for run in runs))
            await asyncio.sleep(random.uniform(0.02, 0.3))
            daemon.kill_broker()
            ends += await gathered
    failed = [end for end in ends if not isinstance(end, Complete)]
    twice = [name for name, times in called.items() if times > 1]
    missing = set(expected) - called.keys()
    report.done = f"{kills} kills with 10 runs of 4 tool calls"
    report.measured(
        f"{len(ends) - len(failed)} of {len(ends)} runs answered; "
        f"{len(twice)} of {len(called)} tool calls executed twice"
    )
    report.expect(not failed, f"{len(failed)} runs failed, such as {failed[:1]}")
    report.expect(not twice, f"{len(twice)} tool calls were executed twice, such as {twice[:1]}")
    report.expect(not missing, f"{len(missing)} tool calls were never executed")


SCENARIOS = (
    Scenario(
        "broker-stream",
        "broker killed with open streams",
        "no chunk lost or repeated, no run started twice",
        mid_stream,
    ),
    Scenario("broker-queue", "broker killed with queued runs", "no run lost, none started twice", mid_queue),
    Scenario(
        "broker-tool", "broker killed during tool calls", "no run lost, no tool call executed twice", mid_tool_call
    ),
)
