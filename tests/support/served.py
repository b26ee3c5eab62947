"""A daemon as a user starts it: `scripts/run` with a real supervisord."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from axon_zmq.protocol.kinds import MODES
from axon_zmq.testing.ports import free_port
from tests.support import ROOT
from tests.support.daemon import WAIT_TIMEOUT_S

BIN = Path(sys.executable).parent
GREETED = "supervisorctl -c"
"""In the last line that the daemon prints when it is ready."""

PROGRAMS = {"broker", "events", *(f"{mode}-{slot}" for mode in MODES for slot in (1, 2))}


class Served:
    """A child process that executes `scripts/run`."""

    def __init__(self, run_dir: Path, *arguments: str, **env: str) -> None:
        self.run_dir = run_dir
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            [ROOT / "scripts/run", *arguments],
            env={**os.environ, "AXON_RUN_DIR": str(run_dir), "AXON_FRONTEND": self.endpoint, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output: list[str] = []

    def wait_for(self, text: str) -> None:
        """Read the output until a line contains this text."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if text in line:
                return
        raise AssertionError("".join(self.output))

    def family(self) -> dict[str, psutil.Process]:
        """supervisord and its programs by name."""
        return family(self.run_dir)


def family(run_dir: Path) -> dict[str, psutil.Process]:
    found = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if not any(str(run_dir) in part for part in line) or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        names = [part.removeprefix("--name=") for part in line if part.startswith("--name=")]
        if "axon_zmq.broker" in line:
            found["broker"] = process
        elif "axon_zmq.supervise.listener" in line:
            found["events"] = process
        elif names:
            found[names[0]] = process
        elif "supervisor.supervisord" in line or any(part.endswith("/supervisord") for part in line):
            found["supervisord"] = process
    return found


@contextmanager
def served(*arguments: str, **env: str) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="axon-") as folder:
        daemon = Served(Path(folder) / "run", *arguments, **env)
        try:
            yield daemon
        finally:
            if daemon.process.poll() is None:
                daemon.process.kill()
            daemon.process.wait(WAIT_TIMEOUT_S)
            daemon.process.stdout.close()
            for process in daemon.family().values():
                with suppress(psutil.NoSuchProcess):  # it has just ended with supervisord
                    process.kill()
