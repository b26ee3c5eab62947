"""Benchmark of the Elixir package on chumak and erlzmq.

`python -m bench.elixir` starts it. It needs `elixir`, and a folder of compiled packages in `AXON_ELIXIR_DEPS`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

from axon_zmq import Client
from bench.processes import ROOT, Process, Site, bound, site

PACKAGE = ROOT / "clients" / "elixir"
TRANSPORTS = ("chumak", "erlzmq")
ROUNDS = 3


def _mix(figure: str, transport: str, endpoint: str, on_line: Callable[[str], None] = lambda _: None) -> int:
    """Run `bench/figures.exs` in the Elixir package; returns the figure that it prints in its last line."""
    env = {**os.environ, "ERL_LIBS": os.environ["AXON_ELIXIR_DEPS"], "MIX_ENV": "test", "LC_ALL": "C.UTF-8"}
    command = ["mix", "run", "bench/figures.exs", figure, transport, endpoint]
    last = ""
    with subprocess.Popen(command, cwd=PACKAGE, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            on_line(line.strip())
            last = line.strip() or last
    if process.returncode:
        raise RuntimeError(f"{figure} on {transport} failed: {last}")
    return int(last)


def _source(place: Site) -> Process:
    place.broker(1)
    return place.source()


def chunks(transport: str) -> str:
    """Chunks per second that one Elixir process receives from a worker without an agent."""
    with site() as place:
        _source(place)
        place.wait_for("run_stream")
        rates = [_mix("chunks", transport, place.endpoint) for _ in range(ROUNDS)]
    return f"{median(rates):,} ({min(rates):,} to {max(rates):,})"


def run(transport: str) -> str:
    """The p50 of `run` on `echo`, compared with the Python client in the same round."""
    with site() as place:
        place.broker(1)
        place.worker("run")
        place.wait_for("run")
        pairs = [(_mix("run", transport, place.endpoint) / 1000, _python(place.endpoint)) for _ in range(ROUNDS)]
    elixir, python = (median(each) for each in zip(*pairs, strict=True))
    return f"{elixir:.2f} ms; Python {python:.2f} ms; added {elixir - python:+.2f} ms"


def _python(endpoint: str) -> float:
    times: list[float] = []
    with Client(endpoint) as client:
        for _ in range(450):
            began = time.perf_counter()
            client.run("echo", "Hello")
            times.append((time.perf_counter() - began) * 1000)
    return median(times[50:])


def streams(transport: str) -> str:
    """Seconds for 200 streams of 100 chunks at 20 ms each, which take at least 2 s; checks the order of the chunks."""
    with site() as place:
        place.broker(1)
        place.worker("run_stream")
        place.wait_for("run_stream")
        return f"{median(_mix('streams', transport, place.endpoint) for _ in range(ROUNDS)) / 1000:.2f} s"


def recovery(transport: str) -> str:
    """Interruption of a stream of one chunk per 10 ms after `kill -9` of the broker; fails if a chunk is lost."""
    pauses: list[int] = []
    for _ in range(ROUNDS):
        with site() as place:
            brokers = [place.broker(1)]
            place.worker("run_stream")
            place.wait_for("run_stream")

            def kill(line: str, place: Site = place, brokers: list[Process] = brokers) -> None:
                if line == "under way":
                    brokers[-1].stop()
                    brokers.append(place.broker(1))

            pauses.append(_mix("recovery", transport, place.endpoint, kill))
    return f"{median(pauses):,} ms ({min(pauses):,} to {max(pauses):,}), 0 chunks lost"


ROWS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("chunks per second, received by one process", chunks),
    ("`run` on `echo`, one at a time, p50", run),
    ("200 streams of 100 chunks, one per 20 ms, all in order", streams),
    ("interruption of a stream after `kill -9` of the broker", recovery),
)


def main() -> int:
    """Print the table."""
    if not os.environ.get("AXON_ELIXIR_DEPS"):
        print(
            "AXON_ELIXIR_DEPS is not set: expected a folder with chumak/ebin, msgpax/ebin and erlzmq/ebin",
            file=sys.stderr,
        )
        return 2
    bound(600)
    print(f"|  | {' | '.join(TRANSPORTS)} |", f"|---{'|---' * len(TRANSPORTS)}|", sep="\n")
    for title, measure in ROWS:
        print(f"| {title} | {' | '.join(measure(transport) for transport in TRANSPORTS)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
