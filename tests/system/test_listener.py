"""The event listener between a real supervisord and a ROUTER in place of the broker."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import zmq

from axon_zmq.process.run_dir import backend_endpoint
from axon_zmq.protocol.kinds import CONTROL
from axon_zmq.protocol.msgpack import unpack
from axon_zmq.settings import Settings
from axon_zmq.supervise import conf, supervisord
from tests.support import ROOT
from tests.support.daemon import WAIT_TIMEOUT_S, wait_until
from tests.support.supervisor_events import event

BARE = """
[unix_http_server]
file={run_dir}/supervisor.sock
[supervisord]
logfile={run_dir}/supervisord.log
pidfile={run_dir}/supervisord.pid
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[program:run-1]
command=sleep 1000
startsecs=0
autorestart=true
stopwaitsecs=1
[program:run_stream-2]
command=false
startretries=0
[program:of-somebody-else]
command=sleep 1000
stopwaitsecs=1
"""


class Router:
    """The backend of a broker, which only records messages."""

    def __init__(self, run_dir: Path) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(backend_endpoint(run_dir))

    def hear(self, seconds: float = WAIT_TIMEOUT_S) -> tuple[bytes, dict[str, Any]]:
        assert self._socket.poll(int(seconds * 1000)), f"nothing came in {seconds} s"
        _, control, kind, body = self._socket.recv_multipart()
        assert control == CONTROL
        return kind, unpack(body, "what the listener says")

    def hear_exit(self) -> dict[str, Any]:
        while True:
            kind, said = self.hear()
            if kind == b"exited":
                return said

    def hear_program(self, name: str, state: str, other_than: int = 0) -> dict[str, Any]:
        """The first list of programs in which a program has the given state and another pid."""
        while True:
            kind, said = self.hear()
            program = said["programs"].get(name) if kind == b"processes" else None
            if program and program["state"] == state and program["pid"] != (other_than or None):
                return said["programs"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close(0)
        self._context.term()


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="axon-") as folder:
        yield Path(folder)


@contextmanager
def supervised(run_dir: Path) -> Iterator[None]:
    """A supervisord with the listener from the generated configuration, and other programs."""
    rendered = conf.render(Settings(run_dir=run_dir), python=sys.executable, directory=str(ROOT))
    [section] = re.findall(r"^\[eventlistener:events\]\n(?:.+\n)+", rendered, flags=re.MULTILINE)
    (run_dir / "supervisord.conf").write_text(BARE.format(run_dir=run_dir) + section)
    command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", run_dir / "supervisord.conf"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(WAIT_TIMEOUT_S)


def test_the_broker_is_told_all_programs_and_their_states(run_dir: Path):
    with Router(run_dir) as router, supervised(run_dir):
        programs = router.hear_program("run_stream-2", "FATAL")
        assert programs.keys() == {"run-1", "run_stream-2"}
        assert programs["run_stream-2"]["pid"] == 0
        pid = programs["run-1"]["pid"]
        assert programs["run-1"]["state"] == "RUNNING"
        os.kill(pid, 0)
        supervisord.call(run_dir, "stopProcess", "run-1", False)
        assert router.hear_program("run-1", "STOPPED")["run-1"]["pid"] == 0


def test_the_broker_is_told_of_an_exit_at_once_and_supervisord_restarts_at_once(run_dir: Path):
    if not hasattr(os, "pidfd_open"):
        pytest.skip("without pidfds supervisord's own word must do")
    with Router(run_dir) as router, supervised(run_dir):
        pid = router.hear_program("run-1", "RUNNING")["run-1"]["pid"]
        heard: list[float] = []
        back: list[float] = []
        while len(heard) < 20 and not (heard and min(heard) < 0.1 and min(back) < 0.5):
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            assert router.hear_exit() == {"name": "run-1", "pid": pid}
            heard.append(time.monotonic() - killed)
            pid = router.hear_program("run-1", "RUNNING", other_than=pid)["run-1"]["pid"]
            back.append(time.monotonic() - killed)
        shown = lambda seconds: " ".join(f"{each * 1000:.0f}" for each in seconds)  # noqa: E731
        print(f"ms until the broker heard of an end: {shown(heard)}; until another was running: {shown(back)}")
        assert min(heard) < 0.1
        assert min(back) < 0.5  # supervisord alone checks once a second


def test_a_broker_that_was_away_is_told_the_current_states(run_dir: Path):
    with supervised(run_dir):
        with Router(run_dir) as router:
            pid = router.hear_program("run-1", "RUNNING")["run-1"]["pid"]
        os.kill(pid, signal.SIGKILL)
        pid = wait_until(
            lambda: (now := supervisord.workers(run_dir)["run-1"]["pid"]) != pid and now, "another process"
        )
        with Router(run_dir) as router:
            kind, said = router.hear()
            assert (kind, said["programs"]["run-1"]["pid"]) == (b"processes", pid)
            os.kill(pid, signal.SIGKILL)
            assert router.hear_exit()["pid"] == pid


@contextmanager
def alone(run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The listener with pipes to the test, which plays supervisord; XML-RPC requests get no answer."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SUPERVISOR")}
    command = [sys.executable, "-m", "axon_zmq.supervise.listener", f"--run-dir={run_dir}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, cwd=ROOT, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def answered(process: subprocess.Popen[bytes], expected: bytes) -> None:
    assert process.stdout is not None
    assert process.stdout.read(len(expected)) == expected


def say(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def test_malformed_input_is_answered_and_does_not_end_the_listener(run_dir: Path):
    with alone(run_dir) as process:
        answered(process, b"READY\n")
        for odd in (
            b"\n",
            b"\xff\xfe:::\n",
            b"no header at all\n",
            b"ver:3.0 len:many\n",
            event("PROCESS_STATE_RUNNING", "nothing that is a process"),
            event("PROCESS_STATE_RUNNING", "processname:run-1 pid:many"),
            event("PROCESS_STATE_RUNNING", "processname:run-1 groupname:größer:als pid:1"),
            event("TICK_5", "when:1"),
        ):
            say(process, odd)
            answered(process, b"RESULT 2\nOKREADY\n")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(WAIT_TIMEOUT_S) == 0


def test_an_event_received_in_pieces_delays_nothing(run_dir: Path):
    whole = event("PROCESS_STATE_STARTING", "processname:run-1 groupname:größer from_state:STOPPED tries:0")
    with Router(run_dir) as router, alone(run_dir) as process:
        answered(process, b"READY\n")
        assert router.hear() == (b"processes", {"programs": {}})
        say(process, whole[:20])
        say(process, whole[20:-5])
        say(process, whole[-5:])
        answered(process, b"RESULT 2\nOKREADY\n")
        router.hear_program("run-1", "STARTING")


def test_events_count_if_supervisord_does_not_answer(run_dir: Path):
    child = subprocess.Popen(["sleep", "1000"])
    with Router(run_dir) as router, alone(run_dir) as process:
        answered(process, b"READY\n")
        data = f"processname:run-1 groupname:run-1 from_state:STARTING pid:{child.pid}"
        say(process, event("PROCESS_STATE_RUNNING", data))
        assert router.hear_program("run-1", "RUNNING") == {"run-1": {"state": "RUNNING", "pid": child.pid}}
        child.kill()
        if hasattr(os, "pidfd_open"):
            assert router.hear_exit() == {"name": "run-1", "pid": child.pid}
        say(process, event("PROCESS_STATE_EXITED", data.replace("STARTING", "RUNNING")))
        assert router.hear_program("run-1", "EXITED")["run-1"]["pid"] == 0
    child.wait(WAIT_TIMEOUT_S)


def test_an_invalid_run_directory_is_reported(run_dir: Path):
    with alone(run_dir / ("x" * 120)) as process:
        assert process.wait(WAIT_TIMEOUT_S) == 2
        assert process.stderr is not None
        assert b"AXON_RUN_DIR" in process.stderr.read()
