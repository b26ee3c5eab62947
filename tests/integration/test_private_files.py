"""Files, sockets and core dumps of the daemon's processes: nothing is readable for other users, or stays for long."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from axon_zmq import Client
from axon_zmq.process.run_dir import HANDOVER
from axon_zmq.protocol import limits
from axon_zmq.testing.ports import free_port
from tests.support.command import axon
from tests.support.daemon import WAIT_TIMEOUT_S, Daemon, wait_until
from tests.support.owners import ANOTHER_USER

ABORTS = """
import os, sys
from axon_zmq.process.core_dumps import disable_core_dumps
if sys.argv[1] == "off":
    disable_core_dumps()
os.abort()
"""


def allow_core_dumps() -> None:
    """Raise the soft limit of this process, which most shells set to 0."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def test_a_process_that_turned_core_dumps_off_leaves_none(tmp_path: Path):
    dumped: dict[str, bool] = {}
    for state in ("on", "off"):
        process = subprocess.Popen(
            [sys.executable, "-c", ABORTS, state],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            preexec_fn=allow_core_dumps,
        )
        _, status = os.waitpid(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == -signal.SIGABRT
        dumped[state] = os.WCOREDUMP(status)
    print(f"core dumped: {dumped}")  # "on" depends on the machine's settings
    assert dumped["off"] is False


class Used(NamedTuple):
    """A daemon on `ipc://`, started with the umask 0, whose only worker has executed a run and was then stopped."""

    daemon: Daemon
    folder: Path
    """The directory of all its files."""
    core_limits: dict[str, tuple[int, int]]
    """Limits (soft, hard) on the size of core dumps, for each process."""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Used]:
    folder = tmp_path_factory.mktemp("used")
    daemon = Daemon(folder)
    daemon.endpoint = f"ipc://{folder}/front"
    previous = os.umask(0)
    try:
        daemon.start_broker()
        daemon.start_worker("run")
    finally:
        os.umask(previous)
    try:
        daemon.wait(run=1)
        with Client(daemon.endpoint) as client:
            assert client.run("echo", "a secret prompt").result == "a secret prompt"
        limits_of = {
            name: psutil.Process(process.pid).rlimit(psutil.RLIMIT_CORE) for name, process in daemon.processes.items()
        }
        assert daemon.processes["run-1"].poll() is None
        daemon.processes["run-1"].send_signal(signal.SIGTERM)  # it leaves a handover file
        daemon.processes["run-1"].wait(WAIT_TIMEOUT_S)
        yield Used(daemon, folder, limits_of)
    finally:
        daemon.stop()


def test_no_process_of_a_daemon_writes_a_core_dump_and_a_broker_on_ipc_is_only_for_its_user(used: Used):
    assert used.core_limits.keys() == {"broker", "run-1"}
    for name, (soft, hard) in used.core_limits.items():
        assert 0 <= soft <= hard <= 1, name
    files = [path for path in used.folder.rglob("*") if path.is_file() or path.is_socket()]
    modes = {path.name: path.stat().st_mode & 0o777 for path in files if path.suffix != ".log"}
    assert {"front", "front.lock", "broker.sock", "broker.lock", "journal"} < modes.keys()
    assert any(path.suffix == ".msgpack" for path in files)
    assert set(modes.values()) == {0o600}, modes


def test_a_handover_file_that_no_worker_reads_is_deleted_while_the_broker_runs(used: Used):
    folder = used.daemon.run_dir / HANDOVER
    (file,) = folder.iterdir()
    assert b"a secret prompt" in file.read_bytes()
    # A copy, so that the other test finds the file itself.
    old, fresh = folder / "old.msgpack", folder / "fresh.msgpack"
    for path in (old, fresh):
        path.write_bytes(file.read_bytes())
        path.chmod(0o600)
    long_ago = time.time() - limits.RESUME_WINDOW - 1
    os.utime(old, times=(long_ago, long_ago))
    wait_until(lambda: not old.exists(), "the deletion of the old file")
    assert fresh.exists()
    fresh.unlink()


def test_a_broker_that_stops_during_recovery_waits_without_using_the_processor(tmp_path: Path):
    daemon = Daemon(tmp_path)
    daemon.start_broker("--workers=1")  # no worker comes, so recovery lasts its full time
    try:
        wait_until(lambda: "is ready" in daemon.log("broker"), "the broker")
        process = daemon.processes["broker"]
        before, started = sum(psutil.Process(process.pid).cpu_times()[:2]), time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        used, took = usage.ru_utime + usage.ru_stime - before, time.monotonic() - started
        print(f"{used:.2f} s of the processor in {took:.2f} s")
        assert process.returncode == 0
        assert used < 0.25 * took
    finally:
        daemon.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to create files of another user")
def test_serve_and_doctor_refuse_a_run_directory_that_another_user_controls(tmp_path: Path):
    tmp_path.chmod(0o755)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    os.chown(theirs, ANOTHER_USER, ANOTHER_USER)
    place = {"AXON_FRONTEND": f"tcp://127.0.0.1:{free_port()}", "AXON_RUN_DIR": str(theirs / "run")}
    for command, code in (("serve", 2), ("doctor", 1)):
        done = axon(None, command, **place)
        assert done.returncode == code, done.stdout + done.stderr
        text = " ".join((done.stdout + done.stderr).split())
        assert f"(owner uid {ANOTHER_USER}, mode 0777) belongs to another user" in text, text
    assert list(theirs.iterdir()) == []
