"""Percentiles and medians of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The 50th and 99th percentile, each a measured value (nearest rank)."""
    ordered = sorted(values)
    return {f"p{rank}": ordered[max(0, -(-rank * len(ordered) // 100) - 1)] for rank in (50, 99)}


@dataclass(frozen=True)
class Figure:
    """Median, lowest and highest value over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Figure:
        """Create a figure from one value for each round."""
        return cls(median(rounds), min(rounds), max(rounds))

    def show(self, unit: str = "") -> str:
        """The median, and the range of the rounds."""
        return f"{_short(self.median)}{unit and ' '}{unit} ({_short(self.low)} to {_short(self.high)})"


def _short(value: float) -> str:
    """Format with about three significant digits."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}"
