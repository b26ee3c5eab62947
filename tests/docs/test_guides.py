"""The tutorials and how-to guides: each command and program in them is executed as a reader would execute it."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from axon_zmq.testing.ports import free_port
from tests.support import ROOT, snippets
from tests.support.daemon import WAIT_TIMEOUT_S
from tests.support.served import BIN, Served, served

HOW_TO = sorted((snippets.DOCS / "how-to").glob("*.md"))
TUTORIALS = sorted((snippets.DOCS / "tutorials").glob("*.md"))
FILE_NAME = re.compile(r"# ([\w./-]+\.\w+)\n")
"""The first line of a block that the reader saves as a file."""
CHECKED_ELSEWHERE = {
    ("define-an-agent.md", "python"),  # in tests/docs/test_readme.py
    ("define-an-agent.md", "sh"),
    ("write-a-client.md", "sh"),  # a server that runs until Ctrl-C: tests/integration/test_conformance.py
    ("python.md", "python"),  # the last step of the tutorial, which needs a provider's key
    ("python.md", "sh"),
}


def console(page: Path, name: str) -> list[tuple[str, str]]:
    """The commands of a page's console blocks of this name, each with the output that the page shows."""
    code = "".join(
        b.code for b in snippets.blocks(page) if (b.role, b.language, b.name) == ("runnable", "console", name)
    )
    parts = re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def files(page: Path) -> dict[str, str]:
    """The files that a tutorial asks the reader to save."""
    named = ((FILE_NAME.match(block.code), block.code) for block in snippets.blocks(page))
    return {found[1]: code for found, code in named if found}


def matches(shown: str, printed: str) -> bool:
    """Whether a command printed what the page shows: `…` is anything in a line, and alone in a line any lines."""
    lines = [line.rstrip() for line in shown.strip().splitlines()]
    patterns = [r"(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n" for line in lines]
    found = "".join(f"{line.rstrip()}\n" for line in printed.strip().splitlines())
    return re.fullmatch("".join(patterns), found) is not None


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("one\n…\nfour", "one\ntwo\nthree\nfour\n", True),
        ("one\n…", "one\n", True),
        ("ready after … s", "ready after 1.5 s", True),
        ("one", "one\ntwo", False),
        ("…\ntwo", "one\n", False),
    ],
)
def test_shown_output_is_compared_line_by_line(shown: str, printed: str, expected: bool):
    assert matches(shown, printed) is expected


@pytest.mark.parametrize("page", [*HOW_TO, *TUTORIALS], ids=lambda page: f"{page.parent.name}-{page.name}")
def test_every_block_of_code_in_a_guide_is_executed(page: Path):
    for block in snippets.blocks(page):
        if block.language in ("python", "elixir", "console", "sh") and block.role is None:
            is_file = FILE_NAME.match(block.code) is not None
            assert is_file or (page.name, block.language) in CHECKED_ELSEWHERE, f"{page}:{block.line}"


# --- how-to guides ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_daemon() -> Iterator[Served]:
    """A supervised daemon with one worker of each mode, for all guides."""
    one_each = {f"AXON_{mode}_WORKERS": "1" for mode in ("RUN_SYNC", "RUN", "RUN_STREAM")}
    with served(**one_each) as daemon:
        daemon.wait_for("supervisorctl")
        yield daemon


@pytest.mark.parametrize("page", [page for page in HOW_TO if console(page, "guide")], ids=lambda page: page.stem)
def test_the_commands_of_a_guide_print_what_it_shows(page: Path, small_daemon: Served, tmp_path: Path):
    env = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "AXON_FRONTEND": small_daemon.endpoint,
        "AXON_RUN_DIR": str(small_daemon.run_dir),
        **{f"AXON_{mode}_WORKERS": "1" for mode in ("RUN_SYNC", "RUN", "RUN_STREAM")},
    }
    for command, shown in console(page, "guide"):
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=WAIT_TIMEOUT_S
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert matches(shown, done.stdout), (command, done.stdout)


def test_the_systemd_unit_leaves_the_daemon_time_to_drain():
    from axon_zmq.settings import Settings
    from axon_zmq.supervise.conf import LEAVE_SECONDS

    [block] = [each for each in snippets.blocks(snippets.DOCS / "how-to/run-as-a-service.md") if each.language == "ini"]
    unit = configparser.RawConfigParser(strict=False)
    unit.read_string(block.code)
    drain = Settings.model_fields["drain_seconds"].default
    assert int(unit["Service"]["TimeoutStopSec"]) > drain + LEAVE_SECONDS
    variables = re.findall(r"^Environment=AXON_(\w+)=", block.code, re.MULTILINE)
    assert variables
    assert {name.lower() for name in variables} <= Settings.model_fields.keys()


# --- tutorials ----------------------------------------------------------------------------------------


