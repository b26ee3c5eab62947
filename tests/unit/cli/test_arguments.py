"""Invalid arguments and invalid standard input of `axon-zmq`, without a daemon."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from axon_zmq import settings
from axon_zmq.cli import welcome
from axon_zmq.cli.app import app, main
from axon_zmq.cli.options import MAX_SECONDS, within
from axon_zmq.cli.stdin import read_all
from axon_zmq.errors import ConfigurationError

ARGUMENTS = {"run": ["echo", "hi"], "stream": ["echo", "hi"], "call": ["temperature"]}
FLOAT_OPTIONS = [
    (command.callback.__name__, f"--{name.replace('_', '-')}")
    for command in app.registered_commands
    for name, annotation in get_type_hints(command.callback).items()
    if annotation in (float, float | None)
]


def failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The message of a command that exits with code 2."""
    monkeypatch.setattr(sys, "argv", ["axon-zmq", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_every_command_with_a_time_is_checked():
    assert {name for name, _ in FLOAT_OPTIONS} == {"ping", "run", "stream", "call", "loadtest", "conformance"}


@pytest.mark.parametrize(("command", "option"), FLOAT_OPTIONS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400", "1e300"])
def test_a_number_that_is_not_finite_or_too_large_is_a_usage_error(command, option, value, capsys, monkeypatch):
    message = failure(capsys, monkeypatch, command, *ARGUMENTS.get(command, ()), option, value)
    assert f"'{option}': {float(value)} is not in the range " in message


def test_a_number_may_be_at_the_ends_of_its_range():
    check = within(0.001, MAX_SECONDS)
    assert [check(value) for value in (0.001, MAX_SECONDS, None)] == [0.001, MAX_SECONDS, None]
    with pytest.raises(typer.BadParameter, match=r"0\.0001 is not in the range 0\.001 to 31536000"):
        check(0.0001)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["run", "echo", "\udcff\udcfe"], "'PROMPT'"),
        (["run", '{"model": "\udcff\udcfe"}', "x"], "'AGENT'"),
        (["stream", "echo", "x", "--model", "\udcff\udcfe"], "'--model'"),
        (["call", "\udcff\udcfe"], "'TOOL'"),
        (["call", "x", '{"place": "\udcff\udcfe"}'], "'ARGS'"),
        (["agents", "\udcff\udcfe"], "'NAME'"),
        (["roll", "run", "\udcff\udcfe"], "'NAMES'"),
        (["ping", "--endpoint", "\udcff\udcfe"], "'--endpoint'"),
        (["conformance", "--only", "\udcff\udcfe"], "'--only'"),
        (["loadtest", "--prompt", "\udcff\udcfe"], "'--prompt'"),
    ],
)
def test_a_text_that_is_not_valid_utf8_is_a_usage_error(arguments, name, capsys, monkeypatch):
    message = failure(capsys, monkeypatch, *arguments)
    assert f"Invalid value for {name}" in message
    assert "not valid UTF-8: b'" in message
    assert r"\xff\xfe" in message


def test_file_names_may_contain_any_bytes(capsys, monkeypatch):
    message = failure(capsys, monkeypatch, "loadtest", "--compare", "missing-\udcff", "missing-b")
    assert message == r"error: cannot read report missing-\udcff: No such file or directory"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "[1]", "hi"], "invalid agent '[1]': expected the name of a registered agent, or a JSON object"),
        (["stream", ' ["echo"]', "hi"], "expected the name of a registered agent, or a JSON object"),
        (["run", "[x", "hi"], "invalid agent '[x': not valid JSON"),
        (["run", '{"model"', "hi"], """invalid agent '{"model"': not valid JSON"""),
        (["run", r'{"model": "\ud800"}', "hi"], "not valid JSON"),
        (["call", "x", "[" * 10_000], "not valid JSON"),
    ],
)
def test_json_that_is_not_an_object_is_reported(arguments, text, capsys, monkeypatch):
    assert text in failure(capsys, monkeypatch, *arguments)


def test_a_closed_standard_input_is_reported(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for command in ("run", "stream"):
        message = failure(capsys, monkeypatch, command, "echo", "-")
        assert message.startswith("error: cannot read the prompt: standard input is closed")


def test_a_prompt_from_standard_input_must_be_utf8(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff\xfe")))
    message = failure(capsys, monkeypatch, "run", "echo", "-")
    assert message == "error: the prompt from standard input is not valid UTF-8: invalid start byte in byte 2"


def test_standard_input_is_read_with_unix_line_ends(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\u00e9\r\ntwo\n".encode())))
    assert read_all("the prompt") == "\u00e9\ntwo\n"


def test_a_standard_input_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    with os.fdopen(descriptor, "w", encoding="utf-8") as writable:
        monkeypatch.setattr(sys, "stdin", writable)
        with pytest.raises(ConfigurationError, match="cannot read the prompt from standard input"):
            read_all("the prompt")


def test_usage_lines_have_no_braces():
    for name, pieces in (("run", "AGENT PROMPT"), ("scale", "MODE PROCESSES"), ("call", "TOOL [ARGS]")):
        usage = CliRunner().invoke(app, [name, "--help"]).stdout.splitlines()[0]
        assert usage.endswith(f"{name} [OPTIONS] {pieces}")
    for command in typer.main.get_command(app).commands.values():
        usage = CliRunner().invoke(app, [command.name, "--help"]).stdout.splitlines()[0]
        assert "{" not in usage


@pytest.mark.parametrize(
    ("agents", "command"),
    [
        ({"weather": "x:y", "mine": "x:y"}, "weather 'Oslo and Rome?'"),
        ({"mine": "x:y"}, "mine Hello"),
        ({}, """'{"model": "echo"}' Hello"""),
    ],
)
def test_the_suggested_prompt_fits_the_agent(agents, command):
    shown = io.StringIO()
    welcome.show_next_steps(settings.load(agents=agents), Path("x.conf"), Console(file=shown, width=200))
    assert f"axon-zmq stream {command}\n" in shown.getvalue()
