"""Memory: what broker and worker hold when nobody asks, for each open stream, and after many requests."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from functools import partial

from axon_zmq.protocol.limits import KIB, MIB
from bench.agents import PACE
from bench.dealers import Dealers
from bench.measure import Comparison, Parts, Plan
from bench.pressure import paced_stream
from bench.processes import Growth, relaying, site
from bench.relay import paced
from bench.runs import BARE
from bench.transport import ECHO

OPENAI = {"AXON_MODEL": "openai-chat:gpt-5-mini", "OPENAI_API_KEY": "none"}
"""A worker makes a model's provider when it starts, and asks it nothing."""
BROKERS_FLOOR, WORKERS_FLOOR = "zmq, msgpack", "pydantic_ai, pydantic_ai.models.openai"
"""What they cannot do without."""
CHUNKS = 20
"""Of each stream: so long do all stay open."""
DELTAS = 50
"""Of each stream of an agent."""
PARTS = 20
"""Of many requests: after each the benchmark drops the answers."""


@contextmanager
def room(plan: Plan) -> Generator[list[Comparison]]:
    """Each figure is of processes of its own: memory that was given back once is not taken anew."""
    opened, agents = f"{plan.opened:,} open", f"{plan.agents_opened} open"
    comparisons = [
        Comparison(
            "memory when idle, broker", "MiB", _broker, {f"import {BROKERS_FLOOR}": partial(_floor, BROKERS_FLOOR)}
        ),
        Comparison(
            "memory when idle, worker with OpenAI's provider",
            "MiB",
            _worker,
            {f"import {WORKERS_FLOOR}": partial(_floor, WORKERS_FLOOR)},
        ),
        Comparison(f"memory of a stream, {opened}, one connection", "KiB", partial(_streams, plan.opened, 1), {}),
        Comparison(f"memory of a stream, {opened}, a connection each", "KiB", partial(_streams, plan.opened, None), {}),
        Comparison(
            f"memory of an agent's stream, {agents}",
            "KiB",
            partial(_agents_streams, plan.agents_opened),
            {BARE: partial(_bare_streams, plan.agents_opened)},
        ),
    ]
    if plan.lasting:
        title = f"memory gained over the last four fifths of {plan.lasting:,} requests"
        comparisons.append(Comparison(title, "MiB", partial(_gained, plan.lasting, plan.crowd), {}, warm=False))
    yield comparisons


def _floor(what: str) -> Parts:
    with site() as place:
        python = place.imported(what)
        python.ready()
        return {"all": python.resident() / MIB}


def _broker() -> Parts:
    with relaying() as (_, broker):
        return {"all": broker.resident() / MIB}


def _worker() -> Parts:
    with site() as place:
        place.broker(workers=1)
        worker = place.worker("run_stream", 0, **OPENAI)
        place.wait_for("run_stream")
        worker.calm()
        return {"all": worker.resident() / MIB}


def _streams(count: int, connections: int | None) -> Parts:
    """Of streams that get chunks, their connections included; one has been there before."""
    with relaying() as (place, broker), closing(Dealers(place.endpoint, 1)) as first:
        paced(first, CHUNKS, PACE)
        with Growth(broker) as growth, closing(Dealers(place.endpoint, count, connections)) as crowd:
            paced(crowd, CHUNKS, PACE)
        return {"broker": growth.bytes / KIB / count}


def _agents_streams(count: int) -> Parts:
    """Of streams of `bench.agents.paced`, with all that is kept for replay; one has been there before."""
    with site() as place:
        place.broker(workers=1)
        worker = place.worker("run_stream")
        place.wait_for("run_stream")
        with closing(Dealers(place.endpoint, count, 1)) as crowd, closing(Dealers(place.endpoint, 1)) as first:
            first.exchange(paced_stream(1))
            worker.calm()
            with Growth(worker) as growth:
                crowd.exchange(paced_stream(DELTAS))
        return {"worker": growth.bytes / KIB / count}


def _bare_streams(count: int) -> Parts:
    with site() as place:
        bare = place.start("bare", "bench.bare")
        bare.ask("paced", 1, 1)
        with Growth(bare) as growth:
            bare.ask("paced", count, DELTAS)
        return {"worker": growth.bytes / KIB / count}


def _gained(requests: int, clients: int) -> Parts:
    with relaying() as (place, broker), closing(Dealers(place.endpoint, clients)) as crowd:
        before = 0
        for part in range(PARTS):
            if part == PARTS // 5:
                before = broker.resident()
            crowd.exchange(ECHO, requests // (PARTS * clients))
        return {"broker": (broker.resident() - before) / MIB}
