"""Report of a load test, as JSON and as tables for a terminal or an HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ValidationError

from axon_zmq import __version__
from axon_zmq.errors import ConfigurationError
from axon_zmq.loadtest.driver import Driver
from axon_zmq.loadtest.figures import Figures, Times

PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
LATE_MS: Final = 10.0
BUSY_SHARE: Final = 0.9
"""The driver distorts the figures if its p99 lag exceeds `LATE_MS`, or if it is busy for more than this share of the
time."""
TIMED: Final = {"latency": "latency", "first_chunk": "first chunk", "chunk_gap": "chunk gap"}
"""Times that are measured for each kind of request, and their labels."""


class Timed(BaseModel):
    """Percentiles of a measured time in milliseconds; `hdr` is the whole histogram, in microseconds."""

    count: int
    ms: dict[str, float]
    hdr: str

    @staticmethod
    def of(times: Times) -> Timed:
        """Return the percentiles of a histogram."""
        at = dict(zip(PERCENTILES, times.at(list(PERCENTILES.values())), strict=True))
        return Timed(count=len(times), ms=at, hdr=times.encoded())


class Part(BaseModel):
    """Results of the measured requests of one kind."""

    requests: int
    complete: int
    failures: dict[str, int]
    complete_per_second: float
    """Rate of completed requests while requests were being sent."""
    messages_per_second: float
    latency: Timed
    first_chunk: Timed
    chunk_gap: Timed

    @property
    def failed(self) -> int:
        """Number of failed requests."""
        return sum(self.failures.values())


class Moment(BaseModel):
    """Counters of one second; `at` is 0 for the first measured second."""

    at: float
    requests: int
    complete: int
    failed: int
    messages: int


class Lateness(BaseModel):
    """How late and how busy the driver was."""

    lag: Timed
    busy: float
    """Share of the measured time in which the driver worked and did not wait."""

    @property
    def is_late(self) -> bool:
        """Whether the driver was so late or busy that it distorts the figures."""
        return self.lag.ms["p99"] > LATE_MS or self.busy > BUSY_SHARE


class Report(BaseModel):
    """Report of a finished load test."""

    report: Literal["axon-zmq loadtest 1"] = "axon-zmq loadtest 1"
    version: str
    daemon: dict[str, Any]
    """Version, boot and modes, from the daemon's `pong`."""
    ended: datetime
    scenario: str
    pace: str
    plan: dict[str, Any]
    seconds: float
    """Measured seconds."""
    interrupted: bool
    kinds: dict[str, Part]
    broken: dict[str, int]
    """Number of broken promises by name, including the warm-up."""
    drops: int
    resumes: int
    unfinished: int
    each_second: list[Moment]
    driver: Lateness

    @property
    def is_good(self) -> bool:
        """Whether at least one request was measured, none failed and no promise was broken."""
        return self.measured > 0 and not self.broken and not any(part.failed for part in self.kinds.values())

    @property
    def measured(self) -> int:
        """Number of measured requests."""
        return sum(part.requests for part in self.kinds.values())

    @property
    def title(self) -> str:
        """Title of the report, on one line."""
        return f"{self.scenario}, {self.pace}, {self.seconds:.1f} s on axon-zmq {self.daemon.get('version', '?')}"


def report_of(driver: Driver, pong: Mapping[str, object]) -> Report:
    """Return the report of a driver that has ended."""
    tally, plan = driver.tally, driver.plan
    moments = [
        Moment(at=second - plan.warmup, **{name: getattr(seen, name) for name in seen.__slots__})
        for second, seen in enumerate(tally.seconds)
    ]
    return Report(
        version=__version__,
        daemon={key: pong.get(key) for key in ("version", "boot", "modes")},
        ended=datetime.now(UTC).replace(microsecond=0),
        scenario=plan.scenario,
        pace=plan.pace,
        plan={name: getattr(plan, name) for name in plan.__slots__},
        seconds=driver.window,
        interrupted=driver.stopped,
        kinds={name: _part(figures, driver.window) for name, figures in tally.kinds.items()},
        broken=dict(tally.broken),
        drops=tally.drops,
        resumes=tally.resumes,
        unfinished=tally.unfinished,
        each_second=moments,
        driver=Lateness(lag=Timed.of(tally.lag), busy=tally.busy / max(driver.window, 0.001)),
    )


def _part(figures: Figures, window: float) -> Part:
    return Part(
        requests=figures.requests,
        complete=figures.complete,
        failures=dict(figures.failures),
        complete_per_second=figures.complete_within / max(window, 0.001),
        messages_per_second=figures.messages_within / max(window, 0.001),
        **{name: Timed.of(getattr(figures, name)) for name in TIMED},
    )


