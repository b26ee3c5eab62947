"""The command: what it prints in a pipe and on a terminal, and how it exits."""

from __future__ import annotations

import inspect
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import zmq
from rich.console import Console
from typer.testing import CliRunner

from axon_zmq.cli import doctor, status
from axon_zmq.cli.app import app
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.msgpack import pack
from tests.conftest import WAIT_TIMEOUT_S, Daemon, free_port, wait_until

AXON = Path(sys.executable).parent / "axon-zmq"
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


def axon(daemon: Daemon | None, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    endpoint = {"AXON_FRONTEND": daemon.endpoint} if daemon else {}
    return subprocess.run(
        [AXON, *arguments],
        env={**os.environ, **endpoint, **env},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def on_a_terminal(daemon: Daemon, *arguments: str) -> str:
    """What a person sees."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [AXON, *arguments],
        env={**os.environ, "AXON_FRONTEND": daemon.endpoint, "TERM": "xterm", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    process.wait(WAIT_TIMEOUT_S)
    return seen.decode().replace("\r\n", "\n")


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


def test_help_from_the_shell():
    done = axon(None, "--help")
    assert done.returncode == 0
    assert "Usage: axon-zmq [OPTIONS] COMMAND" in done.stdout


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


def test_version():
    from axon_zmq import __version__

    assert axon(None, "--version").stdout.strip() == __version__


def test_run_in_a_pipe_is_a_json_line(daemon):
    for more in ([], ["--sync"]):
        done = axon(daemon, "run", "echo", "-", *more, stdin="from a pipe")
        [line] = lines(done)
        assert (done.returncode, line["kind"], line["result"]) == (0, "complete", "from a pipe")


def test_stream_in_a_pipe_is_json_lines(daemon):
    done = axon(daemon, "stream", "echo", "one two")
    assert [(line["kind"], line.get("data")) for line in lines(done)] == [
        ("chunk", "one"),
        ("chunk", " two"),
        ("complete", None),
    ]
    assert any(line["type"] == "event" for line in lines(axon(daemon, "stream", "echo", "x", "--all-events"))[:-1])


def test_stream_on_a_terminal_is_text(daemon):
    assert on_a_terminal(daemon, "stream", "echo", "one [two] three") == "one [two] three\n"
    seen = on_a_terminal(daemon, "stream", "weather", "Oslo?")
    assert seen.startswith('[temperature {"place":"Oslo"}]\n[success: ')
    assert '"Oslo": -3.0' in seen


def test_run_on_a_terminal(daemon):
    assert on_a_terminal(daemon, "run", "echo", "hi there") == "hi there\n"


def test_an_output_schema_from_a_file(daemon, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    [line] = lines(axon(daemon, "run", "echo", '{"n": 5}', "--output-schema", str(schema)))
    assert line["result"] == {"n": 5}
    schema.write_text("{")
    assert axon(daemon, "run", "echo", "x", "--output-schema", str(schema)).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "code", "error_type"),
    [
        (["run", "ecko", "x"], 2, "unknown_agent"),
        (["run", "raising", "x"], 1, "tool_failed"),
        (["run", "echo", "x", "--model", "no-such:model"], 2, "unknown_model"),
        (["stream", '{"model": "synthetic:tokens=500"}', "x", "--timeout", "0.3"], 1, "deadline_exceeded"),
        (["agents", "ecko"], 2, "unknown_agent"),
    ],
)
def test_a_failure_is_a_json_line_a_message_and_an_exit_code(daemon, arguments, code, error_type):
    done = axon(daemon, *arguments)
    assert done.returncode == code
    assert lines(done)[-1]["kind"] == "error"
    assert lines(done)[-1]["error_type"] == error_type
    assert done.stderr.startswith(f"error: {error_type}")


@pytest.mark.parametrize("arguments", [["run", "echo", "x"], ["stream", "echo", "x"], ["agents"], ["ping"]])
def test_without_a_daemon_the_exit_code_is_3_and_the_message_says_how_to_start_one(arguments):
    done = axon(None, *arguments, AXON_FRONTEND=f"tcp://127.0.0.1:{free_port()}")
    assert done.returncode == 3
    assert "axon-zmq serve" in done.stderr


def test_what_no_process_could_start_with_is_told_before_any_is_started(tmp_path):
    (tmp_path / "uvloop.py").write_text("raise ImportError")
    env = {"AXON_RUN_DIR": str(tmp_path / "run"), "AXON_LOOP": "uvloop", "PYTHONPATH": str(tmp_path)}
    frontend = f"ipc://{tmp_path}/nowhere/socket"
    for more, says in (({}, "AXON_LOOP is uvloop"), ({"AXON_FRONTEND": frontend}, "yours to write to: make it")):
        refused = axon(None, "serve", **{"AXON_FRONTEND": f"ipc://{tmp_path}/socket", **env, **more})
        assert refused.returncode == 2
        assert says in refused.stderr.replace("\n", " ")
        assert list((tmp_path / "run").iterdir()) == []
    lone = axon(None, "broker", AXON_FRONTEND=frontend, AXON_RUN_DIR=str(tmp_path / "run"))
    assert (lone.returncode, "yours to write to: make it" in lone.stderr) == (2, True)


def test_a_wrong_endpoint_is_told_without_the_name_of_an_exception():
    for command in (["ping"], ["run", "echo", "x"], ["doctor"]):
        done = axon(None, *command, "--endpoint", "foo")
        assert done.returncode == 2
        assert done.stderr.startswith("error: 'foo' is no endpoint")


def test_a_wrong_agent_or_setting_is_2():
    assert axon(None, "run", "{not json", "x").returncode == 2
    done = axon(None, "conf", AXON_FRONTEND="tcp://0.0.0.0:1")
    assert done.returncode == 2
    assert "open to other machines" in done.stderr
    assert axon(None, "no-such-command").returncode == 2


def test_agents_and_ping(daemon):
    [agents] = lines(axon(daemon, "agents"))
    assert {"echo", "broken"} <= agents.keys()
    [pong] = lines(axon(daemon, "ping", "--wait", "20"))
    assert pong["modes"]["run"]["workers"] == 1
    seen = on_a_terminal(daemon, "agents")
    assert "tool temperature: The temperature of a place" in seen
    assert "tool undocumented\n" in seen.replace("\r", "")
    assert "toolset plain" in seen
    assert "tool double" in seen
    assert "run_stream  1 worker," in on_a_terminal(daemon, "ping")


def test_doctor_reports_failures_with_a_fix(daemon, tmp_path):
    place = {"AXON_RUN_DIR": str(tmp_path / "run"), "AXON_FRONTEND": f"tcp://127.0.0.1:{free_port()}"}
    good = axon(None, "doctor", **place)
    assert good.returncode == 0, good.stdout
    assert "FAIL" not in good.stdout
    assert f"ok       run directory: {tmp_path}/run (serve creates it)\n" in good.stdout
    bad = axon(None, "doctor", **place, AXON_AGENTS="mine=no_such_module:agent")
    assert bad.returncode == 1
    assert "FAIL     configured agent mine: ModuleNotFoundError" in bad.stdout
    assert "fix: fix no_such_module:agent, or its entry in AXON_AGENTS" in bad.stdout
    nowhere = axon(None, "doctor", AXON_FRONTEND=f"ipc://{tmp_path}/nowhere/socket")
    assert nowhere.returncode == 1
    assert "FAIL     frontend: " in nowhere.stdout
    assert list(tmp_path.iterdir()) == []


def test_doctor_compares_the_daemons_agents_with_those_that_are_configured(daemon):
    compared = axon(daemon, "doctor", AXON_AGENTS="echo=axon_zmq.agents.echo:agent,ekko=axon_zmq.agents.echo:agent")
    assert compared.returncode == 1
    [line] = [line for line in compared.stdout.splitlines() if "served agents" in line]
    assert line.startswith(
        "FAIL     served agents: ekko is configured but not served; broken could not be loaded: AttributeError"
    )
    assert compared.stdout.count("FAIL") == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AXON_RUN_WORKRS", "2", "AXON_RUN_WORKERS"),
        ("AXON_FRONTEND", "tcp://0.0.0.0:1", "open to other machines"),
    ],
)
def test_doctor_exits_2_for_invalid_settings(name, value, message):
    done = axon(None, "doctor", **{name: value})
    assert done.returncode == 2
    assert "FAIL     settings: " in done.stdout
    assert message in done.stdout


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


def test_doctor_prints_starting_for_a_broker_that_recovers(tmp_path):
    """A broker that has just started reports `settling`; nothing has failed yet."""
    body = {"version": "9", "modes": modes(0, 0, 0), "settling": True, "boot": "b", "protocol": 1}
    pong = {"features": [], "draining": False, "shared": False, "dropped": 0, "limits": {}, **body}
    endpoint = f"ipc://{tmp_path}/frontend"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(endpoint)
        done = subprocess.Popen(
            [AXON, "doctor", "--endpoint", endpoint],
            env={**os.environ, "AXON_RUN_DIR": str(tmp_path / "run")},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert router.poll(WAIT_TIMEOUT_S * 1000)
        client, _kind, id, *_ = router.recv_multipart()
        router.send_multipart([client, b"pong", id, pack(pong)])
        printed, _ = done.communicate(timeout=WAIT_TIMEOUT_S)
    assert done.returncode == 3, printed
    assert f"STARTING daemon: version 9 at {endpoint}: run_sync 0 workers, run 0 workers, " in printed
    assert "fix: run doctor again in a few seconds" in printed
    assert "FAIL" not in printed


def test_doctor_and_status_print_no_python_dictionaries(daemon):
    examined = axon(daemon, "doctor")
    assert "ok       settings: " in examined.stdout
    shown = io.StringIO()
    status.show(status.report(daemon.run_dir), Console(file=shown, width=120))
    waited = axon(daemon, "ping", "--wait", "0.1", AXON_RUN_SYNC_WORKERS="0")
    assert waited.returncode == 0
    for printed in (examined.stdout, shown.getvalue(), waited.stderr):
        assert "{'" not in printed
        assert "dict" not in printed


@pytest.mark.parametrize("arguments", [["scale", "run_streem", "2"], ["worker", "run_streem"]])
def test_an_unknown_mode_is_reported_with_a_suggestion(arguments):
    done = axon(None, *arguments)
    assert done.returncode == 2
    message = " ".join(done.stderr.split())
    assert "'run_streem' is unknown; did you mean 'run_stream'?" in message
    assert "Value error" not in message


def test_unknown_names_without_a_close_match_list_the_known_ones():
    assert "expected one of run_sync, run, run_stream" in " ".join(axon(None, "scale", "batch", "2").stderr.split())
    assert "did you mean 'streams'?" in " ".join(axon(None, "loadtest", "strems").stderr.split())
    assert "did you mean 'warning'?" in " ".join(axon(None, "run", "echo", "x", "--log", "warn").stderr.split())


def test_broker_and_worker_alone(tmp_path):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    env = {**os.environ, "AXON_FRONTEND": endpoint, "AXON_RUN_DIR": str(tmp_path / "run")}
    quiet = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([AXON, *arguments], **quiet) for arguments in (["broker"], ["worker", "run"])]
    try:
        alone = Daemon(tmp_path, AXON_FRONTEND=endpoint)
        alone.endpoint = endpoint
        done = wait_until(lambda: _answer(alone), "an answer", 30)
        assert done["result"] == "alone"
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_TIMEOUT_S) == 0


def test_ctrl_c_ends_a_worker_that_is_loading_its_agents(tmp_path):
    (tmp_path / "slow.py").write_text(
        "from pathlib import Path\nPath('loading').touch()\nimport time\ntime.sleep(600)\n"
    )
    env = {**os.environ, "AXON_RUN_DIR": str(tmp_path / "run"), "AXON_AGENTS": "slow=slow:agent"}
    with subprocess.Popen([AXON, "worker", "run"], env=env, cwd=tmp_path) as process:
        wait_until((tmp_path / "loading").exists, "the import")
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_TIMEOUT_S) == -signal.SIGINT


def _answer(daemon: Daemon) -> dict | None:
    done = axon(daemon, "run", "echo", "alone")
    return lines(done)[-1] if done.returncode == 0 else None