@contextmanager
def serving(commands: list[tuple[str, str]], folder: Path, env: dict[str, str]) -> Iterator[None]:
    """The daemon that a tutorial starts; its first lines are compared with the page."""
    *first, (serve, shown) = commands
    script = "\n".join([*(command for command, _ in first), f"exec {serve}"])
    daemon = subprocess.Popen(
        ["bash", "-c", script], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert daemon.stdout is not None
    try:
        printed: list[str] = []
        for line in daemon.stdout:
            printed.append(line.replace(env["AXON_FRONTEND"], "tcp://127.0.0.1:5570"))
            if line.startswith("serving on"):
                break
        expected, _, _ = shown.rstrip().rpartition("\n")  # the last line stands for what follows
        assert matches(expected, "".join(printed[printed.index(next(p for p in printed if p[:8] == "starting")) :]))
        yield
    finally:
        daemon.send_signal(signal.SIGINT)
        daemon.stdout.read()
        daemon.stdout.close()
        daemon.wait(WAIT_TIMEOUT_S)


def daemon_env(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a reader's terminal, with a port and a run directory that no other test uses."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AXON_", "PYTHON"))}
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    return {**env, "AXON_FRONTEND": endpoint, "AXON_RUN_DIR": str(folder / "run"), "LC_ALL": "C.UTF-8", **more}


def test_the_python_tutorial_works_from_the_first_to_the_last_step(tmp_path: Path):
    page = snippets.DOCS / "tutorials/python.md"
    env = daemon_env(tmp_path)
    # Stands for pip, which would need the network: makes this checkout and its packages visible in the new environment.
    pip = f"""pip() {{
        [ "$*" = "install axon-zmq" ] || return 1
        site=$(echo .venv/lib/python*/site-packages)
        printf '%s\\n' '{ROOT}' '{sysconfig.get_path("purelib")}' > "$site/packages.pth"
        ln -s '{BIN}/axon-zmq' .venv/bin/axon-zmq
    }}"""
    install = [command.replace("python3", sys.executable) for command, _ in console(page, "install")]
    done = subprocess.run(["bash", "-ec", "\n".join([pip, *install])], cwd=tmp_path, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "parcels"
    for name, code in files(page).items():
        (folder / name).write_text(code)
    activated = env | {"PATH": f"{folder}/.venv/bin:{env['PATH']}"}

    def run(command: str) -> str:
        ran = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=activated, capture_output=True, text=True, timeout=WAIT_TIMEOUT_S
        )
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
        return ran.stdout

    with serving(console(page, "serve"), folder, activated):
        for command, shown in console(page, "ask"):
            assert matches(shown, run(command)), command
        programs = {f"{block.name}.py": block.code for block in snippets.blocks(page) if block.role == "prints"}
        assert programs.keys() == files(page).keys() - {"my_agents.py"}
        for name, shown in programs.items():
            printed = run(f"python {name}")
            assert snippets.same_text(shown, printed), printed


@pytest.mark.skipif(shutil.which("mix") is None, reason="elixir is not installed")
@pytest.mark.skipif(snippets.no_elixir() is not None, reason=str(snippets.no_elixir()))
@pytest.mark.timeout(300)
def test_the_elixir_tutorial_works_from_the_first_to_the_last_step(tmp_path: Path):
    page = snippets.DOCS / "tutorials/elixir.md"
    deps = os.environ[snippets.ELIXIR_DEPS]
    env = daemon_env(tmp_path, **{snippets.ELIXIR_DEPS: deps, "ERL_LIBS": deps})
    (tmp_path / "axon_zmq").symlink_to(ROOT)  # stands for `git clone`

    def run(command: str, folder: Path) -> str:
        ran = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=200,
            stdin=subprocess.DEVNULL,
        )
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
        return ran.stdout

    (new, shown), (enter, _) = console(page, "new")
    assert (enter, matches(shown, run(new, tmp_path))) == ("cd parcels", True)
    folder = tmp_path / "parcels"
    given = files(page)
    # The packages of hex are a folder on ERL_LIBS here; the client package is a dependency as on the page.
    deps_of_page = re.sub(r".*\{:(chumak|msgpax), .*\n", "", given.pop("mix.exs").partition("\n")[2])
    deps_of_page = deps_of_page.replace('elixir"},', 'elixir"}')
    mix = (folder / "mix.exs").read_text()
    mix, replaced = re.subn(r"  defp deps do\n.*?\n  end\n", lambda _: deps_of_page, mix, flags=re.DOTALL)
    assert replaced == 1
    (folder / "mix.exs").write_text(mix.replace("start_permanent:", "prune_code_paths: false,\n      start_permanent:"))
    for name, code in given.items():
        (folder / name).write_text(code)
    (clone, _), (enter, _), serve = console(page, "serve")
    assert clone.startswith("git clone") and enter == "cd axon_zmq"
    with serving([serve], tmp_path / "axon_zmq", env):
        for command, shown in console(page, "ask"):
            printed = run(command, folder)
            assert matches(shown, printed), (command, printed)
        [readme] = [block for block in snippets.blocks(snippets.ROOT / "README.md") if block.language == "elixir"]
        [shown] = [block for block in snippets.blocks(snippets.ROOT / "README.md") if block.name == "elixir-package"]
        (folder / "readme.exs").write_text(readme.code.replace("tcp://127.0.0.1:5570", env["AXON_FRONTEND"]))
        assert snippets.same_text(shown.code, run("mix run readme.exs", folder))