def read(path: Path) -> Report:
    """Read a report from a JSON file.

    Raises:
        ConfigurationError: The file cannot be read, or is not a report.
    """
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read report {path}: {error.strerror}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = "/".join(map(str, fault["loc"]))
        raise ConfigurationError(
            f"{path} is not a report of axon-zmq loadtest --json: {place} {fault['msg']}"
        ) from None


# --- tables ----------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """A table; the first cell of each row is its label."""

    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]


class _Numbers(NamedTuple):
    headers: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]


def tables(report: Report) -> list[Grid]:
    """Return the tables of a report: requests, and times in milliseconds."""
    return [Grid(each.headers, [(name, *map(_shown, row)) for name, row in each.rows.items()]) for each in _all(report)]


def comparison(a: Report, b: Report) -> list[Grid]:
    """Return the tables of two reports: A, B, and B divided by A. Rows that only one report has are left out.

    Raises:
        ConfigurationError: The reports have no kind of request in common.
    """
    if not a.kinds.keys() & b.kinds.keys():
        raise ConfigurationError(f"nothing to compare: A has {', '.join(a.kinds)}, B has {', '.join(b.kinds)}")
    return [_side_by_side(*both) for both in zip(_all(a), _all(b), strict=True)]


def differences(a: Report, b: Report) -> list[str]:
    """Return lines about differences that make two reports hard to compare."""
    return [] if a.pace == b.pace else [f"load differs: A had {a.pace}, B had {b.pace}"]


def _side_by_side(a: _Numbers, b: _Numbers) -> Grid:
    rows: list[tuple[str, ...]] = []
    for name in (name for name in a.rows if name in b.rows):
        rows += [
            (name, "A", *map(_shown, a.rows[name])),
            ("", "B", *map(_shown, b.rows[name])),
            ("", "B/A", *(f"{y / x:.2f}" if x else "-" for x, y in zip(a.rows[name], b.rows[name], strict=True))),
        ]
    return Grid((a.headers[0], "", *a.headers[1:]), rows)


def _all(report: Report) -> list[_Numbers]:
    return [_requests(report), _times(report)]


def _requests(report: Report) -> _Numbers:
    rows = {name: _cells(part) for name, part in report.kinds.items()}
    if len(rows) > 1:
        rows["all"] = tuple(map(sum, zip(*rows.values(), strict=True)))
    return _Numbers(("", "requests", "complete", "failed", "complete/s", "messages/s"), rows)


def _cells(part: Part) -> tuple[float, ...]:
    return part.requests, part.complete, part.failed, part.complete_per_second, part.messages_per_second


def _times(report: Report) -> _Numbers:
    rows: dict[str, tuple[float, ...]] = {}
    for kind, part in report.kinds.items():
        for name, label in TIMED.items():
            timed: Timed = getattr(part, name)
            if timed.count:
                rows[f"{kind}: {label}"] = tuple(timed.ms[percentile] for percentile in PERCENTILES)
    return _Numbers(("ms", *PERCENTILES), rows)


def _shown(number: float) -> str:
    """Format a number with three significant digits, or with all digits before the decimal point."""
    if isinstance(number, int) or number >= 99.95:
        return f"{number:,.0f}"
    return f"{number:.2f}" if number < 9.995 else f"{number:.1f}"


def faults(report: Report) -> list[str]:
    """Return lines about failures; empty if the report is good."""
    lines = [
        f"FAILED {kind}: {fault}, {number:,} of {part.requests:,}"
        for kind, part in report.kinds.items()
        for fault, number in part.failures.items()
        if fault not in report.broken
    ]
    lines += [f"BROKEN: {promise}, {number:,} times" for promise, number in report.broken.items()]
    if not report.measured:
        lines.append("EMPTY: no request was measured: use a shorter --warmup or a larger --most")
    if report.driver.is_late:
        lines.append(
            "DRIVER: the load tester itself was late, which distorts the figures: use a faster machine or less load"
        )
    return lines


def notes(report: Report) -> list[str]:
    """Return other lines about the course of the test."""
    driver = report.driver
    lines = [f"driver: late by {driver.lag.ms['p99']:.2f} ms (p99), busy for {driver.busy:.0%} of the time"]
    if report.drops:
        lines.append(f"connections dropped: {report.drops:,}; open requests resumed: {report.resumes:,}")
    if report.interrupted:
        lines.append(f"interrupted: {report.unfinished:,} open requests were cancelled")
    return lines
