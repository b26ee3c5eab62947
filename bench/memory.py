"""Memory of broker and worker: when idle, for each open stream, and after many requests."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, contextmanager
from functools import partial

from axon_zmq.protocol.limits import KIB, MIB
from bench.agents import PACE_S
from bench.dealers import Dealers
from bench.measure import Comparison, Parts, Plan
from bench.pressure import paced_stream
from bench.processes import Growth, relaying, site
from bench.relay import paced
from bench.runs import BARE
from bench.transport import ECHO

OPENAI = {"AXON_MODEL": "openai-chat:gpt-5-mini", "OPENAI_API_KEY": "none"}
"""Settings with which a worker creates an OpenAI provider at its start; no request is sent to it."""
BROKER_IMPORTS, WORKER_IMPORTS = "zmq, msgpack", "pydantic_ai, pydantic_ai.models.openai"
"""Imports that broker and worker cannot avoid: the baseline of their memory."""
CHUNKS = 20
"""Chunks of each stream; all streams are open at the same time while these chunks are sent."""
DELTAS = 50
"""Deltas of each agent stream."""
PARTS = 20
"""Parts into which many requests are split; the driver drops the replies after each part."""


@contextmanager
def group(plan: Plan) -> Generator[list[Comparison]]:
    """Each figure uses new processes, because a process reuses memory that it has freed, which would hide growth."""
    opened, agents = f"{plan.open_streams:,} open", f"{plan.open_agent_streams} open"
    comparisons = [
        Comparison(
            "memory when idle, broker", "MiB", _broker, {f"import {BROKER_IMPORTS}": partial(_imports, BROKER_IMPORTS)}
        ),
        Comparison(
            "memory when idle, worker with OpenAI's provider",
            "MiB",
            _worker,
            {f"import {WORKER_IMPORTS}": partial(_imports, WORKER_IMPORTS)},
        ),
        Comparison(f"memory of a stream, {opened}, one connection", "KiB", partial(_streams, plan.open_streams, 1), {}),
        Comparison(
            f"memory of a stream, {opened}, one connection each", "KiB", partial(_streams, plan.open_streams, None), {}
        ),
        Comparison(
            f"memory of an agent's stream, {agents}",
            "KiB",
            partial(_agents_streams, plan.open_agent_streams),
            {BARE: partial(_bare_streams, plan.open_agent_streams)},
        ),
    ]
    if plan.memory_requests:
        title = f"memory gained over the last four fifths of {plan.memory_requests:,} requests"
        comparisons.append(
            Comparison(title, "MiB", partial(_memory_gained, plan.memory_requests, plan.concurrency), {}, warm=False)
        )
    yield comparisons


def _imports(modules: str) -> Parts:
    with site() as place:
        python = place.imported(modules)
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
    """Growth per stream that receives chunks, including its connection.

    One stream runs before, so that memory which the first stream allocates once is not counted.
    """
    with relaying() as (place, broker), closing(Dealers(place.endpoint, 1)) as first:
        paced(first, CHUNKS, PACE_S)
        with Growth(broker) as growth, closing(Dealers(place.endpoint, count, connections)) as crowd:
            paced(crowd, CHUNKS, PACE_S)
        return {"broker": growth.bytes / KIB / count}


def _agents_streams(count: int) -> Parts:
    """Growth per stream of `bench.agents.paced`, including all messages kept for replay; one stream runs before."""
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
        bare.call("paced", 1, 1)
        with Growth(bare) as growth:
            bare.call("paced", count, DELTAS)
        return {"worker": growth.bytes / KIB / count}


def _memory_gained(requests: int, clients: int) -> Parts:
    with relaying() as (place, broker), closing(Dealers(place.endpoint, clients)) as crowd:
        before = 0
        for part in range(PARTS):
            if part == PARTS // 5:
                before = broker.resident()
            crowd.exchange(ECHO, requests // (PARTS * clients))
        return {"broker": (broker.resident() - before) / MIB}
