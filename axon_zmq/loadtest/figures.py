"""What is counted and timed while load is on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from hdrh.histogram import HdrHistogram

HISTOGRAM_MAX_US: Final = 3_600_000_000
"""Upper end of each histogram, in microseconds: a longer time is recorded as one hour."""
HISTOGRAM_DIGITS: Final = 3
"""Significant digits that a histogram keeps of each time."""


class Times:
    """An HDR histogram of times, in microseconds.

    Args:
        encoded: A histogram from `encoded`; empty for a new one.
    """

    def __init__(self, encoded: str = "") -> None:
        self._histogram: Any = (
            HdrHistogram.decode(encoded) if encoded else HdrHistogram(1, HISTOGRAM_MAX_US, HISTOGRAM_DIGITS)
        )

    def __len__(self) -> int:
        return self._histogram.get_total_count()

    def record(self, seconds: float) -> None:
        """Take one more."""
        self._histogram.record_value(min(max(1, int(seconds * 1_000_000)), HISTOGRAM_MAX_US))

    def at(self, percentiles: list[float]) -> list[float]:
        """Milliseconds at each of the percentiles, which rise."""
        found = self._histogram.get_percentile_to_value_dict(percentiles)
        return [found.get(percentile, 0) / 1000 for percentile in percentiles]

    def encoded(self) -> str:
        """All of it, as text that HdrHistogram in any language reads."""
        return self._histogram.encode().decode("ascii")


@dataclass(slots=True, kw_only=True)
class Figures:
    """Of the requests of one kind."""

    requests: int = 0
    complete: int = 0
    failures: Counter[str] = field(default_factory=Counter[str])
    """By `error_type`, or by the promise that was not kept."""
    complete_within: int = 0
    messages_within: int = 0
    """While the load was on, whichever request they belong to."""
    latency: Times = field(default_factory=Times)
    first_chunk: Times = field(default_factory=Times)
    chunk_gap: Times = field(default_factory=Times)


@dataclass(slots=True, kw_only=True)
class Second:
    """What happened in one second."""

    requests: int = 0
    complete: int = 0
    failed: int = 0
    messages: int = 0


@dataclass(slots=True, kw_only=True)
class Tally:
    """All that a load test counts; the figures leave the warm-up out."""

    kinds: dict[str, Figures]
    broken: Counter[str] = field(default_factory=Counter[str])
    """Promises that were not kept, by name, those of the warm-up too."""
    seconds: list[Second] = field(default_factory=list[Second])
    """From the start of the warm-up."""
    lag: Times = field(default_factory=Times)
    """How late the driver was."""
    busy: float = 0.0
    """Seconds of those that were measured in which the driver worked and did not wait."""
    drops: int = 0
    resumes: int = 0
    """Runs that were open when their connection was dropped."""
    unfinished: int = 0
    """Requests that were cancelled because the test was ended."""

    def second(self, since_start: float) -> Second:
        """That in which something happens now."""
        while len(self.seconds) <= since_start:
            self.seconds.append(Second())
        return self.seconds[int(since_start)]
