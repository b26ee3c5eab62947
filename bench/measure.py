"""How it is measured: each comparison does the same work on several sides, ours first, and has figures by part."""

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
"""Figures by the part that they are of, such as `broker`, or `p99`."""
OURS = "axon_zmq"
PAUSE = 0.005
"""Seconds between two requests, where they are not back to back."""


@dataclass(frozen=True)
class Plan:
    """How much is done in each round."""

    rounds: int
    warm: bool
    """Whether what is measured is tried once before it counts."""
    crowd: int
    """Clients at a time, where it is more than one."""
    many: int
    """Agent streams at a time, where they are many."""
    relayed: int
    """Chunks at full speed, over all clients."""
    paced: int
    """Chunks one by one, a millisecond apart."""
    abreast: int
    """Paced streams at a time, without agents and with them."""
    chunks: int
    """Of each paced stream without an agent."""
    echoes: int
    """Unary requests without an agent, over all clients."""
    streams: int
    """Agent streams, one at a time."""
    runs: int
    """Unary requests, over all clients."""
    timed: int
    """Unary requests one at a time."""
    called: int
    """Runs of many tool calls each."""
    idle: float
    """Seconds in which nothing is asked."""
    overload: int
    """Paced agent streams at a time, where they are more than can be served."""
    deltas: int
    """Of each paced stream of an agent."""
    rate: int
    """Paced agent streams that begin in a second."""
    beside: int
    """Paced streams without agents, beside 10 MB that pass."""
    opened: int
    """Streams without agents that are open while memory is looked at."""
    agents_opened: int
    """The same, of agents."""
    starts: int
    """Starts of each process, of which the median counts."""
    served: int
    """Workers of each mode of a whole daemon."""
    widths: Sequence[int]
    """Numbers of open streams of which the cost of a chunk is compared, the most last."""
    workers: Sequence[int]
    """The same, of workers."""
    widened: int
    """Chunks for each of these."""
    lasting: int
    """Requests over which memory must not grow; 0: that is not looked at."""


FULL = Plan(
    rounds=3,
    warm=True,
    crowd=32,
    many=256,
    relayed=64_000,
    paced=1_000,
    abreast=500,
    chunks=100,
    echoes=6_400,
    streams=8,
    runs=960,
    timed=400,
    called=30,
    idle=2.0,
    overload=2_000,
    deltas=200,
    rate=500,
    beside=50,
    opened=1_000,
    agents_opened=200,
    starts=3,
    served=2,
    widths=(1, 10, 100, 1_000, 10_000),
    workers=(1, 4, 16, 64),
    widened=40_000,
    lasting=0,
)
QUICK = Plan(
    rounds=1,
    warm=False,
    crowd=2,
    many=4,
    relayed=2_000,
    paced=50,
    abreast=5,
    chunks=5,
    echoes=20,
    streams=1,
    runs=20,
    timed=20,
    called=2,
    idle=0.1,
    overload=10,
    deltas=20,
    rate=50,
    beside=5,
    opened=20,
    agents_opened=5,
    starts=1,
    served=1,
    widths=(1, 40),
    workers=(1, 2),
    widened=2_000,
    lasting=100,
)


@dataclass(frozen=True)
class Comparison:
    """One line of figures, or a few: all sides do the same work."""

    title: str
    unit: str
    ours: Callable[[], Parts]
    others: dict[str, Callable[[], Parts]]
    warm: bool = True
    """Whether each side is tried once before it counts; not worth it for what takes long, after others like it."""


@dataclass(frozen=True)
class Service:
    """What serves, ours or a peer's."""

    name: str
    processes: dict[str, Process]
    """All of the server's, by what each is."""
    connect: Callable[[int, int | None], Crowd]
    """So many clients, on so many connections; on one each by default."""
    also: Service | None = None
    """The same processes, asked for one answer in another way."""

    def cpu(self) -> Cpu:
        """Of all its processes."""
        return Cpu(**self.processes)


@dataclass(frozen=True)
class Sides:
    """Services that are measured alike."""

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
        beside: dict[str, Callable[[], Parts]] | None = None,
        warm: bool = True,
    ) -> Comparison:
        """Measure each with as many clients; `beside` are sides that have none."""

        def side(service: Service) -> Callable[[], Parts]:
            return partial(measure, service, self.stack.enter_context(closing(service.connect(size, connections))))

        others = {other.name: side(other) for other in self.others}
        return Comparison(title, unit, side(self.ours), {**others, **(beside or {})}, warm)


@dataclass(frozen=True)
class Other:
    """The figure of another side, and ours divided by it."""

    name: str
    figure: Figure
    ratio: Figure
    """Of the rounds' own ratios: what slows all sides of a round does not change it."""


@dataclass(frozen=True)
class Row:
    """One of our figures beside the others'; where only the daemon has such a part, beside nothing."""

    title: str
    unit: str
    ours: Figure
    others: Sequence[Other]


Room = Callable[[Plan], AbstractContextManager[Sequence[Comparison]]]
"""Starts what some comparisons need, and ends it after them."""


def run(rooms: Sequence[Room], plan: Plan, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure everything, a room at a time; the order of the sides is reversed with every round."""
    rows: list[Row] = []
    for room in rooms:
        with room(plan) as comparisons:
            for comparison in filter(lambda each: plan.warm and each.warm, comparisons):
                say(f"warming up: {comparison.title}")
                _all_sides(comparison, backwards=False)
            measured: list[list[dict[str, Parts]]] = [[] for _ in comparisons]
            for number in range(rounds):
                for comparison, results in zip(comparisons, measured, strict=True):
                    say(f"round {number + 1} of {rounds}: {comparison.title}")
                    results.append(_all_sides(comparison, backwards=number % 2 == 1))
        for comparison, results in zip(comparisons, measured, strict=True):
            rows += _rows(comparison, results)
    return rows


def _all_sides(comparison: Comparison, backwards: bool) -> dict[str, Parts]:
    sides = list({OURS: comparison.ours, **comparison.others}.items())
    return {name: _uncollected(side) for name, side in (reversed(sides) if backwards else sides)}


def _uncollected(side: Callable[[], Parts]) -> Parts:
    """A side's figures; the driver's own garbage is collected before, since that takes a tenth of a second."""
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
