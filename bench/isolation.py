"""Isolation: how 10 MB requests and replies of one client delay the streams of other clients."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from bench.agents import PACE_S
from bench.clients import Crowd
from bench.dealers import Dealers
from bench.measure import Comparison, Parts, Plan
from bench.numbers import percentiles
from bench.passing import MODE
from bench.processes import Process, Site, site
from bench.relay import paced

ALONE, ELSEWHERE = "no transfers", "transfers through another broker"
"""Names of the comparisons. In the second comparison the machine is equally busy, so the difference from it is caused
by the broker."""


@contextmanager
def group(plan: Plan) -> Generator[list[Comparison]]:
    """One broker with separate workers for streams and for transfers, and a second broker for transfers only."""
    with ExitStack() as stack:
        place, elsewhere = stack.enter_context(site()), stack.enter_context(site())
        place.broker(workers=2)
        elsewhere.broker(workers=1)
        place.source()
        transfers = [_start_transfers(each) for each in (place, elsewhere)]
        place.wait_for("run_stream", MODE)
        elsewhere.wait_for(MODE)
        crowd = stack.enter_context(closing(Dealers(place.endpoint, plan.isolation_streams)))
        during, elsewhere_during = (
            partial(_delays_during_transfers, each, crowd, plan.chunks_per_stream) for each in transfers
        )
        yield [
            Comparison(
                f"delay of a paced chunk, {plan.isolation_streams} streams, during 10 MB transfers",
                "ms",
                during,
                {ALONE: partial(_delays, crowd, plan.chunks_per_stream), ELSEWHERE: elsewhere_during},
            )
        ]


def _start_transfers(place: Site) -> Process:
    place.source(MODE)
    return place.start("passing", "bench.passing", place.endpoint)


def _delays(crowd: Crowd, chunks: int) -> Parts:
    """Percentiles of the milliseconds by which chunks were later than the most punctual chunk of their stream."""
    late: list[float] = []
    for reply in paced(crowd, chunks, PACE_S):
        delays = reply.delays(PACE_S)
        late += [(delay - min(delays)) * 1000 for delay in delays]
    return percentiles(late)


def _delays_during_transfers(transfers: Process, crowd: Crowd, chunks: int) -> Parts:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(transfers.call, "pass", chunks * PACE_S)
        delays = _delays(crowd, chunks)
        answer.result()
    return delays
