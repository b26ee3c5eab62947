"""The code of runs is started one after the other, round-robin over clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from axon_zmq.worker.starts import YOUNG_CPU_S, YOUNG_TURNS, Starts


@dataclass(eq=False)
class Run:
    client: bytes
    number: int
    size: int = 0


def played(body: Callable[[Starts[Run], list[Run]], Awaitable[None]]) -> list[Run]:
    """The runs in the order of their start."""
    started: list[Run] = []

    async def play() -> None:
        await body(Starts(started.append), started)

    asyncio.run(play())
    return started


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_run_starts_at_once_if_no_other_is_young():
    run = Run(b"a", 1)

    async def body(starts: Starts[Run], started: list[Run]) -> None:
        starts.add(run)
        assert started == [run]
        starts.ended(run)
        starts.add(run)

    assert played(body) == [run, run]


def test_the_next_run_starts_when_the_one_before_has_ended_and_clients_take_turns():
    flood, other = [Run(b"a", number) for number in range(100)], Run(b"b", 100)

    async def body(starts: Starts[Run], started: list[Run]) -> None:
        for run in (*flood, other):
            starts.add(run)
        assert started == [flood[0]]
        for count in (1, 2, 3):
            starts.ended(started[-1])
            await turns(3)
            assert len(started) == count + 1
        assert len(starts) == 97

    assert played(body) == [flood[0], flood[1], other, flood[2]]


def test_runs_that_wait_delay_the_others_only_for_some_turns():
    runs = [Run(b"a", number) for number in range(5)]

    async def body(starts: Starts[Run], started: list[Run]) -> None:
        for run in runs:
            starts.add(run)
        await turns(YOUNG_TURNS - 2)
        assert started == runs[:1]
        await turns(YOUNG_TURNS * len(runs))
        assert not len(starts)

    assert played(body) == runs


def test_on_a_loop_with_much_other_work_runs_start_after_some_time():
    runs = [Run(b"a", number) for number in range(3)]

    async def body(starts: Starts[Run], started: list[Run]) -> None:
        for run in runs:
            starts.add(run)
        for _ in range(6):  # far fewer turns than make a run grow up
            end = time.process_time() + YOUNG_CPU_S
            while time.process_time() < end:
                pass
            await asyncio.sleep(0)

    assert played(body) == runs


def test_a_run_that_must_end_is_not_started():
    runs = [Run(b"a", number) for number in range(4)]

    async def body(starts: Starts[Run], started: list[Run]) -> None:
        for run in runs:
            starts.add(run)
        assert [starts.remove(run) for run in (*runs[:3], runs[2])] == [False, True, True, False]
        starts.ended(runs[0])
        await turns(3)

    assert played(body) == [runs[0], runs[3]]
