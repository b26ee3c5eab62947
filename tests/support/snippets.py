"""Runs code blocks of the documentation, and generates its tables.

On a page, `<!-- runnable: name -->` directly before a fenced block means that tests run it. All such blocks with one
name and language form one script, in order. `<!-- prints: name -->` before a `text` block marks the output of the
blocks with that name since the previous such block. In it, `…` matches any text within a line.

`python -m tests.support.snippets` writes the table of `docs/errors.md` from `errors.ERROR_TYPES`, and the tables of
`docs/backend.md` from the classes of `protocol/backend.py` and their docstrings.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from threading import Timer
from typing import NamedTuple

from axon_zmq.errors import ERROR_TYPES, FAMILIES
from axon_zmq.protocol import backend
from axon_zmq.worker.core.worker import ERRORS
from tests.support import ROOT

DOCS = ROOT / "docs"
DEFAULT_PORT = "5570"
"""The port on the pages; it is replaced by the port of the test daemon."""
ELIXIR_DEPS = "AXON_ELIXIR_DEPS"
"""Environment variable: a folder with `chumak/ebin` and `msgpax/ebin`."""
WAIT_TIMEOUT_S = 60.0
"""Time limit of a script in seconds."""

_BLOCK = re.compile(
    r"(?:^[ \t]*<!-- (?P<role>runnable|prints|setup)(?:: (?P<name>[\w-]+))? -->[ \t]*\n(?:[ \t]*\n)*)?"
    r"^(?P<indent>[ \t]*)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_SETUP_PAGE = re.compile(r"^<!-- setup: ([\w.-]+\.md) -->$", re.MULTILINE)
_SEPARATE = {"python": "print('\\x1e', flush=True)", "elixir": 'IO.puts("\\x1e")'}
_SUFFIX = {"python": ".py", "elixir": ".exs"}


@dataclass(frozen=True)
class Block:
    """One fenced code block of a page."""

    language: str
    code: str
    line: int
    """The line number of the first line of code."""
    role: str | None = None
    """`runnable`, `prints`, or None for a block without a comment."""
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
    """A part of a script with its output; None if the page shows no output."""

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
    setup: str = ""
    """Code before the first step."""

    def __str__(self) -> str:
        return f"{self.page.name}-{self.name}-{self.language}"

    def source(self, endpoint: str, more: str = "") -> str:
        """The script for a daemon at this endpoint, followed by additional code of a test."""
        port = endpoint.rpartition(":")[2]
        parts = [step.code.replace(DEFAULT_PORT, port) for step in self.steps]
        setup = self.setup.replace(DEFAULT_PORT, port)
        return setup + f"\n{_SEPARATE[self.language]}\n".join([*parts, *([more] if more else [])])

    def check(self, output: str) -> None:
        """Compare the output with the page."""
        printed = output.split("\x1e\n")
        assert len(printed) == len(self.steps), f"{self}: ended early:\n{output}"
        for step, text in zip(self.steps, printed, strict=True):
            if step.prints is not None:
                assert same_text(step.prints, text), (
                    f"{self.page.name}:{step.line} says\n{step.prints}\nbut it prints\n{text}"
                )


def scripts(page: Path, language: str) -> list[Script]:
    """The scripts of one language on a page, by name."""
    made: dict[str, Script] = {}
    last: dict[str, Step] = {}
    for block in blocks(page):
        if block.role == "runnable" and block.language == language:
            if block.name not in made:
                made[block.name] = Script(page, block.name, language, setup=setup_of(page, language))
            script = made[block.name]
            if block.name not in last:
                last[block.name] = Step(line=block.line)
                script.steps.append(last[block.name])
            last[block.name].code += block.code
        elif block.role == "prints" and (step := last.pop(block.name, None)) is not None:
            step.prints, step.line = block.code, block.line
    return list(made.values())


def setup_of(page: Path, language: str) -> str:
    """The code with which each script of a page begins: all blocks after `<!-- setup -->`.

    With `<!-- setup: other.md -->` anywhere in the page, these are the setup blocks of that page in the same folder.
    """
    if found := _SETUP_PAGE.search(page.read_text(encoding="utf-8")):
        page = page.with_name(found[1])
    return "".join(block.code for block in blocks(page) if block.role == "setup" and block.language == language)


def same_text(expected: str, printed: str) -> bool:
    """Whether two texts are equal except for trailing blanks; `…` matches anything."""
    wanted, found = ([line.rstrip() for line in text.strip().splitlines()] for text in (expected, printed))
    return len(wanted) == len(found) and all(
        re.fullmatch(".*".join(map(re.escape, line.split("…"))), there)
        for line, there in zip(wanted, found, strict=True)
    )


@dataclass
class Finished:
    """The result of a script."""

    lines: list[tuple[float, str]]
    """Each line of the output with the time of its arrival."""
    code: int
    errors: str

    @property
    def output(self) -> str:
        """The whole output."""
        return "".join(line for _, line in self.lines)


def run(language: str, source: str, folder: Path, hear: Callable[[str], None] = lambda _: None) -> Finished:
    """Run a script, and pass each line to `hear` when it arrives; fails unless the exit code is 0."""
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
    """The command that starts an Elixir script with chumak and msgpax in its path."""
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


# --- generated tables ---------------------------------------------------------------------------------

TABLE_BEGIN = "<!-- error types: written by `python -m tests.support.snippets` -->"
TABLE_END = "<!-- end of error types -->"
_TABLE = re.compile(
    r"(?P<begin><!-- table: (?P<name>[\w-]+), written by `python -m tests\.support\.snippets` -->\n).*?"
    r"(?P<end><!-- end of table -->)",
    re.DOTALL,
)


def error_table() -> str:
    """`errors.ERROR_TYPES` as the table of `docs/errors.md`."""
    bar = r"\|"
    rows = [
        f"| `{name}` | {known.meaning.replace('|', bar)} | {known.family} | {'yes' if known.retryable else 'no'} "
        f"| `{FAMILIES[known.family].__name__}` |"
        for name, known in ERROR_TYPES.items()
    ]
    head = ["| error_type | what happened, and how to fix it | who can fix it | retryable | in Python |"]
    return "\n".join([*head, "|---|---|---|---|---|", *rows])


def with_error_table(page: str) -> str:
    """The page with its generated table."""
    before, begin, rest = page.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    assert begin and end, "docs/errors.md has lost the marks around its table"
    return f"{before}{begin}\n\n{error_table()}\n\n{end}{after}"


class Documented(NamedTuple):
    """A class or attribute with its docstring."""

    name: str
    text: str
    """The docstring in one line."""
    annotation: str = ""
    is_optional: bool = False
    """Whether it has a default."""


def documented_class(cls: type) -> Documented:
    """A class and its docstring."""
    return Documented(cls.__name__, _one_line(cls.__doc__))


def documented_attributes(cls: type) -> list[Documented]:
    """The attributes that a class body defines, with the docstrings after them.

    Class variables are left out.
    """
    [tree] = ast.parse(dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = []
    for node, after in pairwise([*tree.body, ast.Pass()]):
        match node:
            case ast.AnnAssign(target=ast.Name(name), annotation=annotation, value=value):
                kind, is_optional = ast.unparse(annotation), value is not None
            case ast.Assign(targets=[ast.Name(name)]):
                kind, is_optional = "", False
            case _:
                continue
        if not kind.startswith("ClassVar"):
            is_documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert is_documented, f"{cls.__name__}.{name} has no docstring"
            found.append(Documented(name, _one_line(after.value.value), kind, is_optional))
    return found


def _one_line(docstring: str | None) -> str:
    return " ".join((docstring or "").split()).replace("|", r"\|")


TYPES = {
    "EndReason": "string",
    "Mapping[str, ModeStatus]": "map of [maps](#a-mode-in-status)",
    "Mapping[str, Program]": "map of maps",
    "bool": "boolean",
    "bytes": "binary",
    "float": "number",
    "int": "integer",
    "str": "string",
    "tuple[Held, ...]": "list of [maps](#a-held-run)",
    "tuple[WorkerStatus, ...]": "list of [maps](#a-worker-in-status)",
    "tuple[str, ...]": "list of strings",
    "tuple[str, ...] | None": "list of strings, or nil",
}
"""The type of a field on the wire, from its annotation."""
TO_RUN = (backend.RunStart, backend.Describe, backend.ToRun, backend.RunEnd, backend.RunResume, backend.RunClient)
"""Messages from the broker about a run."""
FROM_SUPERVISOR = (backend.Processes, backend.Exited, backend.StatusRequest)
"""Messages to the broker that no worker sends."""


def key_table(cls: type[backend.Body]) -> str:
    """The keys of a map: name, type, meaning."""
    rows = [
        [f"`{each.name}`", TYPES[each.annotation] + (", may be missing" if each.is_optional else ""), each.text]
        for each in documented_attributes(cls)
    ]
    return _markdown(["key", "type", "value"], rows)


def message_table(messages: Iterable[type], empty: str = "body") -> str:
    """Messages: frames, keys of the body, when it is sent and what follows.

    Args:
        messages: Subclasses of `backend.Message`, or tuples whose docstring begins with their frames.
        empty: The frame of a body without keys; `""` for an empty frame.
    """
    rows = []
    for message in messages:
        text = documented_class(message).text
        if found := re.match(r"`(\[.*?\])`: ", text):
            frames, keys, text = found[1], "", text[found.end() :]
        else:
            assert issubclass(message, backend.Message)
            names = [each.name for each in documented_attributes(message)]
            last = "body" if names or empty == "body" else empty
            kind = message.kind.decode()
            id = ', ""' if message in backend.TO_WORKER.values() or message is backend.Status else ""
            frames = f'["", "{kind}"{id}, {last}]' if last else f'["", "{kind}"{id}]'
            keys = "{" + ", ".join(names) + "}" if last == "body" else ""
        assert text.lower().startswith("sent "), f"the docstring of {message.__name__} does not say when it is sent"
        sent = text[5].upper() + text[6:]
        rows.append([f"`{frames}`", f"`{keys}`" if keys else "", sent])
    return _markdown(["frames", "body", "sent"], rows)


def reason_table() -> str:
    """Why a run is ended, and the error that it ends with."""
    rows = [
        [f"`{reason.value}`", about.text, f"`{ERRORS[reason][0]}`"]
        for reason, about in zip(backend.EndReason, documented_attributes(backend.EndReason), strict=True)
    ]
    return _markdown(["reason", "asked by", "`error_type`"], rows)


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


BACKEND_TABLES: Mapping[str, Callable[[], str]] = {
    "from-a-worker": lambda: message_table(each for each in backend.TO_BROKER.values() if each not in FROM_SUPERVISOR),
    "ready": lambda: key_table(backend.Ready),
    "held-run": lambda: key_table(backend.Held),
    "to-a-worker": lambda: message_table((*TO_RUN, *backend.TO_WORKER.values()), empty=""),
    "lease": lambda: key_table(backend.Lease),
    "end-reasons": reason_table,
    "from-supervisord": lambda: message_table((*FROM_SUPERVISOR, backend.Status), empty='""'),
    "program": lambda: key_table(backend.Program),
    "status": lambda: key_table(backend.Status),
    "mode-status": lambda: key_table(backend.ModeStatus),
    "worker-status": lambda: key_table(backend.WorkerStatus),
}
"""The tables of `docs/backend.md`, by the names in the comments before them."""


def with_backend_tables(page: str) -> str:
    """The page with its generated tables."""
    names = [found["name"] for found in _TABLE.finditer(page)]
    assert sorted(names) == sorted(BACKEND_TABLES), "docs/backend.md must contain the marks of each table once"
    return _TABLE.sub(lambda found: f"{found['begin']}\n{BACKEND_TABLES[found['name']]()}\n\n{found['end']}", page)


def _rewrite(name: str, change: Callable[[str], str]) -> None:
    page = DOCS / name
    page.write_text(change(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _rewrite("errors.md", with_error_table)
    _rewrite("backend.md", with_backend_tables)
