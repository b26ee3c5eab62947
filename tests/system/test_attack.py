"""The attack scenes: the quick ones hold, and the tool refuses to attack anything but its own daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attack.__main__ import SCENES, heading, line, main, play
from attack.scene import HEAD, Attacker, Row, Scene, Stage
from attack.target import p99
from attack.wire import Raw, header, ready
from bench.report import machine
from tests.support import ROOT

NAMES = [scene.name for scene in SCENES]
QUICK = [scene.name for scene in SCENES if scene.is_quick]


@pytest.mark.parametrize("name", QUICK)
def test_each_quick_attack_achieves_nothing(name: str):
    command = [sys.executable, "-m", "attack", "--quick", "--only", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_each_attack_achieves_nothing(name: str):
    command = [sys.executable, "-m", "attack", "--only", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("endpoint", ["tcp://192.0.2.1:5570", "tcp://localhost:5570", "ipc:///run/axon.sock"])
def test_only_a_daemon_on_127_0_0_1_is_attacked(endpoint: str):
    for attack in (Raw, Attacker):
        with pytest.raises(ValueError, match="refusing to attack"):
            attack(endpoint)


def test_an_attack_that_fails_with_an_exception_counts_as_broken():
    def fail(stage: Stage) -> None:
        stage.row.inputs = "1 message"
        raise RuntimeError("the daemon does not serve")

    row = play(Scene("x", "y", fail), ROOT, quick=True)
    assert row.broken == ["RuntimeError: the daemon does not serve"]
    assert "BROKEN: RuntimeError" in row.cells()[-1]


def test_the_table_has_a_cell_for_each_heading():
    row = Row("x", inputs="a|b", crashes=["broker"], wrong=2, idle_ms=1.4, notes=["note"])
    assert row.cells() == ("x", "a|b", "1", "2", "1 ms", "-", "-", "-", "held; note")
    lines = [*heading(machine() | {"date": "today"}).splitlines(), line(row.cells())]
    assert lines[2].count("|") == lines[4].count("|") == len(HEAD) + 1


def test_p99_is_that_of_the_slowest_mode():
    lines = [{"mode": "run", "ms": float(each)} for each in range(100)] + [{"mode": "run_sync", "ms": 500.0}]
    assert p99(lines) == 500.0
    assert p99(lines[:100]) == 98.0


def test_frames_have_the_form_of_zmtp():
    assert header(3) == b"\x00\x03"
    assert header(256, 1) == b"\x03" + (256).to_bytes(8, "big")
    assert ready(b"id").endswith(b"\x08Identity\x00\x00\x00\x02id")


def test_the_tool_rejects_unknown_scenes_and_folders_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for arguments, message in ((["--only", "x"], "unknown scene"), (["--checkout", str(tmp_path)], "no checkout")):
        monkeypatch.setattr(sys, "argv", ["attack", *arguments])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert message in capsys.readouterr().err
