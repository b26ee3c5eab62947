"""Renders one report, or two side by side, into one HTML file that needs no network.

The module is not part of `axon_zmq.cli`, because it prints nothing to a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Final, cast

from plotly import graph_objects
from plotly.offline import get_plotlyjs

from axon_zmq.loadtest.figures import Times
from axon_zmq.loadtest.report import TIMED, Grid, Report, Timed

_NINES: Final = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>axon-zmq loadtest: $title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem }
table { border-collapse: collapse; margin: 1.5rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
.fault { color: #b00020; font-weight: 600 }
</style>
<script>$plotly</script>
</head>
<body>
<h1>axon-zmq loadtest</h1>
$body
</body>
</html>
""")


def write(
    path: Path, reports: Mapping[str, Report], grids: Sequence[Grid], faults: Sequence[str], notes: Sequence[str]
) -> None:
    """Write the page.

    Args:
        path: The file to write.
        reports: The reports by their names in the plots; the name of a single report is empty.
        grids: The tables.
        faults: Lines about failures.
        notes: Other lines.
    """
    titles = [f"{name}{name and ': '}{report.title}" for name, report in reports.items()]
    lines = [*(("title", line) for line in titles), *(("fault", line) for line in faults)]
    parts = [f'<p class="{kind}">{escape(line)}</p>' for kind, line in lines]
    parts += map(_table, grids)
    parts += [f"<p>{escape(line)}</p>" for line in notes]
    parts += [
        figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
        for figure in _figures(reports)
    ]
    page = _PAGE.substitute(title=escape("; ".join(titles)), plotly=get_plotlyjs(), body="\n".join(parts))
    path.write_text(page, encoding="utf-8")


def _table(grid: Grid) -> str:
    head = "".join(f"<th>{escape(header)}</th>" for header in grid.headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in grid.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figures(reports: Mapping[str, Report]) -> Iterator[Any]:
    for timed, label in TIMED.items():
        figure = _percentiles(reports, timed)
        if figure.data:
            yield figure.update_layout(title=f"{label[0].upper()}{label[1:]} by percentile")
    yield _over_time(reports, ("requests", "complete", "failed")).update_layout(title="Requests each second")
    yield _over_time(reports, ("messages",)).update_layout(title="Messages each second")


def _percentiles(reports: Mapping[str, Report], timed: str) -> Any:
    """Plot a line for each kind and report over the percentiles, on a scale that spreads the highest percentiles."""
    figure: Any = graph_objects.Figure()
    for name, report in reports.items():
        for kind, part in report.kinds.items():
            seen = cast("Timed", getattr(part, timed))
            if seen.count:
                at = list(_percentiles_of(seen.count))
                places = [1 / (1 - percentile / 100) for percentile in at]
                figure.add_scatter(
                    x=places,
                    y=Times(seen.hdr).at(at),
                    text=[f"{percentile:.5g} %" for percentile in at],
                    name=f"{kind} {name}".strip(),
                    mode="lines",
                    hovertemplate="%{text}: %{y:.2f} ms",
                )
    ticks = {"tickvals": [1 / (1 - nine / 100) for nine in _NINES], "ticktext": [f"{nine:g} %" for nine in _NINES]}
    figure.update_xaxes(type="log", **ticks)
    return figure.update_yaxes(title="ms", rangemode="tozero").update_layout(showlegend=True)


def _percentiles_of(count: int) -> Iterator[float]:
    """Yield 12 percentiles per factor of ten, up to the highest one that `count` values can show."""
    step = 0
    while (left := 10 ** (-step / 12)) * count >= 1:
        yield 100 * (1 - left)
        step += 1


def _over_time(reports: Mapping[str, Report], counted: Sequence[str]) -> Any:
    figure: Any = graph_objects.Figure()
    for name, report in reports.items():
        at = [moment.at for moment in report.each_second]
        for count in counted:
            counts = [getattr(moment, count) for moment in report.each_second]
            figure.add_scatter(x=at, y=counts, name=f"{count} {name}".strip())
    figure.update_xaxes(title="seconds (before 0: warm-up; at the end: no more requests are sent)")
    return figure.update_yaxes(rangemode="tozero").update_layout(showlegend=True)
