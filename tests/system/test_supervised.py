"""The daemon as a user starts it: `scripts/run`, a real supervisord, signals and kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from axon_zmq import Client
from axon_zmq.errors import AxonError
from axon_zmq.testing.ports import free_port
from tests.support import ROOT
from tests.support.daemon import WAIT_TIMEOUT_S, wait_until
from tests.support.served import BIN, GREETED, PROGRAMS, family, served


def status(run_dir: Path) -> dict[str, str]:
    """The state of each program by `supervisorctl status`."""
    listing = subprocess.run(
        [BIN / "supervisorctl", "-c", run_dir / "supervisord.conf", "status"], capture_output=True, text=True
    )
    return dict(line.split()[:2] for line in listing.stdout.splitlines())


def test_the_demo_shows_each_mode_exits_with_0_and_leaves_no_process():
    with served("--demo") as daemon:
        out, _ = daemon.process.communicate(timeout=240)
        assert daemon.process.returncode == 0, out
        assert "run_sync    Hello from Agent.run_sync" in out
        assert "run         Hello from Agent.run" in out
        assert "8 chunks in" in out
        assert out.endswith("stopped: all processes have ended\n")
        assert daemon.family() == {}


def test_serve_is_ready_soon_is_private_and_survives_a_kill_of_each_process():
    with served() as daemon:
        started = time.monotonic()
        daemon.wait_for(GREETED)
        took = time.monotonic() - started
        print(f"ready and shown after {took:.1f} s")
        printed = "".join(daemon.output)
        assert f"serving on {daemon.endpoint}" in printed
        assert printed.count("axon-zmq") >= 2
        assert daemon.run_dir.stat().st_mode & 0o777 == 0o700
        for path in daemon.run_dir.iterdir():
            assert path.stat().st_mode & 0o077 == 0, path
        assert status(daemon.run_dir).keys() == PROGRAMS
        assert daemon.family().keys() == PROGRAMS | {"supervisord"}
        before = daemon.family()
        with Client(daemon.endpoint) as client:
            killed = {"run-1", "run_sync-2", "run_stream-1", "broker", "events"}
            for name in killed:
                before[name].kill()

            def back() -> bool:
                now = daemon.family()
                return now.keys() == before.keys() and all(now[name].pid != before[name].pid for name in killed)

            wait_until(back, "the processes", 60)
            after = daemon.family()
            assert {name for name in PROGRAMS if after[name].pid != before[name].pid} == killed
            wait_until(lambda: all_there(client), "all workers", 60)
            assert client.run_sync("echo", "again").result == "again"
            wait_until(lambda: set(status(daemon.run_dir).values()) == {"RUNNING"}, "supervisorctl status", 60)
            client.run("echo", "where is it", id="look-for-this")
            logs = lambda: "".join(path.read_text() for path in daemon.run_dir.glob("run-*.log"))  # noqa: E731
            wait_until(lambda: "id=look-for-this" in logs(), "a line about the run")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(WAIT_TIMEOUT_S) == 0
        assert daemon.family() == {}


def test_a_broker_that_aborts_several_times_in_a_row_serves_again_at_once_each_time():
    aborts = 5
    with served(AXON_RUN_SYNC_WORKERS="0", AXON_RUN_WORKERS="1", AXON_RUN_STREAM_WORKERS="0") as daemon:
        daemon.wait_for(GREETED)
        for name, process in daemon.family().items():
            assert max(process.rlimit(psutil.RLIMIT_CORE)) <= 1, name  # each of them would dump core at SIGABRT
        worker = daemon.family()["run-1"]
        served_after, pids = [], set()
        for number in range(aborts):
            broker = daemon.family()["broker"]
            pids.add(broker.pid)
            broker.send_signal(signal.SIGABRT)
            killed_at = time.monotonic()
            with Client(daemon.endpoint) as client:
                assert client.run("echo", f"after abort {number}").result == f"after abort {number}"
            served_after.append(time.monotonic() - killed_at)
        print("answered after", ", ".join(f"{seconds:.2f} s" for seconds in served_after))
        assert len(pids) == aborts
        # With delays of the broker and of supervisord as for a worker, the five took 24 s.
        assert sum(served_after) < 30
        # supervisord accepted each start, and so did not delay the next one.
        started = "success: broker entered RUNNING state"
        log = daemon.run_dir / "supervisord.log"
        wait_until(lambda: log.read_text().count(started) > aborts, "the last start in supervisord's log")
        assert "waiting" not in (daemon.run_dir / "broker.log").read_text()
        assert daemon.family()["run-1"].pid == worker.pid
        assert set(status(daemon.run_dir).values()) == {"RUNNING"}


def all_there(client: Client) -> bool:
    try:
        pong = client.ping(2)
    except AxonError:
        return False
    return not pong["settling"] and all(pool["workers"] == 2 for pool in pong["modes"].values())


def test_a_killed_supervisord_leaves_no_orphan_and_the_next_start_is_clean():
    with served() as daemon:
        daemon.wait_for(GREETED)
        daemon.family()["supervisord"].kill()
        wait_until(lambda: not daemon.family(), "the end of all its processes")
        assert daemon.process.wait(WAIT_TIMEOUT_S) != 0
        again = subprocess.run(
            [ROOT / "scripts/run", "--demo"],
            env={**os.environ, "AXON_RUN_DIR": str(daemon.run_dir), "AXON_FRONTEND": daemon.endpoint},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert again.returncode == 0, again.stdout + again.stderr


def test_ctrl_c_stops_the_daemon_even_if_serve_itself_is_killed():
    with served(AXON_RUN_SYNC_WORKERS="0", AXON_RUN_WORKERS="1", AXON_RUN_STREAM_WORKERS="0") as daemon:
        daemon.wait_for(GREETED)
        assert status(daemon.run_dir).keys() == {"broker", "events", "run-1"}
        daemon.process.send_signal(signal.SIGINT)
        daemon.wait_for("stopping: waiting up to 60 s for running requests")
        assert daemon.process.wait(WAIT_TIMEOUT_S) == 0
        assert daemon.family() == {}
    with served(AXON_RUN_SYNC_WORKERS="0", AXON_RUN_WORKERS="1", AXON_RUN_STREAM_WORKERS="0") as daemon:
        daemon.wait_for(GREETED)
        daemon.process.kill()
        wait_until(lambda: not daemon.family(), "the end of supervisord and its programs")


def test_two_daemons_with_different_settings_run_side_by_side():
    few = {"AXON_RUN_SYNC_WORKERS": "0", "AXON_RUN_STREAM_WORKERS": "0"}
    with (
        served(AXON_RUN_WORKERS="1", AXON_AGENTS="one=axon_zmq.agents.echo:agent", **few) as one,
        served(AXON_RUN_WORKERS="1", AXON_AGENTS="two=axon_zmq.agents.echo:agent", **few) as two,
    ):
        for daemon, agent in ((one, "one"), (two, "two")):
            daemon.wait_for(GREETED)
            with Client(daemon.endpoint) as client:
                assert list(client.describe()) == [agent]


def test_a_second_daemon_in_the_same_run_directory_is_rejected():
    with served(AXON_RUN_SYNC_WORKERS="0", AXON_RUN_WORKERS="1", AXON_RUN_STREAM_WORKERS="0") as daemon:
        daemon.wait_for(GREETED)
        for env, says in (
            ({"AXON_RUN_DIR": str(daemon.run_dir), "AXON_FRONTEND": f"tcp://127.0.0.1:{free_port()}"}, "AXON_RUN_DIR"),
            ({"AXON_RUN_DIR": f"{daemon.run_dir}2", "AXON_FRONTEND": daemon.endpoint}, "AXON_FRONTEND"),
        ):
            second = subprocess.run(
                [ROOT / "scripts/run"], env={**os.environ, **env}, capture_output=True, text=True, timeout=240
            )
            assert second.returncode == 2
            assert says in second.stderr
        with Client(daemon.endpoint) as client:
            assert client.run("echo", "untouched").result == "untouched"


def test_a_greeting_that_fails_does_not_end_the_daemon():
    with served(AXON_RUN_SYNC_WORKERS="0", AXON_RUN_WORKERS="1", AXON_RUN_STREAM_WORKERS="0") as daemon:
        daemon.wait_for("ready after")  # and now it greets
        daemon.family()["run-1"].kill()
        daemon.wait_for(GREETED)
        with Client(daemon.endpoint) as client:
            wait_until(lambda: client.ping(WAIT_TIMEOUT_S)["modes"]["run"]["workers"] == 1, "the next worker")
            assert client.run("echo", "again").result == "again"


@pytest.mark.timeout(120)
def test_serve_ends_with_its_own_supervisord_and_does_not_touch_the_next_daemon():
    few = {"AXON_RUN_SYNC_WORKERS": "0", "AXON_RUN_WORKERS": "1", "AXON_RUN_STREAM_WORKERS": "0"}
    with served(**few) as first:
        first.wait_for("ready after")  # and now it greets: its request may be under way
        first.process.send_signal(signal.SIGSTOP)
        first.family()["supervisord"].kill()
        wait_until(lambda: not first.family(), "the end of all its processes")
        env = {**os.environ, **few, "AXON_RUN_DIR": str(first.run_dir), "AXON_FRONTEND": first.endpoint}
        second = subprocess.Popen([ROOT / "scripts/run"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        try:
            with Client(first.endpoint) as client:
                wait_until(lambda: client.ping(WAIT_TIMEOUT_S)["modes"]["run"]["workers"] == 1, "the next daemon", 60)
                pids = {name: process.pid for name, process in first.family().items()}
                first.process.send_signal(signal.SIGCONT)
                assert first.process.wait(WAIT_TIMEOUT_S) in (1, 2)  # whether it still greeted
                assert client.run("echo", "untouched").result == "untouched"
            assert {name: process.pid for name, process in first.family().items()} == pids
        finally:
            second.terminate()
            second.wait(WAIT_TIMEOUT_S)


def test_the_committed_configuration_is_the_output_of_axon_zmq_conf():
    env = {name: value for name, value in os.environ.items() if not name.startswith("AXON_")}
    printed = subprocess.run([BIN / "axon-zmq", "conf"], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout == (ROOT / "supervisord.conf").read_text()
    expansions = {word for line in printed.stdout.splitlines() for word in line.split("%(")[1:]}
    assert all(word.startswith("here)s") for word in expansions)


@pytest.mark.parametrize("folder", ["checkout", "a folder, with spaces & more"])
def test_plain_supervisord_and_supervisorctl_work_from_a_checkout(folder):
    """Use the default configuration except for the port, which another daemon may use."""
    with tempfile.TemporaryDirectory(prefix="axon-") as outer:
        checkout = Path(outer) / folder
        (checkout / "run").mkdir(parents=True)
        shutil.copy(ROOT / "run/.gitignore", checkout / "run")
        port = free_port()
        conf = (ROOT / "supervisord.conf").read_text().replace("5570", str(port))
        (checkout / "supervisord.conf").write_text(conf)
        env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        env.pop("AXON_RUN_DIR", None)
        env.pop("AXON_FRONTEND", None)
        run = lambda *command: subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)  # noqa: E731
        started = run("supervisord", "-c", "supervisord.conf")
        assert started.returncode == 0, started.stdout + started.stderr
        try:
            with Client(f"tcp://127.0.0.1:{port}") as client:
                wait_until(lambda: all_there(client), "all workers", 60)
                assert client.run("echo", "plain").result == "plain"
            listing = run("supervisorctl", "-c", "supervisord.conf", "status").stdout
            assert {line.split()[0] for line in listing.splitlines()} == PROGRAMS
            assert (checkout / "run").stat().st_mode & 0o777 == 0o700
            before = family(checkout / "run")
            scaled = run("axon-zmq", "scale", "run_sync", "3")
            assert scaled.returncode == 0, scaled.stderr
            assert family(checkout / "run") == {**before, "run_sync-3": family(checkout / "run")["run_sync-3"]}
            assert run("axon-zmq", "scale", "run_sync", "2").returncode == 0
            assert run("axon-zmq", "status").returncode == 0
            assert family(checkout / "run") == before
        finally:
            run("supervisorctl", "-c", "supervisord.conf", "shutdown")
            wait_until(lambda: not family(checkout / "run") and not family(checkout), "the end of it")
