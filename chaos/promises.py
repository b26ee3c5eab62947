"""The report of a scenario: the faults caused, the measurements, and the broken promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

SLOW_MACHINE = 10.0
"""Factor by which promised times are relaxed in the short form, which CI runs on a shared machine."""


@dataclass
class Report:
    """One row of the table.

    Args:
        short: Whether this is the short form for CI, in which promised times are relaxed by `SLOW_MACHINE`.
        done: The faults that were caused, in words.
        figures: The measurements.
        broken: The broken promises.
    """

    short: bool
    done: str = ""
    figures: list[str] = field(default_factory=list[str])
    broken: list[str] = field(default_factory=list[str])

    def measured(self, figure: str) -> None:
        """Add a measurement to the table."""
        self.figures.append(figure)

    def expect(self, true: bool, otherwise: str) -> None:
        """Check a promise that must hold on every machine."""
        if not true:
            self.broken.append(otherwise)

    def within(self, what: str, seconds: Iterable[float], bound: float) -> None:
        """Check that the longest of some durations is within a promised bound."""
        taken = sorted(seconds)
        if not taken:
            return
        self.measured(f"{what}: p50 {median(taken) * 1000:.0f} ms, longest {taken[-1] * 1000:.0f} ms")
        if taken[-1] > bound * (SLOW_MACHINE if self.short else 1.0):
            late = sum(each > bound for each in taken)
            self.broken.append(f"{what}: {late} of {len(taken)} took longer than {bound * 1000:.0f} ms")
        elif taken[-1] > bound:
            self.measured(f"over {bound * 1000:.0f} ms: slow machine")


@dataclass(frozen=True)
class Scenario:
    """A fault and the promise about it.

    Args:
        name: Name for `--only`.
        fault: First column of the table.
        promise: Second column of the table.
        play: Function that causes the fault and fills in the report.
    """

    name: str
    fault: str
    promise: str
    play: Callable[[Report], None]
