"""The few sums that turn measurements into figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The 50th and the 99th, each a value that was measured (nearest rank)."""
    ordered = sorted(values)
    return {f"p{rank}": ordered[max(0, -(-rank * len(ordered) // 100) - 1)] for rank in (50, 99)}


@dataclass(frozen=True)
class Figure:
    """One figure over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Figure:
        """From one value for each round."""
        return cls(median(rounds), min(rounds), max(rounds))

    def show(self, unit: str = "") -> str:
        """The median, and what lay between the rounds."""
        return f"{_short(self.median)}{unit and ' '}{unit} ({_short(self.low)} to {_short(self.high)})"


def _short(value: float) -> str:
    """Three digits that matter, and no more."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}"
