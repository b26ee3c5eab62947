"""What a scenario reports: what was done, what was measured, and which of its promises were broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

SLOW_MACHINE = 10.0
"""How many times longer than promised something may take in the short form, on a machine that does other work too."""


@dataclass
class Report:
    """One row of the table.

    Args:
        short: The form for CI: promises on time alone are not broken by a busy machine.
    """

    short: bool
    done: str = ""
    figures: list[str] = field(default_factory=list[str])
    broken: list[str] = field(default_factory=list[str])

    def measured(self, figure: str) -> None:
        """A figure for the table."""
        self.figures.append(figure)

    def expect(self, true: bool, otherwise: str) -> None:
        """A promise that no machine excuses."""
        if not true:
            self.broken.append(otherwise)

    def within(self, what: str, seconds: Iterable[float], bound: float) -> None:
        """A promise on time: the longest of some durations."""
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
    """A fault and what is promised about it.

    Args:
        name: For `--only`.
        fault: The table's first column.
        promise: Its second.
        play: Puts the fault upon a daemon; fills in the report.
    """

    name: str
    fault: str
    promise: str
    play: Callable[[Report], None]
