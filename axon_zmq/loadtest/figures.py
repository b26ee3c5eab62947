"""Counters and histograms of a load test."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from hdrh.histogram import HdrHistogram

HISTOGRAM_MAX_US: Final = 3_600_000_000
"""Upper bound of each histogram, in microseconds: longer times are recorded as one hour."""
HISTOGRAM_DIGITS: Final = 3
"""Significant decimal digits that a histogram keeps of each time."""


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
        """Record one time."""
        self._histogram.record_value(min(max(1, int(seconds * 1_000_000)), HISTOGRAM_MAX_US))

    def at(self, percentiles: list[float]) -> list[float]:
        """Return the milliseconds at each percentile; the percentiles must be in ascending order."""
        values = self._histogram.get_percentile_to_value_dict(percentiles)
        return [values.get(percentile, 0) / 1000 for percentile in percentiles]

    def encoded(self) -> str:
        """Return the histogram as text, in the format of HdrHistogram for any language."""
        return self._histogram.encode().decode("ascii")


@dataclass(slots=True, kw_only=True)
class Figures:
    """Figures about the requests of one kind."""

    requests: int = 0
    complete: int = 0
    failures: Counter[str] = field(default_factory=Counter[str])
    """Number of failures by `error_type` or broken promise."""
    complete_within: int = 0
    messages_within: int = 0
    """Number of messages received while requests were being sent, including messages for requests of the warm-up."""
    latency: Times = field(default_factory=Times)
    first_chunk: Times = field(default_factory=Times)
    chunk_gap: Times = field(default_factory=Times)


@dataclass(slots=True, kw_only=True)
class Second:
    """Counters of one second."""

    requests: int = 0
    complete: int = 0
    failed: int = 0
    messages: int = 0


@dataclass(slots=True, kw_only=True)
class Tally:
    """All counters of a load test. `kinds` excludes requests of the warm-up."""

    kinds: dict[str, Figures]
    broken: Counter[str] = field(default_factory=Counter[str])
    """Number of broken promises by name, including the warm-up."""
    seconds: list[Second] = field(default_factory=list[Second])
    """Counters of each second from the start of the warm-up."""
    lag: Times = field(default_factory=Times)
    """How late the driver sent its requests."""
    busy: float = 0.0
    """Measured seconds in which the driver worked and did not wait."""
    drops: int = 0
    resumes: int = 0
    """Number of runs that were open when their connection was dropped."""
    unfinished: int = 0
    """Number of requests that were cancelled because the test was interrupted."""

    def second(self, since_start: float) -> Second:
        """Return the counters of the second that contains a time, in seconds since the start of the warm-up."""
        while len(self.seconds) <= since_start:
            self.seconds.append(Second())
        return self.seconds[int(since_start)]
