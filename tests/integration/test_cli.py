"""The command `axon-zmq`: output in a pipe and on a terminal, and exit codes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from pathlib import Path

import pytest
import zmq
from rich.console import Console

from axon_zmq.cli import status
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.msgpack import pack
from axon_zmq.testing.ports import free_port
from tests.support.command import AXON, axon, lines, on_a_terminal
from tests.support.daemon import WAIT_TIMEOUT_S, Daemon, wait_until


def test_help_from_the_shell():
    done = axon(None, "--help")
    assert done.returncode == 0
    assert "Usage: axon-zmq [OPTIONS] COMMAND" in done.stdout


def test_version_prints_the_version():
    from axon_zmq import __version__

    assert axon(None, "--version").stdout.strip() == __version__


def test_run_in_a_pipe_prints_one_json_line(daemon):
    for more in ([], ["--sync"]):
        done = axon(daemon, "run", "echo", "-", *more, stdin="from a pipe")
        [line] = lines(done)
        assert (done.returncode, line["kind"], line["result"]) == (0, "complete", "from a pipe")


def test_stream_in_a_pipe_prints_json_lines(daemon):
    done = axon(daemon, "stream", "echo", "one two")
    assert [(line["kind"], line.get("data")) for line in lines(done)] == [
        ("chunk", "one"),
        ("chunk", " two"),
        ("complete", None),
    ]
    assert any(line["type"] == "event" for line in lines(axon(daemon, "stream", "echo", "x", "--all-events"))[:-1])


def test_stream_on_a_terminal_prints_text(daemon):
    assert on_a_terminal(daemon, "stream", "echo", "one [two] three") == "one [two] three\n"
    seen = on_a_terminal(daemon, "stream", "weather", "Oslo?")
    assert seen.startswith('[temperature {"place":"Oslo"}]\n[success: ')
    assert '"Oslo": -3.0' in seen


def test_run_on_a_terminal_prints_text(daemon):
    assert on_a_terminal(daemon, "run", "echo", "hi there") == "hi there\n"


def test_an_output_schema_can_be_read_from_a_file(daemon, tmp_path):
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


def test_settings_that_no_process_could_start_with_are_reported_before_any_starts(tmp_path):
    (tmp_path / "uvloop.py").write_text("raise ImportError")
    env = {"AXON_RUN_DIR": str(tmp_path / "run"), "AXON_LOOP": "uvloop", "PYTHONPATH": _path(tmp_path)}
    frontend = f"ipc://{tmp_path}/nowhere/socket"
    for more, says in (({}, "AXON_LOOP is uvloop"), ({"AXON_FRONTEND": frontend}, "not writable: create it")):
        refused = axon(None, "serve", **{"AXON_FRONTEND": f"ipc://{tmp_path}/socket", **env, **more})
        assert refused.returncode == 2
        assert says in refused.stderr.replace("\n", " ")
        assert not (tmp_path / "run").exists()
    lone = axon(None, "broker", AXON_FRONTEND=frontend, AXON_RUN_DIR=str(tmp_path / "run"))
    assert (lone.returncode, "not writable: create it" in lone.stderr) == (2, True)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"AXON_RUN_DIR": "x" * 90}, "the limit is 107"),
        ({"AXON_LOOP": "uvloop"}, "AXON_LOOP is uvloop"),
        ({"AXON_FRONTEND": "ipc://nowhere/socket"}, "not writable: create it"),
        ({"AXON_FRONTEND": "ipc://" + "x" * 120}, "the limit is 107"),
        ({"AXON_RUN_WORKERS": "-1"}, "AXON_RUN_WORKERS"),
    ],
)
def test_a_refused_serve_creates_nothing(tmp_path, more, says):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "uvloop.py").write_text("raise ImportError")
    (empty := tmp_path / "empty").mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AXON_")}
    env = {**inherited, "PYTHONPATH": _path(tmp_path / "modules"), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"AXON_FRONTEND": f"tcp://127.0.0.1:{free_port()}", **more}
    refused = subprocess.run([AXON, "serve"], env=env, cwd=empty, capture_output=True, text=True, timeout=240)
    assert refused.returncode == 2
    assert says in refused.stderr.replace("\n", " ")
    assert list(empty.iterdir()) == []


def test_a_frontend_may_be_in_a_run_directory_that_does_not_exist_yet(tmp_path):
    run_dir = tmp_path / "new" / "run"
    for folder in (run_dir, run_dir.parent):
        done = axon(None, "doctor", AXON_RUN_DIR=str(run_dir), AXON_FRONTEND=f"ipc://{folder}/frontend")
        assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run_dir", ["/proc/axon", "/sys/axon", "/etc/passwd/run"])
def test_doctor_and_serve_refuse_the_same_run_directories(run_dir):
    place = {"AXON_RUN_DIR": run_dir, "AXON_FRONTEND": f"tcp://127.0.0.1:{free_port()}"}
    examined, served = axon(None, "doctor", **place), axon(None, "serve", **place)
    assert (examined.returncode, served.returncode) == (1, 2)
    [line] = [line for line in examined.stdout.splitlines() if line.startswith("FAIL")]
    assert line.removeprefix("FAIL     run directory: ") == served.stderr.strip().removeprefix("error: ")


def test_an_invalid_endpoint_is_reported_without_an_exception_name():
    for command in (["ping"], ["run", "echo", "x"], ["doctor"]):
        done = axon(None, *command, "--endpoint", "foo")
        assert done.returncode == 2
        assert done.stderr.startswith("error: invalid endpoint 'foo'")


def test_an_unknown_agent_or_invalid_setting_has_exit_code_2():
    assert axon(None, "run", "{not json", "x").returncode == 2
    done = axon(None, "conf", AXON_FRONTEND="tcp://0.0.0.0:1")
    assert done.returncode == 2
    assert "open to other machines" in done.stderr
    assert axon(None, "no-such-command").returncode == 2


def test_agents_and_ping_print_what_the_daemon_has(daemon):
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


def test_doctor_reports_problems_and_how_to_fix_them(daemon, tmp_path):
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


def test_doctor_compares_the_agents_of_the_daemon_with_the_configured_ones(daemon):
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


def test_doctor_prints_starting_for_a_broker_that_recovers(tmp_path):
    """A broker that has just started reports `settling`; nothing has failed yet."""
    modes = {mode: {"workers": 0, "free": 0, "queued": 0, "degraded": False} for mode in MODES}
    body = {"version": "9", "modes": modes, "settling": True, "boot": "b", "protocol": 1}
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
    assert "known values: run_sync, run, run_stream" in " ".join(axon(None, "scale", "batch", "2").stderr.split())
    assert "did you mean 'streams'?" in " ".join(axon(None, "loadtest", "strems").stderr.split())
    assert "did you mean 'warning'?" in " ".join(axon(None, "run", "echo", "x", "--log", "warn").stderr.split())


def test_broker_and_worker_can_be_started_alone(tmp_path):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    env = {**os.environ, "AXON_FRONTEND": endpoint, "AXON_RUN_DIR": str(tmp_path / "run")}
    quiet = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([AXON, *arguments], **quiet) for arguments in (["broker"], ["worker", "run"])]
    try:
        alone = Daemon(tmp_path, AXON_FRONTEND=endpoint)
        alone.endpoint = endpoint
        done = wait_until(lambda: _answer(alone), "an answer")
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


def _path(first: Path) -> str:
    """The value of PYTHONPATH with another directory at its beginning."""
    return os.pathsep.join(filter(None, (str(first), os.environ.get("PYTHONPATH"))))


def _answer(daemon: Daemon) -> dict | None:
    done = axon(daemon, "run", "echo", "alone")
    return lines(done)[-1] if done.returncode == 0 else None
