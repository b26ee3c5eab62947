"""What is measured: each comparison is two calls, the daemon's side and the other, that return figures by part."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.bare import PROMPT
from bench.clients import Crowd
from bench.numbers import Figure, percentiles
from bench.processes import Cpu, Process, site

Parts = dict[str, float]
"""Figures by the part that they are of, such as `broker`, or `p99`."""
PAUSE = 0.005
"""Seconds between two requests, where they are not back to back."""
CALLS = 20
"""Tool calls of one run."""
_NUMBERS = {"a": {"type": "integer"}, "b": {"type": "integer"}}
ADD = {
    "name": "add",
    "description": "Adds two numbers.",
    "parameters": {"type": "object", "properties": _NUMBERS, "required": ["a", "b"]},
    "returns": {"type": "integer"},
}
"""`bench.agents.add` as a tool of the client's."""
NAIVE = "naive loop"
BARE = "bare pydantic-ai"


@dataclass(frozen=True)
class Plan:
    """How much is done in each round."""

    rounds: int
    crowd: int
    """Clients at a time, where it is more than one."""
    relayed: int
    """Chunks at full speed, over all clients."""
    paced: int
    """Chunks one by one, a millisecond apart."""
    streams: int
    """Agent streams, one at a time."""
    runs: int
    """Unary requests, over all clients."""
    timed: int
    """Unary requests one at a time."""
    called: int
    """Runs of `CALLS` tool calls each."""
    idle: float
    """Seconds in which nothing is asked."""


FULL = Plan(rounds=5, crowd=32, relayed=64_000, paced=1_000, streams=8, runs=960, timed=400, called=30, idle=2.0)
QUICK = Plan(rounds=1, crowd=2, relayed=2_000, paced=50, streams=1, runs=20, timed=20, called=2, idle=0.1)


@dataclass(frozen=True)
class Comparison:
    """One line of figures, or a few: both sides do the same work."""

    title: str
    unit: str
    beside: str
    """What the other side is."""
    ours: Callable[[], Parts]
    other: Callable[[], Parts]


@dataclass(frozen=True)
class Row:
    """One figure beside another; where only the daemon has such a part, beside nothing."""

    title: str
    unit: str
    beside: str
    ours: Figure
    other: Figure | None
    ratio: Figure | None
    """Of the rounds' own ratios: what slows both sides of a round does not change it."""


