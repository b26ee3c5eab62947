"""`axon-zmq --help` and the verdicts of `axon-zmq doctor`, without a daemon."""

from __future__ import annotations

import inspect
import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

from axon_zmq.cli import doctor
from axon_zmq.cli.app import app
from axon_zmq.protocol.kinds import MODES

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


def help_of(*command: str) -> str:
    """Its help in a terminal of 80 columns."""
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_each_command(command):
    printed = help_of(command)
    assert "Usage" in printed
    assert "\n  Examples:\n    " in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_the_first_line_of_each_help_is_complete_at_80_columns():
    overview = help_of()
    for command in app.registered_commands:
        first_line = inspect.getdoc(command.callback).splitlines()[0]
        assert first_line.endswith(".")
        name = command.callback.__name__
        assert f"\n  {name:<11}  {first_line}\n" in overview, name
        assert f"\n  {first_line}\n" in help_of(name), name


def test_help_lists_the_commands_by_section_and_the_exit_codes():
    overview = help_of()
    sections = [line for line in overview.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sections == [
        *("Options:", "Start the daemon:", "Inspect the daemon:", "Change the running daemon:"),
        *("Run agents and tools:", "Test a daemon or a client:"),
    ]
    for code in (0, 1, 2, 3, 130):
        assert re.search(rf"^    {code} +\w", overview, re.MULTILINE), code


def test_the_examples_in_the_help_are_valid_commands(tmp_path, monkeypatch):
    """Each is parsed by the command's own parser, up to the callback."""
    (tmp_path / "tools.json").touch()
    monkeypatch.chdir(tmp_path)
    group = typer.main.get_command(app)
    seen = set()
    for command in app.registered_commands:
        for line in command.epilog.splitlines():
            if not line.startswith("  axon-zmq "):
                continue
            words = shlex.split(re.split(r" > | \| |   +", line.strip())[0])
            assert words[1] == command.callback.__name__, line
            parameters = group.commands[words[1]].make_context(words[1], words[2:], resilient_parsing=False).params
            assert parameters is not None
            seen.add(words[1])
    assert seen == set(COMMANDS)


def modes(*counts: int, degraded: bool = False) -> dict[str, dict]:
    return {
        mode: {"workers": workers, "free": workers, "queued": 0, "degraded": degraded and not workers}
        for mode, workers in zip(MODES, counts, strict=True)
    }


@pytest.mark.parametrize(
    ("pong", "starting", "state", "code"),
    [
        ({"modes": modes(1, 1, 1), "settling": False}, set(), "ok", 0),
        ({"modes": modes(1, 0, 1), "settling": False}, {"run"}, "STARTING", 3),
        ({"modes": modes(0, 0, 0), "settling": True}, set(), "STARTING", 3),
        ({"modes": modes(1, 1, 1), "settling": True}, set(), "STARTING", 3),
        ({"modes": modes(1, 0, 1), "settling": False}, set(), "FAIL", 1),
        ({"modes": modes(1, 0, 1, degraded=True), "settling": True}, {"run"}, "FAIL", 1),
    ],
)
def test_doctor_reports_starting_while_workers_start(pong, starting, state, code):
    configured = dict.fromkeys(MODES, 1)
    finding = doctor.daemon_finding("ipc://x", {"version": "1", **pong}, configured, frozenset(starting))
    assert (finding.state, doctor.exit_code([finding])) == (state, code)
    assert "run_stream 1 worker" in finding.detail or "run_stream 0 workers" in finding.detail
    assert bool(finding.fix) == (state != "ok")


def test_doctor_exit_codes_are_ordered():
    def finding(state: str, **more) -> doctor.Finding:
        return doctor.Finding(state=doctor.State(state), subject="x", detail="y", **more)

    ok, starting, failed = map(finding, ("ok", "STARTING", "FAIL"))
    invalid = finding("FAIL", exit_code=doctor.ExitCode.INVALID)
    for findings, code in (([ok], 0), ([ok, starting], 3), ([starting, failed], 1), ([failed, invalid], 2)):
        assert doctor.exit_code(findings) == code


@pytest.mark.parametrize(
    ("name", "state", "seconds", "is_starting"),
    [
        ("broker", "RUNNING", 0, True),
        ("broker", "RUNNING", 10, False),
        ("broker", "STOPPED", 0, False),
        ("run-1", "RUNNING", 0, False),
    ],
)
def test_doctor_expects_no_answer_of_a_broker_that_was_just_started(name, state, seconds, is_starting):
    info = doctor.supervisord.ProcessInfo(name=name, statename=state, pid=1, start=1000, now=1000 + seconds)
    assert doctor.is_broker_starting([info]) is is_starting
