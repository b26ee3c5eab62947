"""A load test at a terminal or in a pipe."""

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
    """Put the load on, show how it goes and what came of it, and write the files.

    Args:
        plan: What is sent.
        pong: Of the daemon.
        json_file: Where the report is written to.
        html_file: The same, with plots.

    Raises:
        ConfigurationError: A file could not be written; nothing has been sent.
    """
    _check_folders(json_file, html_file)
    with _progress(plan) as show, _ended_by_ctrl_c(driver := Driver(plan, show)):
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
    """Show two reports beside each other.

    Args:
        a_file: What B is divided by.
        b_file: Another one.
        json_file: Where the comparison is written to.
        html_file: The same, with plots.

    Raises:
        ConfigurationError: A file is no report, they have no kind in common, or a file could not be written.
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
            raise ConfigurationError(f"{file} cannot be written: {file.parent} is no folder that is yours to write to")


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
    """A progress line that is redrawn twice a second, at a terminal only."""
    if not out.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=out, auto_refresh=False, transient=True) as progress:
        task = progress.add_task(plan.scenario, total=plan.warmup + plan.duration, told="")

        def show(driver: Driver) -> None:
            progress.update(task, completed=driver.elapsed, told=_told(driver), refresh=True)

        yield show


def _told(driver: Driver) -> str:
    complete = sum(second.complete for second in driver.tally.seconds)
    failed = sum(second.failed for second in driver.tally.seconds)
    phase = "warming up" if driver.elapsed < driver.plan.warmup else f"{driver.window:.0f} s"
    return f"{phase}  {driver.sent:,} sent, {complete:,} complete, {failed:,} failed, {driver.open:,} open"


@contextmanager
def _ended_by_ctrl_c(driver: Driver) -> Generator[None, None, None]:
    """Ctrl-C ends the test, not the program."""

    def stop(_number: int, _frame: object) -> None:
        driver.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
