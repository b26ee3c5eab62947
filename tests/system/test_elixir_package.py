"""The Elixir package: its tests (ExUnit), format and compiler warnings; skipped without `elixir`.

Tests of pure modules always run. Tests with a daemon need AXON_ELIXIR_DEPS, a folder of compiled packages:
chumak/ebin, msgpax/ebin and, for its transport, erlzmq/ebin; ExUnit reports the tests that it skips.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests.support import ROOT, snippets
from tests.support.daemon import Daemon

PACKAGE = ROOT / "clients" / "elixir"

pytestmark = pytest.mark.skipif(shutil.which("mix") is None, reason="elixir is not installed")


def mix(*arguments: str, seconds: float = 100, deps: str | None = None, environment: str = "test") -> str:
    deps = os.environ.get(snippets.ELIXIR_DEPS, "") if deps is None else deps
    env = {**os.environ, snippets.ELIXIR_DEPS: deps, "ERL_LIBS": deps, "MIX_ENV": environment, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["mix", *arguments],
        cwd=PACKAGE,
        env=env,
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_elixir_package_is_formatted_and_compiles_without_warnings():
    mix("format", "--check-formatted")
    mix("compile", "--force", "--warnings-as-errors")


def test_the_elixir_package_compiles_without_warnings_without_optional_packages():
    mix("compile", "--force", "--warnings-as-errors", deps="", environment="prod")


def test_a_transport_whose_package_is_missing_is_rejected_with_a_fix():
    start = "IO.puts(elem(AxonCore.Connection.start_link(transport: AxonCore.Transport.Erlzmq), 1).message)"
    said = mix("run", "-e", start, deps="", environment="prod")
    assert "AxonCore.Transport.Erlzmq needs a package that is missing: add {:erlzmq, " in said


def test_the_pure_elixir_tests_pass_without_optional_packages():
    said = mix("test", deps="")
    assert re.search(r"\d+ tests, 0 failures", said)
    assert "warning:" not in said


@pytest.mark.timeout(420)
def test_exunit_passes(capsys: pytest.CaptureFixture[str]):
    said = mix("test", seconds=400)
    [summary] = re.findall(r".*\d+ tests, 0 failures.*", said)
    left_out = re.findall(r"left out: .*", said)
    with capsys.disabled():
        print(f"\nExUnit: {summary}", *left_out, sep="\n  ")
    if snippets.no_elixir() is None:
        assert not left_out or "erlzmq" in left_out[0]


@pytest.mark.skipif(snippets.no_elixir() is not None, reason=str(snippets.no_elixir()))
def test_the_first_run_of_the_readme_works(daemon: Daemon):
    readme = (PACKAGE / "README.md").read_text(encoding="utf-8")
    [code] = [code for code in re.findall(r"```elixir\n(.*?)```", readme, re.DOTALL) if "Supervisor.start_link" in code]
    code = code.replace("name: MyApp.Axon,", f'name: MyApp.Axon, endpoint: "{daemon.endpoint}",')
    said = [line for line in mix("run", "-e", code).splitlines() if line.strip()]
    # The compiler's messages may come first.
    assert said[-4:] == ["Hello from Elixir", '"one"', '" two"', '" three"']


EXAMPLES = {
    "hello": [
        "Hello from Agent.run",
        "Hello from Agent.run_sync",
        '%{city: "Oslo", day: ~D[2026-11-27]}',
        "unknown_agent",
    ],
    "streaming": [
        *(f"{how} 0{n}" for how in ("streamed", "called", "received") for n in range(5)),
        "complete: 00 01 02 03 04",
    ],
    "tools": ["[-3,16]", '%{"celsius" => -3.0, "place" => "Oslo"}'],
    "approval": ["may it pay 12?", "may it pay 9000?", '["paid 12","too much"]'],
    "chat": ["turn 1: 20 words", "turn 2: 20 words", "4 messages"],
}


@pytest.mark.skipif(snippets.no_elixir() is not None, reason=str(snippets.no_elixir()))
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_elixir_examples_run(daemon: Daemon, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AXON_FRONTEND", daemon.endpoint)
    said = [line for line in mix("run", f"examples/{name}.exs").splitlines() if line.strip()]
    assert len(said) == len(EXAMPLES[name])
    assert all(line.startswith(expected) for line, expected in zip(said, EXAMPLES[name], strict=True)), said


def test_every_elixir_example_is_run_or_shown():
    there = {path.stem for path in (PACKAGE / "examples").glob("*.exs")}
    assert there == EXAMPLES.keys()
