"""Transport without an agent: the cost of a message in the daemon and in the peers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.agents import PACE_S
from bench.clients import Crowd, Request
from bench.measure import OURS, PAUSE_S, Comparison, Parts, Plan, Service, Sides
from bench.numbers import percentiles
from bench.peers import start
from bench.processes import site
from bench.relay import paced

PROXY_SAME_WORKER = "C proxy, same worker"
"""Name of the lower bound: only libzmq relays, between the same clients and the same worker."""
TEXT = "hello there"
ECHO = Request("echo", {"echo": TEXT}, TEXT)


@contextmanager
def group(plan: Plan) -> Generator[list[Comparison]]:
    """The broker with a worker without agents, compared with the peers and with the C proxy and the same worker."""
    with ExitStack() as stack:
        place = stack.enter_context(site())
        broker, worker = place.broker(workers=1), place.source()
        others = list(stack.enter_context(start.started()))
        if start.PROXY not in start.absent():
            proxied = stack.enter_context(site())
            hub, source = start.proxy(proxied), proxied.source()
            others.append(start.dealers(PROXY_SAME_WORKER, proxied, hub=hub, source=source))
        place.wait_for("run_stream")
        streaming = Sides(stack, start.dealers(OURS, place, broker=broker, worker=worker), others)
        asking = Sides(stack, streaming.ours, start.unary(others))

        def streams(how: str, connections: int | None) -> Comparison:
            title = f"paced chunk, {plan.paced_streams} streams, {how}"
            return streaming.compare(
                title, "µs CPU", partial(_paced, chunks=plan.chunks_per_stream), plan.paced_streams, connections
            )

        def latency(how: str, pause: float) -> Comparison:
            measure = partial(_latency, times=plan.latency_requests, pause=pause)
            return asking.compare(f"echo, one at a time, {how}", "ms", measure, 1)

        echoed = partial(_echoed, each=plan.echo_requests // plan.concurrency)
        yield [
            streams("one connection each", None),
            streams("one connection", 1),
            asking.compare(f"echo, {plan.concurrency} at a time", "µs CPU", echoed, plan.concurrency),
            latency("back to back", 0.0),
            latency(f"{PAUSE_S * 1000:g} ms apart", PAUSE_S),
        ]


def _paced(service: Service, crowd: Crowd, chunks: int) -> Parts:
    with service.cpu() as cpu:
        paced(crowd, chunks, PACE_S)
    return cpu.per(chunks * len(crowd))


def _echoed(service: Service, crowd: Crowd, each: int) -> Parts:
    with service.cpu() as cpu:
        crowd.exchange(ECHO, each)
    return cpu.per(each * len(crowd))


def _latency(_service: Service, crowd: Crowd, times: int, pause: float) -> Parts:
    return percentiles(crowd.latencies(ECHO, times, pause))
