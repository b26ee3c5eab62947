"""Draws the diagrams of the documentation: `python docs/diagrams/draw.py` writes the SVG files beside this one.

The files are committed, so that GitHub and the site show them without any tool. A test checks that they are up to date.
They need no fonts, scripts or other hosts, and have a light background, so that they are legible on dark pages too.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
INK, GREY, LINE = "#1e1b4b", "#5b6472", "#94a3b8"
FILLS = {"client": "#fef3c7", "broker": "#e0e7ff", "worker": "#dcfce7", "frame": "#f8fafc", "model": "#f1f5f9"}
STROKES = {"client": "#d97706", "broker": "#4338ca", "worker": "#15803d", "frame": "#94a3b8", "model": "#64748b"}


class Drawing:
    """Collects SVG elements; coordinates are pixels from the top left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.on_white = False
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(title)}" font-family="{FONT}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" fill="{GREY}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def box(self, x: int, y: int, width: int, height: int, kind: str, *lines: str, dashed: bool = False) -> None:
        """A rounded box; the first line is its name, the others explain it."""
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{FILLS[kind]}" '
            f'stroke="{STROKES[kind]}" stroke-width="1.5"{dash}/>'
        )
        top = y + height / 2 - 9 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + 18 * number + 5, line, bold=number == 0, grey=number > 0)

    def text(
        self, x: float, y: float, text: str, *, bold: bool = False, grey: bool = False, anchor: str = "middle"
    ) -> None:
        """One line of text; `y` is its baseline."""
        weight, size = ("600", 14) if bold else ("400", 12)
        # A white outline keeps text legible where it crosses a line.
        halo = "" if bold or not self.on_white else ' paint-order="stroke" stroke="#ffffff" stroke-width="4"'
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
            f'fill="{GREY if grey else INK}"{halo}>{escape(text)}</text>'
        )

    def arrow(self, x1: int, y1: int, x2: int, y2: int, *, both: bool = False, dashed: bool = False) -> None:
        """A line with an arrowhead at its end, or at both ends."""
        start = ' marker-start="url(#arrow)"' if both else ""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{GREY}" stroke-width="1.5"{start}{dash} '
            'marker-end="url(#arrow)"/>'
        )

    def line(self, x1: int, y1: int, x2: int, y2: int) -> None:
        """A thin dashed line without arrowheads."""
        self.parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{LINE}" stroke-width="1" stroke-dasharray="3 4"/>'
        )

    def svg(self) -> str:
        """The whole file."""
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def processes() -> str:
    """The processes of a daemon, and who talks to whom."""
    drawing = Drawing(860, 430, "The processes of axon_zmq: clients, broker, workers and supervisord")
    drawing.box(220, 20, 420, 390, "frame", dashed=True)
    drawing.text(430, 44, "supervisord", bold=True)
    drawing.text(430, 62, "starts, restarts and stops every process in this frame", grey=True)
    drawing.box(20, 110, 140, 70, "client", "Elixir client", "DEALER")
    drawing.box(20, 200, 140, 70, "client", "Python client", "DEALER")
    drawing.box(20, 290, 140, 70, "client", "any language", "DEALER, msgpack")
    drawing.box(260, 170, 130, 130, "broker", "broker", "ROUTER frontend", "queues", "ROUTER backend")
    drawing.box(250, 340, 150, 50, "frame", "event listener", "process states")
    for y, mode, detail in (
        (90, "run_sync workers", "one thread for each run"),
        (190, "run workers", "one event loop each"),
        (290, "run_stream workers", "one event loop each"),
    ):
        drawing.box(440, y, 180, 80, "worker", mode, "pydantic-ai", detail)
        drawing.arrow(622, y + 40, 688, y // 4 + 172, both=True)
    drawing.box(690, 170, 150, 120, "model", "model provider", "OpenAI or another,", "over HTTP")
    for y, end in ((145, 205), (235, 235), (325, 265)):
        drawing.arrow(162, y, 258, end, both=True)
    for start, y in ((205, 130), (235, 230), (265, 330)):
        drawing.arrow(392, start, 438, y, both=True)
    drawing.arrow(325, 338, 325, 302)
    return drawing.svg()


MESSAGES = (
    ("client", "broker", "[run_stream, id, header, body]", "header is read, body is not"),
    ("broker", "broker", "admission, then the queue", ""),
    ("broker", "worker", "run, with a lease", "deadline, attempt"),
    ("worker", "model", "model request", ""),
    ("model", "worker", "text", ""),
    ("worker", "broker", "chunk, seq 1", "kept for replay"),
    ("broker", "client", "chunk, seq 1", "relayed unopened"),
    ("model", "worker", "call of a client tool", ""),
    ("worker", "client", "tool_call, seq 2", "through the broker"),
    ("client", "worker", "tool_result", "the run continues"),
    ("model", "worker", "text", ""),
    ("worker", "client", "chunk, seq 3", ""),
    ("worker", "broker", "complete, seq 4", "the worker is free"),
    ("broker", "client", "complete, seq 4", "exactly one end"),
)
"""Sender, receiver, message and remark, from top to bottom."""


def request() -> str:
    """The life of one streamed request as a sequence of messages."""
    top, step = 100, 44
    height = top + step * len(MESSAGES) + 20
    drawing = Drawing(860, height, "The life of a request: from the client through broker and worker to the model")
    columns = {"client": 110, "broker": 330, "worker": 550, "model": 760}
    for name, x in columns.items():
        drawing.box(x - 70, 20, 140, 44, name, name)
        drawing.line(x, 64, x, height - 12)
    drawing.on_white = True
    for number, (sender, receiver, message, remark) in enumerate(MESSAGES):
        y = top + step * number + 10
        start, end = columns[sender], columns[receiver]
        if start == end:
            drawing.box(start - 120, y - 16, 240, 32, "frame", message)
            continue
        side = 1 if end > start else -1
        drawing.arrow(start + 3 * side, y, end - 3 * side, y)
        middle = (start + end) / 2
        drawing.text(middle, y - 6, message)
        if remark:
            drawing.text(middle, y + 14, remark, grey=True)
    return drawing.svg()


DIAGRAMS = {"processes.svg": processes, "request.svg": request}


if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        (HERE / name).write_text(draw(), encoding="utf-8")
