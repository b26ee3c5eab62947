"""Records a terminal session as an animated SVG.

`python docs/recording/record.py` writes `terminal.svg` beside this file. It executes `./scripts/run` on a free port and
in a temporary run directory, and clients of that daemon, each in a pseudo terminal. The SVG replays their output
with its own timing; pauses are shortened to `LONGEST_PAUSE_S`. It needs no script, font or other host, so GitHub shows
it. Without animation, for example in a printout, the last state is visible.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TARGET = Path(__file__).parent / "terminal.svg"
COLUMNS = 92
LONGEST_PAUSE_S = 0.8
"""Longer pauses of a command, such as the start of the workers, are shortened to this."""
TYPING_S = 0.03
"""Seconds for each character of a command."""
CHARACTER, LINE = 8.4, 19
"""Width of a character and height of a line, in pixels."""
COMMANDS = (
    """.venv/bin/axon-zmq stream '{"model": "synthetic:tokens=17,delay_ms=100"}' 'Count'""",
    """.venv/bin/axon-zmq run weather 'Oslo and Rome?'""",
    """.venv/bin/axon-zmq status""",
)
COLOURS = {
    "": "#e6edf3",
    "prompt": "#7ee787",
    "1": "#ffffff",
    "2": "#8b949e",
    "31": "#ff7b72",
    "32": "#7ee787",
    "33": "#e3b341",
    "34": "#79c0ff",
    "35": "#d2a8ff",
    "36": "#76e3ea",
    "90": "#8b949e",
}
_ANSI = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07")

Event = tuple[float, str]
"""Seconds since the command's start, and text that it wrote."""


def run(command: str, env: dict[str, str]) -> Iterator[Event]:
    """Execute a command in a pseudo terminal; it is interrupted when the iterator is closed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execvpe("bash", ["bash", "-c", f"exec {command}"], env)  # noqa: S606, S607
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    started = time.monotonic()
    try:
        while True:
            try:
                text = os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # EIO: Linux reports the end of a pseudo terminal in this way
                return
            if not text:
                return
            yield time.monotonic() - started, text
    finally:
        os.kill(pid, signal.SIGINT)
        # Drain the terminal meanwhile, or the command blocks while it writes its last lines.
        while True:
            try:
                if not os.read(terminal, 4096):
                    break
            except OSError:
                break
        os.waitpid(pid, 0)
        os.close(terminal)


class Screen:
    """Lines of text with colours, and the time at which each part of them appeared."""

    def __init__(self) -> None:
        self.parts: list[tuple[float, int, int, str, str]] = []
        """Second, line, column, colour, text."""
        self.line = self.column = 0
        self.colour = ""
        self.now = 0.0

    def prompt(self, command: str) -> None:
        """Type a command."""
        self.parts.append((self.now, self.line, 0, "prompt", "$"))
        self.column = 2
        self.now += 0.4
        for character in command:
            self.write(character)
            self.now += TYPING_S
        self.write("\n")
        self.now += 0.3

    def play(self, events: Iterator[Event]) -> None:
        """Write what a command printed, with its own timing."""
        last = 0.0
        for moment, text in events:
            self.now += min(moment - last, LONGEST_PAUSE_S)
            last = moment
            self.write(text)
        self.colour = ""
        if self.column:
            self.write("\n")
        self.now += 0.8

    def write(self, text: str) -> None:
        """Add text at the cursor."""
        position = 0
        for found in _ANSI.finditer(text):
            self._plain(text[position : found.start()])
            position = found.end()
            if found[2] == "m":
                self.colour = next((code for code in reversed((found[1] or "").split(";")) if code in COLOURS), "")
        self._plain(text[position:])

    def _plain(self, text: str) -> None:
        for part in re.findall(r"\n|\r|[^\r\n]+", text):
            if part == "\n":
                self.line, self.column = self.line + 1, 0
            elif part == "\r":
                self.column = 0
            else:
                if part.strip():
                    self.parts.append((self.now, self.line, self.column, self.colour, part))
                self.column += len(part)


def window(screen: Screen, top: int, title: str) -> tuple[str, int]:
    """One terminal window as SVG, and its height."""
    height = 44 + LINE * screen.line + 14
    width = round(COLUMNS * CHARACTER) + 32
    parts = [
        f'<g transform="translate(0 {top})">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117" stroke="#30363d"/>',
        *(
            f'<circle cx="{20 + 18 * n}" cy="18" r="5.5" fill="{c}"/>'
            for n, c in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        ),
        f'<text x="{width / 2:g}" y="22" text-anchor="middle" fill="#8b949e">{escape(title)}</text>',
    ]
    for moment, line, column, colour, text in screen.parts:
        lead = len(text) - len(text.lstrip())
        shown = text.strip()
        x, y = 16 + (column + lead) * CHARACTER, 56 + LINE * line
        # textLength keeps columns aligned whichever monospaced font the reader has.
        parts.append(
            f'<text class="t" style="animation-delay:{moment:.2f}s" x="{x:.1f}" y="{y}" fill="{COLOURS[colour]}" '
            f'textLength="{len(shown) * CHARACTER:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve">'
            f"{escape(shown)}</text>"
        )
    return "\n".join([*parts, "</g>"]), height


def draw(first: Screen, second: Screen) -> str:
    """Both windows, one below the other."""
    upper, height = window(first, 0, "./scripts/run")
    lower, more = window(second, height + 12, "a second terminal")
    width, total = round(COLUMNS * CHARACTER) + 32, height + 12 + more
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" role="img"
  aria-label="Terminal recording: the daemon starts; a client streams an answer, asks an agent and shows the status"
  font-family="ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="14">
<style>
@keyframes show {{ from {{ visibility: hidden }} to {{ visibility: visible }} }}
.t {{ animation: show 1ms backwards }}
@media (prefers-reduced-motion: reduce) {{ .t {{ animation: none }} }}
</style>
{upper}
{lower}
</svg>
"""


def free_port() -> int:
    """A port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Record and write the file."""
    subprocess.run([ROOT / "scripts/setup"], check=True)  # noqa: S603 -- not part of the recording
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="axon-") as folder:
        env = {**os.environ, "AXON_FRONTEND": endpoint, "AXON_RUN_DIR": f"{folder}/run", "TERM": "xterm-256color"}
        first, second = Screen(), Screen()
        first.prompt("./scripts/run")

        def shown(events: Iterator[Event]) -> Iterator[Event]:
            """With the default's endpoint and folder, as a reader sees them."""
            for moment, text in events:
                text = text.replace(f" --endpoint {endpoint}", "").replace(endpoint, "tcp://127.0.0.1:5570")
                yield moment, text.replace(f"{folder}/run", "run").replace(f"{ROOT}/", "")

        serving = run("./scripts/run", env)
        first.play(shown(serving_until_ready(serving)))
        second.now = first.now
        for command in COMMANDS:
            second.prompt(command.replace(".venv/bin/", ""))
            second.play(shown(run(command, env)))
        serving.close()
    TARGET.write_text(draw(first, second), encoding="utf-8")


def serving_until_ready(serving: Iterator[Event]) -> Iterator[Event]:
    """The daemon's output until it serves; the daemon itself keeps running."""
    seen = ""
    for moment, text in serving:
        yield moment, text
        seen += text
        if re.search(r"supervisorctl .*\n", seen):
            return


if __name__ == "__main__":
    main()
