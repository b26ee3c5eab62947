"""The code blocks of the documentation, run as a reader would run them.

In a page, `<!-- runnable: name -->` stands right before a fenced block that is to be run. All such blocks of one
name and language are one script, in order. `<!-- prints: name -->` stands before a `text` block: what the blocks of
that name, since the last such block, print. There a `…` stands for anything within a line.

`python -m tests.snippets` writes the table of `docs/errors.md` anew from `errors.ERROR_TYPES`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from threading import Timer

from axon_zmq.errors import ERROR_TYPES, FAMILIES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
DEFAULT_PORT = "5570"
"""The port in the pages; a script gets the test daemon's."""
ELIXIR_DEPS = "AXON_ELIXIR_DEPS"
"""Environment variable: a folder with `chumak/ebin` and `msgpax/ebin`."""
WAIT_TIMEOUT_S = 60.0
"""Seconds that a script may take."""

_BLOCK = re.compile(
    r"(?:^[ \t]*<!-- (?P<role>runnable|prints)(?:: (?P<name>[\w-]+))? -->[ \t]*\n(?:[ \t]*\n)*)?"
    r"^(?P<indent>[ \t]*)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_SEPARATE = {"python": "print('\\x1e', flush=True)", "elixir": 'IO.puts("\\x1e")'}
_SUFFIX = {"python": ".py", "elixir": ".exs"}


@dataclass(frozen=True)
class Block:
    """One fenced code block of a page."""

    language: str
    code: str
    line: int
    """Of its first line of code."""
    role: str | None = None
    """`runnable`, `prints`, or None for a block that is only read."""
    name: str = "page"


def blocks(page: Path) -> list[Block]:
    """All fenced code blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            language=found["language"],
            code=dedent(found["code"]),
            line=text.count("\n", 0, found.start("code")) + 1,
            role=found["role"],
            name=found["name"] or "page",
        )
        for found in _BLOCK.finditer(text)
    ]


@dataclass
class Step:
    """A part of a script, and what it prints; None where the page does not say."""

    code: str = ""
    prints: str | None = None
    line: int = 0


@dataclass
class Script:
    """The runnable blocks of one name and language of a page."""

    page: Path
    name: str
    language: str
    steps: list[Step] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.page.name}-{self.name}-{self.language}"

    def source(self, endpoint: str, more: str = "") -> str:
        """The script for a daemon at this endpoint, with more code of a test's own at the end."""
        port = endpoint.rpartition(":")[2]
        parts = [step.code.replace(DEFAULT_PORT, port) for step in self.steps]
        return f"\n{_SEPARATE[self.language]}\n".join([*parts, *([more] if more else [])])

    def check(self, output: str) -> None:
        """Compare what it printed with what the page says."""
        printed = output.split("\x1e\n")
        assert len(printed) == len(self.steps), f"{self}: ended early:\n{output}"
        for step, text in zip(self.steps, printed, strict=True):
            if step.prints is not None:
                assert same_text(step.prints, text), (
                    f"{self.page.name}:{step.line} says\n{step.prints}\nbut it prints\n{text}"
                )


def scripts(page: Path, language: str) -> list[Script]:
    """The scripts of one language that a page holds, by name."""
    made: dict[str, Script] = {}
    last: dict[str, Step] = {}
    for block in blocks(page):
        if block.role == "runnable" and block.language == language:
            script = made.setdefault(block.name, Script(page, block.name, language))
            if block.name not in last:
                last[block.name] = Step(line=block.line)
                script.steps.append(last[block.name])
            last[block.name].code += block.code
        elif block.role == "prints" and (step := last.pop(block.name, None)) is not None:
            step.prints, step.line = block.code, block.line
    return list(made.values())


def same_text(expected: str, printed: str) -> bool:
    """Whether it is the same but for blanks at the ends of lines; `…` is anything."""
    wanted, found = ([line.rstrip() for line in text.strip().splitlines()] for text in (expected, printed))
    return len(wanted) == len(found) and all(
        re.fullmatch(".*".join(map(re.escape, line.split("…"))), there)
        for line, there in zip(wanted, found, strict=True)
    )


@dataclass
class Finished:
    """A script that has run."""

    lines: list[tuple[float, str]]
    """Each line of its output, and when it came."""
    code: int
    errors: str

    @property
    def output(self) -> str:
        """All that it printed."""
        return "".join(line for _, line in self.lines)


def run(language: str, source: str, folder: Path, hear: Callable[[str], None] = lambda _: None) -> Finished:
    """Run a script of either language, handing each line to `hear` as it comes; fails unless it ends with 0."""
    file = folder / f"script{_SUFFIX[language]}"
    file.write_text(source, encoding="utf-8")
    command = [sys.executable, "-u"] if language == "python" else elixir()
    errors = folder / "stderr"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, str(file)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)},
            encoding="utf-8",
        )
        done = Finished([], 0, "")
        killer = _kill_after(process, WAIT_TIMEOUT_S)
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                done.lines.append((time.monotonic(), line))
                hear(line)
        done.code = process.wait()
        killer.cancel()
    done.errors = errors.read_text(encoding="utf-8", errors="replace")
    assert done.code == 0, f"ended with {done.code}\n{done.output}\n{done.errors}"
    return done


def run_script(script: Script, endpoint: str, folder: Path) -> Finished:
    """Run a page's script against a daemon and compare what it prints."""
    done = run(script.language, script.source(endpoint), folder)
    script.check(done.output)
    return done


def _kill_after(process: subprocess.Popen[str], seconds: float) -> Timer:
    killer = Timer(seconds, process.kill)
    killer.daemon = True
    killer.start()
    return killer


def elixir() -> list[str]:
    """How to start an Elixir script with chumak and msgpax at hand."""
    deps = Path(os.environ[ELIXIR_DEPS])
    return ["elixir", *(part for name in ("chumak", "msgpax") for part in ("-pa", str(deps / name / "ebin")))]


def no_elixir() -> str | None:
    """Why Elixir scripts cannot be run here, or None."""
    if shutil.which("elixir") is None:
        return "elixir is not installed"
    folder = os.environ.get(ELIXIR_DEPS)
    if not folder:
        return f"{ELIXIR_DEPS} names no folder with chumak/ebin and msgpax/ebin"
    missing = [name for name in ("chumak", "msgpax") if not (Path(folder) / name / "ebin").is_dir()]
    return f"{ELIXIR_DEPS} has no {missing[0]}/ebin" if missing else None


# --- docs/errors.md ---------------------------------------------------------------------------------

TABLE_BEGIN = "<!-- error types: written by `python -m tests.snippets` -->"
TABLE_END = "<!-- end of error types -->"


def error_table() -> str:
    """`errors.ERROR_TYPES` as the table of `docs/errors.md`."""
    bar = r"\|"
    rows = [
        f"| `{name}` | {known.meaning.replace('|', bar)} | {known.mender} | {'yes' if known.retryable else 'no'} "
        f"| `{FAMILIES[known.mender].__name__}` |"
        for name, known in ERROR_TYPES.items()
    ]
    head = ["| error_type | what happened, and what mends it | who can mend it | retryable | in Python |"]
    return "\n".join([*head, "|---|---|---|---|---|", *rows])


def with_error_table(page: str) -> str:
    """The page with its table as it should be."""
    before, begin, rest = page.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    assert begin and end, "docs/errors.md has lost the marks around its table"
    return f"{before}{begin}\n\n{error_table()}\n\n{end}{after}"


if __name__ == "__main__":
    errors_page = DOCS / "errors.md"
    errors_page.write_text(with_error_table(errors_page.read_text(encoding="utf-8")), encoding="utf-8")
