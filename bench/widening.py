"""Cost of a relayed chunk in the broker by number of open streams and by number of workers."""

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
from bench.source import TICK_S

CONNECTIONS = 100
STREAMS_ONE, STREAMS_MANY, WORKERS = "streams, one connection", f"streams, up to {CONNECTIONS} connections", "workers"
"""The quantities that grow."""
PART = "broker"
CHUNKS_PER_TICK = 20
"""Chunks of all streams at each tick, for any number of streams: the broker finds the same amount at each wake-up."""


@contextmanager
def group(plan: Plan) -> Generator[list[Comparison]]:
    """One broker for each number of workers; the number of streams varies at the broker with the fewest workers."""
    with ExitStack() as stack:
        relays = {count: stack.enter_context(relaying(count)) for count in plan.worker_counts}
        fewest, *_, most = plan.worker_counts

        def relayed(workers: int, streams: int, connections: int) -> Callable[[], Parts]:
            place, broker = relays[workers]
            crowd = stack.enter_context(closing(SamplingDealers(place, broker, streams, min(streams, connections))))
            return partial(_relayed, crowd, plan.growth_chunks // streams)

        def among_streams(connections: int) -> Callable[[int], Callable[[], Parts]]:
            return lambda count: relayed(fewest, count, connections)

        yield [
            _comparison(STREAMS_ONE, plan.stream_counts, among_streams(1)),
            _comparison(STREAMS_MANY, plan.stream_counts, among_streams(CONNECTIONS)),
            _comparison(WORKERS, plan.worker_counts, lambda count: relayed(count, most, CONNECTIONS)),
        ]


def _comparison(what: str, counts: Sequence[int], relayed: Callable[[int], Callable[[], Parts]]) -> Comparison:
    """Compare the highest count with all lower ones, so that each is measured once."""
    *fewer, most = counts
    return Comparison(title(what, most), "µs CPU", relayed(most), {f"{count:,}": relayed(count) for count in fewer})


def title(what: str, most: int) -> str:
    """Title of the comparison with that highest count."""
    return f"relayed chunk among {most:,} {what}"


def curves(rows: Iterable[Row], plan: Plan) -> Curves:
    """The curves of the chart, from the measured rows."""
    found = {row.title: row for row in rows}
    made: dict[str, list[tuple[int, Figure]]] = {}
    for what, counts in (
        (STREAMS_ONE, plan.stream_counts),
        (STREAMS_MANY, plan.stream_counts),
        (WORKERS, plan.worker_counts),
    ):
        row = found[f"{title(what, counts[-1])}: {PART}"]
        made[what] = list(zip(counts, [*(other.figure for other in row.others), row.ours], strict=True))
    return made


class SamplingDealers(Dealers):
    """Clients that read the broker's CPU time at the first chunk and at the first end of a stream.

    Args:
        place: The site of the broker.
        broker: The process of the broker.
        size: Number of clients.
        connections: Number of sockets that they share.
    """

    def __init__(self, place: Site, broker: Process, size: int, connections: int) -> None:
        super().__init__(place.endpoint, size, connections)
        self._broker = broker
        self.sampled: dict[bool, float] = {}
        """CPU seconds at the first chunk (False) and at the first end (True)."""

    def _receive(self, seconds: float) -> Iterator[tuple[int, str, bool]]:
        for client, piece, ended in super()._receive(seconds):
            if ended not in self.sampled:
                self.sampled[ended] = self._broker.cpu()
            yield client, piece, ended


def _relayed(crowd: SamplingDealers, chunks: int) -> Parts:
    """Microseconds for each chunk, without the cost of opening and ending the streams."""
    crowd.sampled.clear()
    paced(crowd, chunks, TICK_S * max(1, len(crowd) // CHUNKS_PER_TICK), burst=max(1, CHUNKS_PER_TICK // len(crowd)))
    return {PART: (crowd.sampled[True] - crowd.sampled[False]) * 1e6 / (chunks * len(crowd))}
