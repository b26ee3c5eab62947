"""The page docs/reference/cli.md, generated from `axon-zmq --help`: `python -m tests.support.cli_page` writes it."""

from __future__ import annotations

import re

from typer.main import get_command
from typer.testing import CliRunner

from axon_zmq.cli.app import app
from tests.support.snippets import DOCS

PAGE = DOCS / "reference/cli.md"
INTRODUCTION = """\
# Commands

This page is generated from `axon-zmq --help` and from the `--help` of each command. On a terminal, the commands print
tables and text; in a pipe, they print JSON.
"""


def help_text(*command: str) -> str:
    """What `axon-zmq COMMAND --help` prints at a width of 80 columns."""
    shown = CliRunner().invoke(
        app, [*command, "--help"], prog_name="axon-zmq", terminal_width=80, env={"AXON_FRONTEND": None, "COLUMNS": "80"}
    )
    assert shown.exit_code == 0, shown.output
    return "\n".join(line.rstrip() for line in shown.output.strip().splitlines())


def page() -> str:
    """The whole page: an overview, then one section for each command, in the order of `--help`."""
    names = list(get_command(app).commands)
    sections = [("Overview", help_text()), *((name, help_text(name)) for name in names)]
    # A fence must be longer than any that the help contains.
    assert not any(re.search(r"^\s*```", text, re.MULTILINE) for _, text in sections)
    parts = [f"## {heading}\n\n```text\n{text}\n```\n" for heading, text in sections]
    return "\n".join([INTRODUCTION, *parts])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
