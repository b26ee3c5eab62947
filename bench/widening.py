"""Growth on the wire: what a relayed chunk costs the broker among ever more open streams, and ever more workers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from bench.chart import Curves
from bench.dealers import Dealers
from bench.measure import Comparison, Parts, Plan, Row
from bench.numbers import Figure
from bench.processes import Process, Site, relaying
from bench.relay import paced
from bench.source import TICK

CONNECTIONS = 100
ON_ONE, ON_MANY, WORKERS = "streams, one connection", f"streams, up to {CONNECTIONS} connections", "workers"
"""What there are ever more of."""
PART = "broker"
AT_ONCE = 20
"""Chunks of all streams at each tick, however many streams there are: what the broker finds at a wake is the same."""


@contextmanager
def room(plan: Plan) -> Generator[list[Comparison]]:
    """A broker for each number of workers; more streams are asked of the one that has the fewest."""
    with ExitStack() as stack:
        relays = {count: stack.enter_context(relaying(count)) for count in plan.workers}
        fewest, *_, most = plan.workers

        def relayed(workers: int, streams: int, connections: int) -> Callable[[], Parts]:
            place, broker = relays[workers]
            crowd = stack.enter_context(closing(Watching(place, broker, streams, min(streams, connections))))
            return partial(_relayed, crowd, plan.widened // streams)

        def among_streams(connections: int) -> Callable[[int], Callable[[], Parts]]:
            return lambda count: relayed(fewest, count, connections)

        yield [
            _widened(ON_ONE, plan.widths, among_streams(1)),
            _widened(ON_MANY, plan.widths, among_streams(CONNECTIONS)),
            _widened(WORKERS, plan.workers, lambda count: relayed(count, most, CONNECTIONS)),
        ]


def _widened(what: str, counts: Sequence[int], relayed: Callable[[int], Callable[[], Parts]]) -> Comparison:
    """The most beside all that are fewer: so each is measured once."""
    *fewer, most = counts
    return Comparison(title(what, most), "µs CPU", relayed(most), {f"{count:,}": relayed(count) for count in fewer})


def title(what: str, most: int) -> str:
    """Of the comparison in which there are so many at most."""
    return f"relayed chunk among {most:,} {what}"


def curves(rows: Iterable[Row], plan: Plan) -> Curves:
    """What was measured, for the chart."""
    found = {row.title: row for row in rows}
    made: dict[str, list[tuple[int, Figure]]] = {}
    for what, counts in ((ON_ONE, plan.widths), (ON_MANY, plan.widths), (WORKERS, plan.workers)):
        row = found[f"{title(what, counts[-1])}: {PART}"]
        made[what] = list(zip(counts, [*(other.figure for other in row.others), row.ours], strict=True))
    return made


class Watching(Dealers):
    """Clients that look at the broker's CPU time when the first chunk comes, and when the first stream ends.

    Args:
        place: Where the broker is.
        broker: The process.
        size: How many clients.
        connections: How many sockets they share.
    """

    def __init__(self, place: Site, broker: Process, size: int, connections: int) -> None:
        super().__init__(place.endpoint, size, connections)
        self._broker = broker
        self.seen: dict[bool, float] = {}
        """Seconds, at the first chunk (False) and at the first end (True)."""

    def _heard(self, seconds: float) -> Iterator[tuple[int, str, bool]]:
        for client, piece, ended in super()._heard(seconds):
            if ended not in self.seen:
                self.seen[ended] = self._broker.cpu()
            yield client, piece, ended


def _relayed(crowd: Watching, chunks: int) -> Parts:
    """Of each chunk alone: not what it costs to open and end the streams."""
    crowd.seen.clear()
    paced(crowd, chunks, TICK * max(1, len(crowd) // AT_ONCE), burst=max(1, AT_ONCE // len(crowd)))
    return {PART: (crowd.seen[True] - crowd.seen[False]) * 1e6 / (chunks * len(crowd))}
