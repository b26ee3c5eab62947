"""A tied command ends with its parent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from axon_zmq.process import lifeline
from tests.support import ROOT
from tests.support.daemon import wait_until
from tests.support.registries import SERVER


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def started(log: Path) -> list[int]:
    """The pids of the servers that appended to a log, in order."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def test_children_of_a_tied_command_end_with_its_parent(tmp_path):
    """A shell that starts a program which ignores SIGTERM, as npx and uvx do."""
    pids = tmp_path / "pids"
    deaf = f"trap '' TERM HUP; {sys.executable} {SERVER} --deaf --log {pids} & echo $$ >> {pids}; wait"
    code = (
        f"import subprocess, time; from axon_zmq.process import lifeline;"
        f"subprocess.Popen(lifeline.tied_command(['sh', '-c', {deaf!r}]), start_new_session=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_until(lambda: len(started(pids)) == 2)
    parent.kill()
    parent.wait()
    wait_until(lambda: all(gone(pid) for pid in started(pids)), "the orphans to be gone")


def test_a_tied_command_keeps_its_arguments_pipes_and_exit_code():
    shown = subprocess.run(
        lifeline.tied_command(["printf", "%s|", "a b", "$c"]), capture_output=True, start_new_session=True
    )
    assert (shown.stdout, shown.returncode) == (b"a b|$c|", 0)
    ended = subprocess.run(lifeline.tied_command(["sh", "-c", "exit 7"]), capture_output=True, start_new_session=True)
    assert ended.returncode == 7
    missing = subprocess.run(lifeline.tied_command(["no-such"]), capture_output=True, start_new_session=True)
    assert (missing.returncode, missing.stderr) == (127, b"cannot start 'no-such': No such file or directory\n")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the parent is looked at each second")
def test_a_tied_command_is_not_started_if_its_parent_has_exited(tmp_path):
    interpreter, *options, _, touch, file = lifeline.tied_command(["touch", str(tmp_path / "file")])
    done = subprocess.run([interpreter, *options, "1", touch, file], start_new_session=True)
    assert done.returncode == 1
    assert not (tmp_path / "file").exists()
