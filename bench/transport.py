"""The transport without an agent: what a message costs on its way, here and with the peers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.agents import PACE
from bench.clients import Crowd, Request
from bench.measure import OURS, PAUSE, Comparison, Parts, Plan, Service, Sides
from bench.numbers import percentiles
from bench.peers import start
from bench.processes import site
from bench.relay import paced

FLOOR = "C proxy, our source"
"""What is left when nothing but libzmq relays, with the same worker."""
SAID = "hello there"
ECHO = Request("echo", {"echo": SAID}, SAID)


@contextmanager
def room(plan: Plan) -> Generator[list[Comparison]]:
    """The broker with a worker without agents, beside the peers, and beside the C proxy with that worker."""
    with ExitStack() as stack:
        place = stack.enter_context(site())
        broker, worker = place.broker(workers=1), place.source()
        others = list(stack.enter_context(start.started()))
        if start.PROXY not in start.absent():
            proxied = stack.enter_context(site())
            hub, source = start.proxy(proxied), proxied.source()
            others.append(start.dealers(FLOOR, proxied, hub=hub, source=source))
        place.wait_for("run_stream")
        streaming = Sides(stack, start.dealers(OURS, place, broker=broker, worker=worker), others)
        asking = Sides(stack, streaming.ours, start.unary(others))

        def streams(how: str, connections: int | None) -> Comparison:
            title = f"paced chunk, {plan.abreast} streams, {how}"
            return streaming.compare(title, "µs CPU", partial(_paced, chunks=plan.chunks), plan.abreast, connections)

        def latency(how: str, pause: float) -> Comparison:
            measure = partial(_latency, times=plan.timed, pause=pause)
            return asking.compare(f"echo, one at a time, {how}", "ms", measure, 1)

        echoed = partial(_echoed, each=plan.echoes // plan.crowd)
        yield [
            streams("a connection each", None),
            streams("one connection", 1),
            asking.compare(f"echo, {plan.crowd} at a time", "µs CPU", echoed, plan.crowd),
            latency("back to back", 0.0),
            latency(f"{PAUSE * 1000:g} ms apart", PAUSE),
        ]


def _paced(service: Service, crowd: Crowd, chunks: int) -> Parts:
    with service.cpu() as cpu:
        paced(crowd, chunks, PACE)
    return cpu.per(chunks * len(crowd))


def _echoed(service: Service, crowd: Crowd, each: int) -> Parts:
    with service.cpu() as cpu:
        crowd.exchange(ECHO, each)
    return cpu.per(each * len(crowd))


def _latency(_service: Service, crowd: Crowd, times: int, pause: float) -> Parts:
    return percentiles(crowd.latencies(ECHO, times, pause))
