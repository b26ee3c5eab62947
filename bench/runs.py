"""Agents: the whole daemon, compared with the peers and with the same agents in process."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

from bench.agents import DELTAS, text
from bench.bare import PROMPT
from bench.clients import Crowd, Request
from bench.measure import OURS, PAUSE_S, Comparison, Parts, Plan, Service, Sides
from bench.numbers import percentiles
from bench.peers import start
from bench.processes import Cpu, Process, site

CALLS = 20
"""Tool calls of one run."""
_NUMBERS = {"a": {"type": "integer"}, "b": {"type": "integer"}}
ADD = {
    "name": "add",
    "description": "Adds two numbers.",
    "parameters": {"type": "object", "properties": _NUMBERS, "required": ["a", "b"]},
    "returns": {"type": "integer"},
}
"""`bench.agents.add` as a tool that the client executes."""
BARE = "bare pydantic-ai"
STREAM = Request("stream", {"agent": "stream", "prompt": PROMPT}, text(DELTAS))
RUN = Request("run", {"agent": "echo", "prompt": PROMPT}, PROMPT)


@contextmanager
def group(plan: Plan) -> Generator[list[Comparison]]:
    """One worker process for each mode; the peers have one process too."""
    with ExitStack() as stack:
        daemon = stack.enter_context(site())
        broker, run, run_stream = daemon.broker(workers=2), daemon.worker("run"), daemon.worker("run_stream")
        bare = daemon.start("bare", "bench.bare")
        peers = stack.enter_context(start.started())
        daemon.wait_for("run", "run_stream")
        streaming = Sides(stack, start.dealers(OURS, daemon, broker=broker, worker=run_stream), peers)
        running = Sides(stack, start.dealers(OURS, daemon, broker=broker, worker=run), start.unary(peers))
        one = stack.enter_context(closing(running.ours.connect(1, None)))

        def streams(count: int, each: int, warm: bool = True) -> Comparison:
            return streaming.compare(
                f"agent's delta, {count} stream{'s' * (count > 1)}",
                "µs CPU",
                partial(_streamed, each=each),
                count,
                extra={BARE: partial(bare.call, "stream", count, each)},
                warm=warm,
            )

        def latency(how: str, pause: float) -> Comparison:
            return Comparison(
                f"`run` on `echo`, one at a time, {how}",
                "ms",
                partial(_latency, one, plan.latency_requests, pause),
                {BARE: partial(bare.call, "latency", plan.latency_requests, pause)},
            )

        each = plan.run_requests // plan.concurrency
        yield [
            streams(1, plan.agent_streams),
            streams(plan.concurrency, 1),
            streams(plan.many_streams, 1, warm=False),
            running.compare(
                f"`run` on `echo`, {plan.concurrency} at a time",
                "µs CPU",
                partial(_unary, each=each),
                plan.concurrency,
                extra={BARE: partial(bare.call, "run", plan.concurrency, each)},
            ),
            latency("back to back", 0.0),
            latency(f"{PAUSE_S * 1000:g} ms apart", PAUSE_S),
            Comparison(
                "tool call in a `run`",
                "ms",
                partial(_called, one, "caller", plan.tool_runs, [ADD]),
                {"the same tool in Python": partial(_called, one, "python_caller", plan.tool_runs, [])},
            ),
            Comparison("idle, per second", "ms CPU", partial(_idle, running.ours.processes, plan.idle_s), {}),
        ]


def _streamed(service: Service, crowd: Crowd, each: int) -> Parts:
    with service.cpu() as cpu:
        crowd.exchange(STREAM, each)
    return cpu.per(len(crowd) * each * DELTAS)


def _unary(service: Service, crowd: Crowd, each: int) -> Parts:
    with service.cpu() as cpu:
        crowd.exchange(RUN, each)
    return cpu.per(len(crowd) * each)


def _latency(crowd: Crowd, times: int, pause: float) -> Parts:
    return percentiles(crowd.latencies(RUN, times, pause))


def _called(crowd: Crowd, agent: str, times: int, tools: list[dict[str, Any]]) -> Parts:
    """Percentiles of the time of a tool call, including the model step, in runs with `CALLS` consecutive calls."""
    script = [[{"name": "add", "args": {"a": number, "b": 1}}] for number in range(CALLS)]
    answer = json.dumps([number + 1 for number in range(CALLS)], separators=(",", ":"))
    request = Request("run", {"agent": agent, "prompt": json.dumps(script), "tools": tools}, answer)
    return percentiles([took / CALLS for took in crowd.latencies(request, times, 0.0)])


def _idle(processes: dict[str, Process], seconds: float) -> Parts:
    with Cpu(**processes) as cpu:
        time.sleep(seconds)
    return {name: spent / 1000 / seconds for name, spent in cpu.spent.items()}
