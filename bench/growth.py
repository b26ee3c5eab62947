"""Cost of the broker core by number of workers and clients: `python -m bench.growth`.

The core runs in memory with a simulated clock. Only `Broker.receive` is timed, without sockets; effects are dropped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from statistics import median

from axon_zmq.broker.core.broker import ALIVE_PAUSE_S, Broker
from axon_zmq.broker.core.effects import ToWorker
from axon_zmq.broker.core.events import Ended, Event, FromClient, FromWorker, Tick, WorkerGone
from axon_zmq.broker.core.workers import HOUSEKEEPING_S
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.kinds import CONTROL
from axon_zmq.protocol.msgpack import pack
from bench import report
from bench.processes import ROOT

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- growth: written by python -m bench.growth --write -->", "<!-- growth: end -->"
SIZES = ((2, 100), (16, 1_000), (64, 10_000), (1_000, 100_000))
"""Numbers of workers and clients; each client has one open run."""
QUICK = ((2, 100), (8, 500))
EACH = 2_000
"""Maximum number of timed events of each kind."""
ROWS = (
    ("request", "a request is admitted and dispatched, µs"),
    ("ended", "a run ends, µs"),
    ("cancel", "a run is cancelled, µs"),
    ("ping", "a ping, µs"),
    ("progress", "a worker makes progress, µs"),
    ("lost", "a worker is lost, µs for each of its runs"),
    ("housekeeping", "periodic checks, every 0.5 s, ms"),
    ("alive", "`alive` to 500 clients, ms"),
)


@dataclass
class Simulation:
    """A broker core with a number of workers and clients.

    Args:
        workers: Number of workers, all of mode `run_stream`, with room for all runs.
        clients: Number of clients, each with one open run.
    """

    workers: int
    clients: int
    now: float = 1000.0
    timed: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def __post_init__(self) -> None:
        bounds = limits.BrokerLimits(max_queued=10**7, max_queued_per_client=10**7)
        self.broker = Broker(boot="growth", bounds=bounds, version="0", expected_workers=self.workers, now=self.now)
        self._ids = count()
        self._held: dict[tuple[bytes, bytes], bytes] = {}
        slots = 2 * self.clients // self.workers + 10
        for number in range(self.workers):
            ready = {"v": 1, "mode": "run_stream", "slots": slots, "name": f"w-{number}", "pid": 1, "holds": []}
            self.feed(FromWorker(b"w-%d" % number, b"ready", pack(ready)))
        for number in range(self.clients):
            self.request(b"c-%d" % number)

    def feed(self, event: Event, kind: str = "") -> None:
        began = time.perf_counter()
        effects = self.broker.receive(event, self.now)
        took = time.perf_counter() - began
        if kind:
            self.timed.setdefault(kind, []).append(took)
        for effect in effects:
            if isinstance(effect, ToWorker) and effect.kind == b"run_stream" and effect.client != CONTROL:
                self._held[effect.client, effect.id] = effect.worker

    def request(self, client: bytes, kind: str = "") -> None:
        id = b"%d" % next(self._ids)
        self.feed(FromClient(client, [b"run_stream", id, b"", id], self.now), kind)

    def measure(self) -> dict[str, float]:
        """Median cost of each kind of event, by the name of its row, in the unit of its row."""
        keys = list(self._held)
        some = keys[:: max(1, len(keys) // EACH)][:EACH]
        for key in some:
            self.feed(Ended(self._held.pop(key), *key), "ended")
            self.request(key[0], "request")
        for client, id in list(self._held)[:EACH]:
            self.feed(FromClient(client, [b"cancel", id], self.now), "cancel")
        for number in range(EACH):
            self.feed(FromClient(b"c-%d" % (number % self.clients), [b"ping", b"p"], self.now), "ping")
            self.feed(FromWorker(b"w-%d" % (number % self.workers), b"progress", b""), "progress")
        for _ in range(40):
            self._advance_time()
        for client, id in self._held:
            self.broker.relay.accept(self._held[client, id], client, kinds.CHUNK, id)
        for number in range(min(self.workers - 1, 20)):
            runs = sum(worker == b"w-%d" % number for worker in self._held.values())
            self.feed(WorkerGone(b"w-%d" % number), "lost")
            self.timed["lost"][-1] /= max(1, runs)
        in_ms = ("housekeeping", "alive")
        return {kind: median(taken) * (1e3 if kind in in_ms else 1e6) for kind, taken in self.timed.items()}

    def _advance_time(self) -> None:
        self.now += HOUSEKEEPING_S
        for number in range(self.workers):
            self.feed(FromWorker(b"w-%d" % number, b"progress", b""))
        self.feed(Tick(), "housekeeping" if self.now < self.broker.next_alive else "")
        for _ in range(20):
            self.now += ALIVE_PAUSE_S
            if self.now >= self.broker.next_alive:
                self.feed(Tick(), "alive")


def table(sizes: Iterable[tuple[int, int]], log: Callable[[str], None]) -> str:
    """The Markdown table, with a column for each size."""
    columns: list[tuple[str, dict[str, float]]] = []
    for workers, clients in sizes:
        log(f"{workers} workers, {clients} clients")
        columns.append((f"{workers:,} / {clients:,}", Simulation(workers, clients).measure()))
    lines = [
        "| workers / clients | " + " | ".join(name for name, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for kind, title in ROWS:
        cells = [f"{figures[kind]:.1f}" if figures[kind] >= 1 else f"{figures[kind]:.2f}" for _, figures in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and with `--write` put it into the page."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.growth",
        description="Measure how the cost of the broker core grows with workers and clients.",
    )
    parser.add_argument("--quick", action="store_true", help="only check that the benchmark works")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    made = table(QUICK if options.quick else SIZES, print)
    print(made)
    if options.write and not options.quick:
        report.write(made, PAGE, (BEGIN, END))


if __name__ == "__main__":
    main()
