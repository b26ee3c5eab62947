"""Overload: more agent streams than two workers can serve in time."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median

from bench.agents import PACE_S, text
from bench.clients import Crowd, Request
from bench.measure import OURS, Comparison, Parts, Plan, Service, Sides
from bench.numbers import percentiles
from bench.peers import start
from bench.processes import site
from bench.runs import STREAM

WORKERS = 2


@contextmanager
def group(plan: Plan) -> Generator[list[Comparison]]:
    """Two workers of `run_stream`, compared with peers that have two processes each."""
    with ExitStack() as stack:
        place = stack.enter_context(site())
        broker = place.broker(workers=WORKERS)
        for number in range(WORKERS):
            place.worker("run_stream", number)
        peers = stack.enter_context(start.started(WORKERS, (start.FASTAPI, start.PROXY)))
        place.wait_for("run_stream", each=WORKERS)
        sides = Sides(stack, start.dealers(OURS, place, broker=broker), peers)
        alone = Sides(stack, sides.ours, [])

        def delayed(of: Sides, count: int) -> Comparison:
            title = f"added delay of a delta, {count:,} paced streams"
            return of.compare(
                title,
                "ms",
                partial(_delayed, deltas=plan.deltas_per_stream, rate=plan.start_rate),
                count,
                1,
                warm=False,
            )

        yield [
            sides.compare(
                f"{plan.many_streams} streams without pause, slowest divided by median", "", _uneven, plan.many_streams
            ),
            delayed(sides, plan.paced_streams),
            delayed(alone, plan.overload_streams),
        ]


def paced_stream(deltas: int) -> Request:
    """A request for a stream of `bench.agents.paced`."""
    return Request("stream", {"agent": "paced", "prompt": str(deltas)}, text(deltas))


def _delayed(_service: Service, crowd: Crowd, deltas: int, rate: int) -> Parts:
    """Percentiles of the milliseconds by which deltas were late, if the model starts when the request is sent."""
    replies = crowd.exchange(paced_stream(deltas), rate=rate)
    return percentiles([delay * 1000 for each in replies for delay in each.delays(PACE_S)])


def _uneven(_service: Service, crowd: Crowd) -> Parts:
    durations = [each.ended - each.sent for each in crowd.exchange(STREAM)]
    return {"time": max(durations) / median(durations)}
