"""A line chart as SVG for the documentation, drawn without a library, a script or network access."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from bench.numbers import Figure

Curves = Mapping[str, Sequence[tuple[int, Figure]]]
"""Points of each curve by its name: count on the horizontal axis, and figure."""
WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 50, 30, 70, 45
COLOURS = ("#4c8bd6", "#e08a2e", "#3fa66b")
GREY = "#888888"
"""Colour of all text: readable on white and on black."""
MARKS = 5
"""Approximate number of labels on the vertical axis."""


def svg(horizontal: str, vertical: str, curves: Curves) -> str:
    """Draw the medians as lines over a logarithmic axis, with a vertical bar from the lowest to the highest round.

    Args:
        horizontal: Label of the horizontal axis.
        vertical: Label of the vertical axis.
        curves: The points to draw.
    """
    all_points = list(chain.from_iterable(curves.values()))
    counts = sorted({count for count, _ in all_points})
    most = max(figure.high for _, figure in all_points)
    step = _step(most)
    highest = step * math.ceil(most / step)

    def x(count: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(count) / math.log(counts[-1])

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / highest

    def body() -> Iterator[str]:
        for number in range(round(highest / step) + 1):
            at = y(number * step)
            yield _line(LEFT, at, WIDTH - RIGHT, at, GREY, 0.3)
            yield _text(LEFT - 8, at + 4, f"{number * step:g}", "end")
        for count in counts:
            yield _text(x(count), HEIGHT - BOTTOM + 20, f"{count:,}", "middle")
        yield _text(WIDTH / 2, HEIGHT - 8, horizontal, "middle")
        yield _text(LEFT - 35, 18, vertical, "start")
        for number, (name, points) in enumerate(curves.items()):
            colour = COLOURS[number]
            path = " ".join(f"{x(count):.1f},{y(figure.median):.1f}" for count, figure in points)
            yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            for count, figure in points:
                yield _line(x(count), y(figure.low), x(count), y(figure.high), colour, 0.6)
                yield f'<circle cx="{x(count):.1f}" cy="{y(figure.median):.1f}" r="3.5" fill="{colour}"/>'
            yield _text(LEFT + number * (WIDTH - LEFT) / len(curves), 45, f"● {name}", "start", colour)

    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
    return "\n".join([f'{head} font-size="13">', *body(), "</svg>", ""])


def _step(highest: float) -> float:
    """Distance of two labels on the vertical axis: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(highest / MARKS))
    return next(power * times for times in (1, 2, 5, 10) if power * times * MARKS >= highest)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, opacity: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-opacity="{opacity}" stroke-width="1.5"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = GREY) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'
