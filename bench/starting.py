"""Start time: seconds from the start of a process until it serves, compared with its imports."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import zmq

from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.msgpack import unpack
from bench.measure import Comparison, Parts, Plan
from bench.memory import BROKER_IMPORTS
from bench.processes import WAIT_TIMEOUT_S, Site, site

SERVE = Path(sys.executable).with_name("axon-zmq")
POLL_INTERVAL_S = 0.005
"""Seconds between two checks whether the daemon serves."""
WORKER_IMPORTS = "pydantic_ai"


@contextmanager
def group(plan: Plan) -> Generator[list[Comparison]]:
    """Each start uses new processes in a new folder; files are in the file system cache."""

    def compare(name: str, ours: Callable[[], float], baseline: str) -> Comparison:
        imports = partial(_typical, plan.starts, partial(_imports, baseline))
        return Comparison(f"start, {name}", "s", partial(_typical, plan.starts, ours), {f"import {baseline}": imports})

    yield [
        compare("broker", _broker, BROKER_IMPORTS),
        compare("worker", _worker, WORKER_IMPORTS),
        compare(
            f"`axon-zmq serve`, {plan.serve_workers} of each worker",
            partial(_daemon, plan.serve_workers),
            WORKER_IMPORTS,
        ),
    ]


def _typical(times: int, start: Callable[[], float]) -> Parts:
    return {"until ready": median(start() for _ in range(times))}


def _imports(modules: str) -> float:
    with site() as place:
        began = time.perf_counter()
        place.imported(modules).ready()
        return time.perf_counter() - began


def _broker() -> float:
    with site() as place:
        began = time.perf_counter()
        place.broker(workers=1)
        _wait_until_serving(place, {})
        return time.perf_counter() - began


def _worker() -> float:
    """Start a worker with the bundled agents; the broker is already running."""
    with site() as place:
        place.broker(workers=1)
        _wait_until_serving(place, {})
        began = time.perf_counter()
        place.worker("run_stream", 0, AXON_AGENTS="")
        _wait_until_serving(place, {"run_stream": 1})
        return time.perf_counter() - began


def _daemon(workers: int) -> float:
    with site() as place:
        settings = {f"AXON_{mode.upper()}_WORKERS": str(workers) for mode in MODES}
        settings |= {"AXON_FRONTEND": place.endpoint, "AXON_RUN_DIR": str(place.folder)}
        began = time.perf_counter()
        daemon = place.launch("serve", str(SERVE), "serve", **settings)
        _wait_until_serving(place, dict.fromkeys(MODES, workers))
        took = time.perf_counter() - began
        daemon.signal(signal.SIGTERM)
        if not daemon.ended(WAIT_TIMEOUT_S):
            raise RuntimeError(f"the daemon did not stop:\n{daemon.log()}")
        return took


def _wait_until_serving(place: Site, wanted: Mapping[str, int]) -> None:
    """Ping until the wanted number of workers of each mode is registered.

    The socket tries to connect every millisecond; ZeroMQ's default of 100 ms would be part of the result.
    """
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.RECONNECT_IVL, 1)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(place.endpoint)
        give_up = time.monotonic() + WAIT_TIMEOUT_S
        while time.monotonic() < give_up:
            dealer.send_multipart([b"ping", b"start"])
            if not dealer.poll(int(WAIT_TIMEOUT_S * 1000)):
                break
            modes = unpack(dealer.recv_multipart()[-1], "a pong")["modes"]
            if all(modes[mode]["workers"] >= count for mode, count in wanted.items()):
                return
            time.sleep(POLL_INTERVAL_S)
    raise RuntimeError(f"the daemon does not serve after {WAIT_TIMEOUT_S:g} s:\n{place.logs()}")
