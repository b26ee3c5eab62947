"""Output of `axon-zmq loadtest`: tables and progress on a terminal, a JSON line in a pipe."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from axon_zmq.cli.output import as_json, out, print_line
from axon_zmq.errors import ConfigurationError
from axon_zmq.loadtest import report
from axon_zmq.loadtest.driver import Driver
from axon_zmq.loadtest.plan import Plan
from axon_zmq.loadtest.report import Grid, Report


def drive(plan: Plan, pong: Mapping[str, object], json_file: Path | None, html_file: Path | None) -> Report:
    """Run a load test, show its progress and results, and write the reports.

    Args:
        plan: The requests to send, and how fast.
        pong: Answer of the daemon to `ping`.
        json_file: File for the report as JSON.
        html_file: File for the report as HTML, with plots.

    Raises:
        ConfigurationError: A report could not be written. This is checked before a request is sent.
    """
    _check_folders(json_file, html_file)
    with _progress(plan) as show, _stopped_by_ctrl_c(driver := Driver(plan, show)):
        driver.run()
    seen = report.report_of(driver, pong)
    grids, faults, notes = report.tables(seen), report.faults(seen), report.notes(seen)
    _show(seen.model_dump(mode="json"), seen.title, grids, faults, notes)
    if json_file is not None:
        json_file.write_text(seen.model_dump_json(), encoding="utf-8")
    if html_file is not None:
        from axon_zmq.loadtest import html

        html.write(html_file, {"": seen}, grids, faults, notes)
    return seen


def compare(a_file: Path, b_file: Path, json_file: Path | None, html_file: Path | None) -> None:
    """Show two reports side by side.

    Args:
        a_file: Report A, to which B is compared: ratios are B divided by A.
        b_file: Report B.
        json_file: File for the comparison as JSON.
        html_file: File for the comparison as HTML, with plots.

    Raises:
        ConfigurationError: A file is not a report, the reports have no kind of request in common, or a file cannot be
            written.
    """
    _check_folders(json_file, html_file)
    a, b = report.read(a_file), report.read(b_file)
    grids = report.comparison(a, b)
    faults = [f"{name} {line}" for name, each in (("A", a), ("B", b)) for line in report.faults(each)]
    notes = report.differences(a, b)
    rows = [dict(zip(grid.headers, row, strict=True)) for grid in grids for row in grid.rows]
    line = {"compared": rows, "faults": faults, "notes": notes}
    _show(line, f"A: {a.title}\nB: {b.title}", grids, faults, notes)
    if json_file is not None:
        json_file.write_text(as_json(line), encoding="utf-8")
    if html_file is not None:
        from axon_zmq.loadtest import html

        html.write(html_file, {"A": a, "B": b}, grids, faults, notes)


def _check_folders(*files: Path | None) -> None:
    for file in files:
        if file is not None and not (file.parent.is_dir() and os.access(file.parent, os.W_OK)):
            raise ConfigurationError(f"cannot write {file}: {file.parent} is not a writable directory")


def _show(
    line: Mapping[str, object], title: str, grids: Sequence[Grid], faults: Sequence[str], notes: Sequence[str]
) -> None:
    if not out.is_terminal:
        print_line(line)
        return
    out.print(title, style="bold", markup=False)
    for grid in grids:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, header in enumerate(grid.headers):
            table.add_column(header, justify="right" if index else "left", no_wrap=True)
        for row in grid.rows:
            table.add_row(*row)
        out.print(table)
    for fault in faults:
        out.print(fault, style="red", markup=False)
    for note in notes:
        out.print(note, style="dim", markup=False)


@contextmanager
def _progress(plan: Plan) -> Generator[Callable[[Driver], None], None, None]:
    """Show a progress line, which the driver redraws twice per second; nothing if output is not a terminal."""
    if not out.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[counts]}"))
    with Progress(*columns, console=out, auto_refresh=False, transient=True) as progress:
        task = progress.add_task(plan.scenario, total=plan.warmup + plan.duration, counts="")

        def show(driver: Driver) -> None:
            progress.update(task, completed=driver.elapsed, counts=_counts(driver), refresh=True)

        yield show


def _counts(driver: Driver) -> str:
    complete = sum(second.complete for second in driver.tally.seconds)
    failed = sum(second.failed for second in driver.tally.seconds)
    phase = "warming up" if driver.elapsed < driver.plan.warmup else f"{driver.window:.0f} s"
    return f"{phase}  {driver.sent:,} sent, {complete:,} complete, {failed:,} failed, {driver.open:,} open"


@contextmanager
def _stopped_by_ctrl_c(driver: Driver) -> Generator[None, None, None]:
    """Let Ctrl-C stop the load, so that the results so far are still reported."""

    def stop(_number: int, _frame: object) -> None:
        driver.stop()

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
