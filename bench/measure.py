"""Measuring: each comparison does the same work on several sides, ours first, and yields one figure for each part."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from functools import partial

from bench.clients import Crowd
from bench.numbers import Figure
from bench.processes import Cpu, Process

Parts = dict[str, float]
"""Figures by the name of the part, such as `broker` or `p99`."""
OURS = "axon_zmq"
PAUSE_S = 0.005
"""Seconds between two requests that are not sent back to back."""


@dataclass(frozen=True)
class Plan:
    """Amount of work in each round."""

    rounds: int
    warm: bool
    """Whether each side runs once before it is measured."""
    concurrency: int
    """Concurrent clients in the measurements with more than one."""
    many_streams: int
    """Concurrent agent streams in the measurement with the most."""
    relayed_chunks: int
    """Chunks at full speed, over all clients."""
    single_chunks: int
    """Chunks of a stream with one chunk per millisecond."""
    paced_streams: int
    """Concurrent paced streams, without agents and with agents."""
    chunks_per_stream: int
    """Chunks of each paced stream without an agent."""
    echo_requests: int
    """Unary requests without an agent, over all clients."""
    agent_streams: int
    """Consecutive agent streams of one client."""
    run_requests: int
    """Unary requests to an agent, over all clients."""
    latency_requests: int
    """Consecutive unary requests of one client."""
    tool_runs: int
    """Runs with `bench.runs.CALLS` tool calls each."""
    idle_s: float
    """Seconds without any request."""
    overload_streams: int
    """Concurrent paced agent streams: more than two workers can serve in time."""
    deltas_per_stream: int
    """Deltas of each paced agent stream."""
    start_rate: int
    """Paced agent streams that start per second."""
    isolation_streams: int
    """Concurrent paced streams without agents during 10 MB transfers."""
    open_streams: int
    """Open streams without agents while memory is measured."""
    open_agent_streams: int
    """Open agent streams while memory is measured."""
    starts: int
    """Starts of each process in a round; the figure is their median."""
    serve_workers: int
    """Workers of each mode when a whole daemon is started."""
    stream_counts: Sequence[int]
    """Numbers of open streams for which the cost of a chunk is measured, in ascending order."""
    worker_counts: Sequence[int]
    """Numbers of workers for which the cost of a chunk is measured, in ascending order."""
    growth_chunks: int
    """Chunks for each of these numbers."""
    memory_requests: int
    """Requests over which memory growth is measured; 0 skips this measurement."""


FULL = Plan(
    rounds=3,
    warm=True,
    concurrency=32,
    many_streams=256,
    relayed_chunks=64_000,
    single_chunks=1_000,
    paced_streams=500,
    chunks_per_stream=100,
    echo_requests=6_400,
    agent_streams=8,
    run_requests=960,
    latency_requests=400,
    tool_runs=30,
    idle_s=2.0,
    overload_streams=2_000,
    deltas_per_stream=200,
    start_rate=500,
    isolation_streams=50,
    open_streams=1_000,
    open_agent_streams=200,
    starts=3,
    serve_workers=2,
    stream_counts=(1, 10, 100, 1_000, 10_000),
    worker_counts=(1, 4, 16, 64),
    growth_chunks=40_000,
    memory_requests=0,
)
QUICK = Plan(
    rounds=1,
    warm=False,
    concurrency=2,
    many_streams=4,
    relayed_chunks=2_000,
    single_chunks=50,
    paced_streams=5,
    chunks_per_stream=5,
    echo_requests=20,
    agent_streams=1,
    run_requests=20,
    latency_requests=20,
    tool_runs=2,
    idle_s=0.1,
    overload_streams=10,
    deltas_per_stream=20,
    start_rate=50,
    isolation_streams=5,
    open_streams=20,
    open_agent_streams=5,
    starts=1,
    serve_workers=1,
    stream_counts=(1, 40),
    worker_counts=(1, 2),
    growth_chunks=2_000,
    memory_requests=100,
)


@dataclass(frozen=True)
class Comparison:
    """One or several rows of figures for the same work on all sides."""

    title: str
    unit: str
    ours: Callable[[], Parts]
    others: dict[str, Callable[[], Parts]]
    warm: bool = True
    """Whether each side runs once before it is measured. Long comparisons that follow similar ones skip this."""


@dataclass(frozen=True)
class Service:
    """A service under test: ours or a peer."""

    name: str
    processes: dict[str, Process]
    """All processes of the server, by role."""
    connect: Callable[[int, int | None], Crowd]
    """Creates clients: number of clients, and number of connections; by default each has its own."""
    alternative: Service | None = None
    """The same processes with another way to send unary requests."""

    def cpu(self) -> Cpu:
        """Measure the CPU time of all its processes."""
        return Cpu(**self.processes)


@dataclass(frozen=True)
class Sides:
    """Services that are measured in the same way."""

    stack: ExitStack
    """Closes the clients."""
    ours: Service
    others: Sequence[Service]

    def compare(
        self,
        title: str,
        unit: str,
        measure: Callable[[Service, Crowd], Parts],
        size: int,
        connections: int | None = None,
        extra: dict[str, Callable[[], Parts]] | None = None,
        warm: bool = True,
    ) -> Comparison:
        """Compare the services with the same number of clients; `extra` has further sides without clients."""

        def side(service: Service) -> Callable[[], Parts]:
            return partial(measure, service, self.stack.enter_context(closing(service.connect(size, connections))))

        others = {other.name: side(other) for other in self.others}
        return Comparison(title, unit, side(self.ours), {**others, **(extra or {})}, warm)


@dataclass(frozen=True)
class Other:
    """The figure of another side, and our figure divided by it."""

    name: str
    figure: Figure
    ratio: Figure
    """Median of the ratios of the single rounds: a slow round changes all sides and not the ratio."""


@dataclass(frozen=True)
class Row:
    """One of our figures and the figures of the other sides; `others` is empty if only the daemon has such a part."""

    title: str
    unit: str
    ours: Figure
    others: Sequence[Other]


Group = Callable[[Plan], AbstractContextManager[Sequence[Comparison]]]
"""A context manager that starts the processes of a group of comparisons and stops them afterwards."""


def run(groups: Sequence[Group], plan: Plan, rounds: int, log: Callable[[str], None]) -> list[Row]:
    """Measure all comparisons, one group after the other.

    The order of the sides is reversed with every round, so that a trend of the machine does not favour one side.
    """
    rows: list[Row] = []
    for group in groups:
        with group(plan) as comparisons:
            for comparison in filter(lambda each: plan.warm and each.warm, comparisons):
                log(f"warming up: {comparison.title}")
                _all_sides(comparison, backwards=False)
            measured: list[list[dict[str, Parts]]] = [[] for _ in comparisons]
            for number in range(rounds):
                for comparison, results in zip(comparisons, measured, strict=True):
                    log(f"round {number + 1} of {rounds}: {comparison.title}")
                    results.append(_all_sides(comparison, backwards=number % 2 == 1))
        for comparison, results in zip(comparisons, measured, strict=True):
            rows += _rows(comparison, results)
    return rows


def _all_sides(comparison: Comparison, backwards: bool) -> dict[str, Parts]:
    sides = list({OURS: comparison.ours, **comparison.others}.items())
    return {name: _without_gc(side) for name, side in (reversed(sides) if backwards else sides)}


def _without_gc(side: Callable[[], Parts]) -> Parts:
    """The figures of a side, measured without garbage collection in the driver.

    A collection takes up to 0.1 s and would be counted as a delay of the server.
    """
    gc.collect()
    gc.disable()
    try:
        return side()
    finally:
        gc.enable()


def _rows(comparison: Comparison, rounds: list[dict[str, Parts]]) -> Iterator[Row]:
    for part in rounds[0][OURS]:
        ours = [sides[OURS][part] for sides in rounds]
        others: list[Other] = []
        for name in comparison.others:
            theirs = [sides[name][part] for sides in rounds if part in sides[name]]
            if theirs:
                ratio = Figure.of([mine / other for mine, other in zip(ours, theirs, strict=True)])
                others.append(Other(name, Figure.of(theirs), ratio))
        yield Row(f"{comparison.title}: {part}", comparison.unit, Figure.of(ours), others)
