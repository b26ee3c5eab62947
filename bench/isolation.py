"""Isolation: what streams notice of 10 MB requests and replies that pass through for others."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from bench.agents import PACE
from bench.clients import Crowd
from bench.dealers import Dealers
from bench.measure import Comparison, Parts, Plan
from bench.numbers import percentiles
from bench.passing import MODE
from bench.processes import Process, Site, site
from bench.relay import paced

ALONE, ELSEWHERE = "nothing passes", "they pass through another daemon"
"""What is beside it: the second is as busy a machine, so the rest is the broker's."""


@contextmanager
def room(plan: Plan) -> Generator[list[Comparison]]:
    """A broker with a worker without agents for the streams and another for what passes; and one for that alone."""
    with ExitStack() as stack:
        place, elsewhere = stack.enter_context(site()), stack.enter_context(site())
        place.broker(workers=2)
        elsewhere.broker(workers=1)
        place.source()
        passing = [_passing(each) for each in (place, elsewhere)]
        place.wait_for("run_stream", MODE)
        elsewhere.wait_for(MODE)
        crowd = stack.enter_context(closing(Dealers(place.endpoint, plan.beside)))
        beside, elsewhere_beside = (partial(_beside, each, crowd, plan.chunks) for each in passing)
        yield [
            Comparison(
                f"delay of a paced chunk, {plan.beside} streams, 10 MB pass all the time",
                "ms",
                beside,
                {ALONE: partial(_delays, crowd, plan.chunks), ELSEWHERE: elsewhere_beside},
            )
        ]


def _passing(place: Site) -> Process:
    place.source(MODE)
    return place.start("passing", "bench.passing", place.endpoint)


def _delays(crowd: Crowd, chunks: int) -> Parts:
    """Milliseconds by which chunks were later than the most punctual one of their stream."""
    late: list[float] = []
    for came in paced(crowd, chunks, PACE):
        delays = came.delays(PACE)
        late += [(delay - min(delays)) * 1000 for delay in delays]
    return percentiles(late)


def _beside(passing: Process, crowd: Crowd, chunks: int) -> Parts:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(passing.ask, "pass", chunks * PACE)
        delays = _delays(crowd, chunks)
        answer.result()
    return delays
