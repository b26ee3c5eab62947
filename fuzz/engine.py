"""Runs harnesses without coverage feedback: the short form for CI, and the long form in several processes."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from random import Random
from typing import Final

from fuzz.harness import Harness, Outcome

FINDINGS: Final = Path(__file__).parent / "findings"
"""Folder of inputs that broke an invariant, one file each; git ignores it."""
BATCH: Final = 500
"""Inputs between two reports of a process."""
MAX_GROWN: Final = 2000
"""Inputs that a process keeps because they did something new; then each new one replaces a random one."""
MAX_MEMORY: Final = 2 * 2**30
"""Bytes of address space of one process: an input that allocates more fails with MemoryError."""
HANG_S: Final = 300
"""CPU seconds of one batch after which a process prints its stack and ends."""
MAX_FINDINGS: Final = 20
"""Findings after which a run ends."""


@dataclass(slots=True)
class Counts:
    """Totals of a run, or of a part of it."""

    inputs: int = 0
    messages: int = 0
    passed: int = 0
    grown: int = 0
    """Inputs that did something new."""
    findings: list[str] = field(default_factory=list[str])

    def add(self, other: Counts) -> None:
        """Add the totals of another part."""
        self.inputs += other.inputs
        self.messages += other.messages
        self.passed += other.passed
        self.grown += other.grown
        self.findings += other.findings

    @property
    def share(self) -> float:
        """Share of the messages that passed the parser."""
        return self.passed / max(1, self.messages)


def short(harness: Harness) -> Counts:
    """Run the inputs of one CI run, which are always the same.

    Raises:
        Exception: An input has broken an invariant.
    """
    counts = Counts()
    for number in range(harness.ci_inputs):
        outcome = harness.outcome(harness.make(Random(number)))
        counts.add(Counts(1, outcome.messages, outcome.passed))
    return counts


@dataclass(slots=True)
class _Grower:
    """The grown corpus of one harness in one process."""

    harness: Harness
    seen: set[Hashable] = field(default_factory=set[Hashable])
    inputs: list[bytes] = field(default_factory=list[bytes])

    def run(self, rng: Random, counts: Counts) -> None:
        """Make one input, run it, and keep it if it did something new."""
        data = self.harness.make(rng, self.inputs)
        counts.inputs += 1
        try:
            outcome = self.harness.outcome(data)
        except Exception:
            counts.findings.append(_save(self.harness, data, traceback.format_exc()))
            return
        counts.messages += outcome.messages
        counts.passed += outcome.passed
        self._grow(data, outcome, rng, counts)

    def _grow(self, data: bytes, outcome: Outcome, rng: Random, counts: Counts) -> None:
        if outcome.signs <= self.seen or len(data) > 64 * 1024:
            return
        self.seen |= outcome.signs
        counts.grown += 1
        if len(self.inputs) < MAX_GROWN:
            self.inputs.append(data)
        else:
            self.inputs[rng.randrange(MAX_GROWN)] = data


def _save(harness: Harness, data: bytes, trace: str) -> str:
    FINDINGS.mkdir(exist_ok=True)
    path = FINDINGS / f"{harness.name}-{blake2b(data, digest_size=6).hexdigest()}"
    path.with_suffix(".bin").write_bytes(data)
    path.with_suffix(".txt").write_text(trace, encoding="utf-8")
    return f"{path.with_suffix('.bin').relative_to(FINDINGS.parent.parent)}: {trace.strip().splitlines()[-1][:200]}"


def work(harnesses: Sequence[Harness], seed: int, inputs: int, report: Queue[Counts] | None = None) -> Counts:
    """Run inputs in this process.

    Args:
        harnesses: The harnesses, which get inputs according to their `share`.
        seed: Seed of all choices.
        inputs: How many inputs to run.
        report: Gets the totals of each batch.
    """
    rng = Random(seed)
    growers = [_Grower(each) for each in harnesses]
    shares = [each.share for each in harnesses]
    total = Counts()
    faulthandler.register(signal.SIGVTALRM, chain=True)  # prints the stack, then the signal ends the process
    while total.inputs < inputs and len(total.findings) < MAX_FINDINGS:
        signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
        batch = Counts()
        for grower in rng.choices(growers, shares, k=min(BATCH, inputs - total.inputs)):
            grower.run(rng, batch)
        total.add(batch)
        if report is not None:
            report.put(batch)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return total


def _child(harnesses: Sequence[Harness], seed: int, inputs: int, report: Queue[Counts]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    work(harnesses, seed, inputs, report)


def long(harnesses: Sequence[Harness], *, seed: int, inputs: int, processes: int, pause_s: float = 30.0) -> Counts:
    """Run inputs in several processes, and print progress.

    Args:
        harnesses: The harnesses, which get inputs according to their `share`.
        seed: Seed of all choices; each process has its own one, derived from it.
        inputs: How many inputs to run in total.
        processes: Number of processes.
        pause_s: Seconds between two lines of progress.
    """
    context = multiprocessing.get_context("fork")  # the parent has no threads before it starts them
    report: Queue[Counts] = context.Queue()
    each = -(-inputs // processes)
    children = [
        context.Process(target=_child, args=(harnesses, seed * 1000 + number, each, report))
        for number in range(processes)
    ]
    for child in children:
        child.start()
    total = Counts()
    began = printed = time.monotonic()
    while any(child.is_alive() for child in children) or not report.empty():
        try:
            total.add(report.get(timeout=1.0))
        except Empty:
            continue
        if time.monotonic() - printed >= pause_s:
            printed = time.monotonic()
            print(line(total, printed - began), flush=True)
    for child in children:
        child.join()
        if child.exitcode:
            total.findings.append(f"process {child.pid} of the run ended with exit code {child.exitcode}")
    return total


def line(total: Counts, seconds: float) -> str:
    """Return one line about the totals so far."""
    rate = total.inputs / max(seconds, 0.001)
    return (
        f"{total.inputs:,} inputs, {total.messages:,} messages, {total.share:.0%} of them passed the parser; "
        f"{total.grown:,} inputs joined the corpus; {len(total.findings)} failures; "
        f"{seconds:,.0f} s, {rate:,.0f} inputs/s"
    )


def default_processes() -> int:
    """Return the number of processors."""
    return os.cpu_count() or 1
