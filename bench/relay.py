"""The relay only: the broker and two alternatives, with a worker that sends prepared chunks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.clients import Crowd, Reply, Request
from bench.measure import OURS, Comparison, Parts, Plan, Service, Sides
from bench.peers import start
from bench.processes import site
from bench.source import DELTA

NAIVE = "naive loop"


@contextmanager
def group(plan: Plan) -> Generator[list[Comparison]]:
    """The broker, compared with the naive loop and the C proxy."""
    with ExitStack() as stack:
        daemon, naive = stack.enter_context(site()), stack.enter_context(site())
        ours = start.dealers(OURS, daemon, broker=daemon.broker(workers=1))
        loop = naive.start("naive", "bench.naive", naive.endpoint, naive.backend)
        others = [start.dealers(NAIVE, naive, broker=loop)]
        if start.PROXY not in start.absent():
            proxied = stack.enter_context(site())
            others.append(start.dealers(start.PROXY, proxied, broker=start.proxy(proxied)))
            proxied.source()
        for place in (daemon, naive):
            place.source()
        daemon.wait_for("run_stream")

        def compare(how: str, clients: int, chunks: int, pause: float = 0.0) -> Comparison:
            relayed = partial(_relayed, chunks=chunks // clients, pause=pause)
            return Sides(stack, ours, others).compare(f"relayed chunk, {how}", "µs CPU", relayed, clients)

        yield [
            compare("1 stream at full speed", 1, plan.relayed_chunks),
            compare(f"{plan.concurrency} streams at full speed", plan.concurrency, plan.relayed_chunks),
            compare("1 stream, one per ms", 1, plan.single_chunks, 0.001),
        ]


def _relayed(service: Service, crowd: Crowd, chunks: int, pause: float) -> Parts:
    with service.cpu() as cpu:
        paced(crowd, chunks, pause)
    return {"broker": cpu.per(chunks * len(crowd))["broker"]}


def paced(crowd: Crowd, chunks: int, pause: float, burst: int = 1) -> list[Reply]:
    """Stream `chunks` chunks to each client."""
    body = {"streams": len(crowd), "chunks": chunks, "pause": pause, "burst": burst}
    return crowd.exchange(Request("paced", body, DELTA * chunks))