def run(plan: Plan, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure everything; the side that goes first changes with every round."""
    with ExitStack() as stack:
        comparisons = [*stack.enter_context(_relay(plan)), *stack.enter_context(_agents(plan))]
        for comparison in comparisons:
            say(f"warming up: {comparison.title}")
            comparison.ours()
            comparison.other()
        measured: list[list[tuple[Parts, Parts]]] = [[] for _ in comparisons]
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for comparison, pairs in zip(comparisons, measured, strict=True):
                pairs.append(_both(comparison, ours_first=number % 2 == 0))
    return [row for pairs in zip(comparisons, measured, strict=True) for row in _rows(*pairs)]


def _both(comparison: Comparison, ours_first: bool) -> tuple[Parts, Parts]:
    if ours_first:
        ours = comparison.ours()
        return ours, comparison.other()
    other = comparison.other()
    return comparison.ours(), other


def _rows(comparison: Comparison, rounds: list[tuple[Parts, Parts]]) -> Iterator[Row]:
    for part in rounds[0][0]:
        ours = [mine[part] for mine, _ in rounds]
        other = [theirs[part] for _, theirs in rounds if part in theirs]
        yield Row(
            title=f"{comparison.title}: {part}",
            unit=comparison.unit,
            beside=comparison.beside if other else "",
            ours=Figure.of(ours),
            other=Figure.of(other) if other else None,
            ratio=Figure.of([mine / theirs for mine, theirs in zip(ours, other, strict=True)]) if other else None,
        )


# --- the relay alone -------------------------------------------------------------------------------


@contextmanager
def _relay(plan: Plan) -> Generator[list[Comparison]]:
    """The broker, and the naive loop, each with a worker that sends ready-made chunks."""
    with site() as daemon, site() as naive, ExitStack() as stack:
        broker = daemon.broker(workers=1)
        daemon.start("source", "bench.source", daemon.backend)
        loop = naive.start("naive", "bench.naive", naive.endpoint, naive.backend)
        naive.start("source", "bench.source", naive.backend)
        daemon.wait_for("run_stream")

        def compare(how: str, clients: int, chunks: int, pause: float = 0.0) -> Comparison:
            sides = [
                partial(_relayed, stack.enter_context(closing(Crowd(of.endpoint, clients))), process, chunks, pause)
                for of, process in ((daemon, broker), (naive, loop))
            ]
            return Comparison(f"relayed chunk, {how}", "µs CPU", NAIVE, *sides)

        yield [
            compare("1 stream at full speed", 1, plan.relayed),
            compare(f"{plan.crowd} streams at full speed", plan.crowd, plan.relayed),
            compare("1 stream, one each ms", 1, plan.paced, 0.001),
        ]


def _relayed(crowd: Crowd, process: Process, chunks: int, pause: float) -> Parts:
    clients = len(crowd)
    body = {"streams": clients, "chunks": chunks // clients, "pause": pause}
    with Cpu(broker=process) as cpu:
        came = crowd.exchange(b"run_stream", body, each=1)
    assert came == chunks // clients * clients, f"{came} of {chunks} chunks came"
    return cpu.per(came)


# --- agents ----------------------------------------------------------------------------------------


@contextmanager
def _agents(plan: Plan) -> Generator[list[Comparison]]:
    """The whole daemon, and the same agents in process."""
    with (
        site() as daemon,
        closing(Crowd(daemon.endpoint, 1)) as one,
        closing(Crowd(daemon.endpoint, plan.crowd)) as many,
    ):
        broker, run, run_stream = daemon.broker(workers=2), daemon.worker("run"), daemon.worker("run_stream")
        bare = daemon.start("bare", "bench.bare")
        daemon.wait_for("run", "run_stream")

        def streams(crowd: Crowd, each: int) -> Comparison:
            return Comparison(
                f"agent's chunk, {len(crowd)} stream{'s' * (len(crowd) > 1)}",
                "µs CPU",
                BARE,
                partial(_streamed, crowd, broker, run_stream, each),
                partial(bare.ask, "stream", len(crowd), each),
            )

        def latency(how: str, pause: float) -> Comparison:
            return Comparison(
                f"`run` on `echo`, one at a time, {how}",
                "ms",
                BARE,
                partial(_latency, one, plan.timed, pause),
                partial(bare.ask, "latency", plan.timed, pause),
            )

        runs = plan.runs // plan.crowd
        yield [
            streams(one, plan.streams),
            streams(many, 1),
            Comparison(
                f"`run` on `echo`, {plan.crowd} at a time",
                "µs CPU",
                BARE,
                partial(_unary, many, broker, run, runs),
                partial(bare.ask, "run", plan.crowd, runs),
            ),
            latency("back to back", 0.0),
            latency(f"{PAUSE * 1000:g} ms apart", PAUSE),
            Comparison(
                "tool call in a `run`",
                "ms",
                "the same tool in Python",
                partial(_called, one, "caller", plan.called, [ADD]),
                partial(_called, one, "python_caller", plan.called, []),
            ),
            Comparison("idle, each second", "ms CPU", "", partial(_idle, broker, run, plan.idle), dict),
        ]


def _streamed(crowd: Crowd, broker: Process, worker: Process, each: int) -> Parts:
    with Cpu(broker=broker, worker=worker) as cpu:
        chunks = crowd.exchange(b"run_stream", {"agent": "stream", "prompt": PROMPT}, each)
    return cpu.per(chunks)


def _unary(crowd: Crowd, broker: Process, worker: Process, each: int) -> Parts:
    with Cpu(broker=broker, worker=worker) as cpu:
        crowd.exchange(b"run", {"agent": "echo", "prompt": PROMPT}, each)
    return cpu.per(len(crowd) * each)


def _latency(crowd: Crowd, times: int, pause: float) -> Parts:
    return percentiles(crowd.latencies(b"run", {"agent": "echo", "prompt": PROMPT}, times, pause))


def _called(crowd: Crowd, agent: str, times: int, tools: list[dict[str, Any]]) -> Parts:
    """Of each call, its step of the model included: of runs that make `CALLS` of them, one after the other."""
    script = [[{"name": "add", "args": {"a": number, "b": 1}}] for number in range(CALLS)]
    body = {"agent": agent, "prompt": json.dumps(script), "tools": tools}
    return percentiles([took / CALLS for took in crowd.latencies(b"run", body, times, 0.0)])


def _idle(broker: Process, worker: Process, seconds: float) -> Parts:
    with Cpu(broker=broker, worker=worker) as cpu:
        time.sleep(seconds)
    return {name: spent / 1000 / seconds for name, spent in cpu.spent.items()}
