"""The attacked daemon, of this checkout or of another one, with honest clients and a watch on its memory."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import psutil

from attack import agents
from axon_zmq import Client
from axon_zmq.errors import AxonError
from axon_zmq.testing.ports import free_port

ROOT: Final = Path(__file__).parents[1]
MODES: Final = ("run", "run_stream", "run_sync")
START_TIMEOUT_S: Final = 60.0
MAX_RESIDENT: Final = 1536 * 2**20
"""Bytes of resident memory at which a process of the daemon is killed, which counts as a crash: an attack must not take
the memory of the machine."""
WATCH_S: Final = 0.02
"""Seconds between two looks at the memory."""


class Target:
    """A broker and workers as child processes, without supervisord.

    Args:
        folder: Run directory.
        checkout: Checkout whose `axon_zmq` the processes import.
        env: Further environment variables of all processes.
    """

    def __init__(self, folder: Path, checkout: Path, **env: str) -> None:
        self.folder, self.checkout = folder, checkout
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        plain = {name: value for name, value in os.environ.items() if not name.startswith("AXON_")}
        # The checkout comes first: `axon_zmq` is imported from it, and `attack`, which it may not have, from here.
        path = os.pathsep.join((str(checkout), str(ROOT)))
        self.env = {**plain, "PYTHONPATH": path, "SUPERVISOR_ENABLED": "1", "AXON_AGENTS": agents.NAMES, **env}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.killed: list[str] = []
        """Processes that were killed because of their memory."""

    def has_setting(self, name: str) -> bool:
        """Whether the checkout knows a setting, such as `offline_models`."""
        return f"    {name}:" in (self.checkout / "axon_zmq/settings.py").read_text(encoding="utf-8")

    def start(self, name: str, module: str, *arguments: str, limit: int | None = None) -> None:
        """Start one process; `limit` is its limit on open descriptors."""
        command = [sys.executable, "-m", module, *arguments, f"--run-dir={self.folder}"]
        if limit is not None:
            command = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command, env=self.env, cwd=self.folder, stdout=log, stderr=log)

    def start_broker(self, limit: int | None = None) -> None:
        """Start the broker."""
        self.start("broker", "axon_zmq.broker", f"--frontend={self.endpoint}", limit=limit)

    def start_worker(self, mode: str) -> None:
        """Start a worker."""
        self.start(f"{mode}-1", "axon_zmq.worker", f"--mode={mode}", f"--name={mode}-1")

    def wait(self, modes: Sequence[str]) -> None:
        """Wait until a worker of each mode has registered."""
        ends_at = time.monotonic() + START_TIMEOUT_S
        with Client(self.endpoint) as client:
            while time.monotonic() < ends_at:
                try:
                    pong = client.ping(5.0)
                except AxonError:
                    continue
                if not pong["settling"] and all(pong["modes"][mode]["workers"] for mode in modes):
                    return
                time.sleep(0.02)
        raise RuntimeError(f"the daemon does not serve after {START_TIMEOUT_S:g} s:\n{self.logs()[-2000:]}")

    def logs(self) -> str:
        """Return all log files."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def crashed(self) -> list[str]:
        """Return the processes that have ended."""
        return [name for name, process in self.processes.items() if process.poll() is not None]

    def resident(self) -> dict[str, int]:
        """Return the resident bytes of each process that runs."""
        found: dict[str, int] = {}
        for name, process in self.processes.items():
            try:
                found[name] = psutil.Process(process.pid).memory_info().rss
            except psutil.Error:
                continue
        return found

    def kill_large(self) -> None:
        """Kill each process that exceeds `MAX_RESIDENT`."""
        for name, size in self.resident().items():
            if size > MAX_RESIDENT and self.processes[name].poll() is None:
                self.processes[name].kill()
                self.killed.append(name)

    def stop(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait(START_TIMEOUT_S)


class Memory:
    """Growth of the broker and of all workers together, from its start to their peaks."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._before = target.resident()
        self._peak = dict(self._before)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(WATCH_S):
            for name, size in self._target.resident().items():
                self._peak[name] = max(self._peak.get(name, 0), size)
            self._target.kill_large()

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        self._thread.join()

    def peak(self, broker: bool) -> float:
        """Return the growth up to the peak in MiB, of the broker or of all workers together."""
        names = [name for name in self._before if (name == "broker") is broker]
        return sum(self._peak[name] - self._before[name] for name in names) / 2**20


class Honest:
    """The process of the honest clients, and their measurements."""

    def __init__(self, endpoint: str, modes: Sequence[str]) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "attack.honest", endpoint, *modes]
        self._child = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines: list[dict[str, Any]] = []
        self._open: dict[str, float] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for text in self._child.stdout:
            line = json.loads(text)
            if line["state"] == "sent":
                self._open[line["mode"]] = line["at"]
            else:
                self._open.pop(line["mode"], None)
                self._lines.append(line)

    def between(self, start: float, end: float) -> list[dict[str, Any]]:
        """Return the requests that were sent in a period; one that is still open counts with its age."""
        answered = [line for line in self._lines if start <= line["at"] <= end]
        opened = [(mode, at) for mode, at in list(self._open.items()) if at <= end]
        now = time.monotonic()
        return answered + [{"mode": mode, "at": at, "ms": (now - at) * 1000, "state": "open"} for mode, at in opened]

    def wait_for(self, count: int, seconds: float) -> bool:
        """Wait until each of the clients has got `count` answers in total."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            modes = [line["mode"] for line in self._lines if line["state"] == "ok"]
            if modes and min(modes.count(mode) for mode in set(modes)) >= count:
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.wait()


def p99(lines: Sequence[dict[str, Any]]) -> float:
    """Return the 99th percentile in milliseconds of the mode with the highest one; NaN without requests."""
    by_mode: dict[str, list[float]] = {}
    for line in lines:
        by_mode.setdefault(line["mode"], []).append(line["ms"])
    found = [sorted(times)[min(len(times) - 1, math.ceil(0.99 * len(times)) - 1)] for times in by_mode.values()]
    return max(found, default=math.nan)


@contextmanager
def running(checkout: Path, modes: Sequence[str] = MODES, *, limit: int | None = None, **env: str) -> Generator[Target]:
    """Start a daemon with one worker for each mode, and stop it at the end.

    Args:
        checkout: Checkout whose package is started.
        modes: Modes of the workers.
        limit: Limit on open descriptors of the broker.
        env: Further environment variables.
    """
    with TemporaryDirectory(prefix="axon-attack-") as folder:
        target = Target(Path(folder), checkout, **env)
        try:
            target.start_broker(limit)
            for mode in modes:
                target.start_worker(mode)
            target.wait(modes)
            yield target
        finally:
            target.stop()
