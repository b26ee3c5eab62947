"""The commands of the README and of the operations page, executed."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from axon_zmq.testing.ports import free_port
from tests.support import ROOT, snippets
from tests.support.daemon import WAIT_TIMEOUT_S, wait_until
from tests.support.served import BIN, Served, served

README = ROOT / "README.md"
CONSOLE = {
    block.name: block.code
    for block in snippets.blocks(README)
    if (block.role, block.language) == ("runnable", "console")
}


@pytest.fixture(scope="module")
def serving() -> Iterator[Served]:
    with served() as daemon:
        yield daemon


def steps(console: str) -> list[tuple[str, str]]:
    """Each command of a console block with its output on the page."""
    parts = [part.partition("\n") for part in console.split("$ ") if part]
    return [(command, output) for command, _, output in parts]


def test_the_first_command_prints_what_the_readme_shows(serving: Served):
    [(command, shown)] = steps(CONSOLE["serve"])
    assert command == "./scripts/run"  # what `served` has started
    serving.wait_for("processes")
    printed = "".join(serving.output)
    printed = printed[printed.index("starting:") :]
    # A port and a folder other than the defaults.
    printed = printed.replace(f" --endpoint {serving.endpoint}", "").replace(serving.endpoint, "tcp://127.0.0.1:5570")
    assert snippets.same_text(shown, printed), printed


def test_the_suggested_commands_work_as_printed(serving: Served):
    offered = [line.split(maxsplit=1)[1] for line in serving.output if ".venv/bin/" in line]
    assert len(offered) == 3
    for command in offered:
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert done.stdout


def test_the_commands_of_the_readme_print_what_it_shows(serving: Served):
    env = {**os.environ, "AXON_FRONTEND": serving.endpoint}
    for command, shown in steps(CONSOLE["client"]):
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert snippets.same_text(shown, done.stdout), (command, done.stdout)


def test_the_commands_of_the_operations_page_work_from_a_checkout(serving: Served):
    """Run them in a copy with another port: the default port may be in use on this machine."""
    blocks = [block for block in snippets.blocks(snippets.DOCS / "operations.md") if block.language == "console"]
    control, health = (steps(block.code) for block in blocks)
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "AXON_FRONTEND": serving.endpoint}
    with tempfile.TemporaryDirectory(prefix="axon-") as folder:
        env["AXON_RUN_DIR"] = str(Path(folder) / "run")
        for command, _ in health:
            assert subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True).returncode == 0
        (Path(folder) / "run").mkdir()  # which a checkout has from the start
        conf = (ROOT / "supervisord.conf").read_text().replace("5570", str(free_port()))
        (Path(folder) / "supervisord.conf").write_text(conf)
        start, (status, shown), shutdown = control

        def run(command: str) -> str:
            return subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True).stdout

        run(start[0])
        try:
            names = sorted(line.split()[0] for line in shown.splitlines())
            wait_until(lambda: run(status).count("RUNNING") == len(names), "all programs", 60)
            assert sorted(line.split()[0] for line in run(status).splitlines()) == names
        finally:
            assert "Shut down" in run(shutdown[0])
            wait_until(lambda: not (Path(folder) / "run/supervisord.pid").exists(), "the end of supervisord", 60)


def test_the_settings_file_of_the_settings_page_is_valid(tmp_path, monkeypatch):
    from axon_zmq import settings

    [toml] = [
        block.code for block in snippets.blocks(snippets.DOCS / "reference/settings.md") if block.language == "toml"
    ]
    (tmp_path / "axon.toml").write_text(toml)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AXON_MODEL", raising=False)
    loaded = settings.load()
    assert (loaded.run_workers, loaded.agents) == (4, {"support": "my_app.agents:support"})


def test_a_custom_agent_works_as_the_guide_shows(tmp_path):
    """The module and the commands of the guide, with another port and without a model provider."""
    guide = snippets.DOCS / "how-to/define-an-agent.md"
    python, shell = (
        next(block.code for block in snippets.blocks(guide) if block.role is None and block.language == language)
        for language in ("python", "sh")
    )
    (tmp_path / "my_agents.py").write_text(python)
    run_dir = tmp_path / "run"
    env = {**os.environ, "AXON_RUN_DIR": str(run_dir), "AXON_FRONTEND": f"tcp://127.0.0.1:{free_port()}"}
    env |= {"AXON_RUN_SYNC_WORKERS": "0", "AXON_RUN_STREAM_WORKERS": "0"}
    daemon = subprocess.Popen(
        ["bash", "-c", shell.replace("axon-zmq serve", f"exec {shlex.quote(str(ROOT / 'scripts/run'))}")],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ask = [BIN / "axon-zmq", "agents", "support"]
        asked = lambda: subprocess.run(ask, env=env, capture_output=True, text=True)  # noqa: E731
        done = wait_until(lambda: (answer := asked()).returncode == 0 and answer, "the agent", 60)
        assert '"output_schema"' in done.stdout
    finally:
        daemon.terminate()
        assert daemon.wait(WAIT_TIMEOUT_S) == 0
