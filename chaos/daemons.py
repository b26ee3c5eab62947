"""Daemons for the scenarios: separate processes, or a complete daemon under supervisord."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import psutil

from axon_zmq import Client
from axon_zmq.errors import AxonError
from axon_zmq.supervise import broker_status
from axon_zmq.testing.ports import free_port
from bench.processes import WAIT_TIMEOUT_S, Process, Site, environment, site
from chaos import agents

OFFLINE = {"AXON_OFFLINE_MODELS": "true"}
"""Lets the scenarios' clients name offline models, although the daemon has agents of its own."""


class Daemon:
    """A broker and workers without supervisord, which can be killed and started one by one.

    Args:
        site: Directory and endpoint of the processes.
        env: Environment variables of all processes.
    """

    def __init__(self, site: Site, **env: str) -> None:
        self.site = site
        self.endpoint = site.endpoint
        self.workers: dict[str, Process] = {}
        self._env = {"AXON_AGENTS": agents.NAMES, **OFFLINE, agents.STARTS: str(site.folder / "starts"), **env}
        self._numbers = count(1)
        (site.folder / "starts").touch()

    def start_broker(self, **more: int) -> None:
        options = [f"--{name.replace('_', '-')}={value}" for name, value in more.items()]
        arguments = (f"--frontend={self.endpoint}", f"--run-dir={self.site.folder}", *options)
        self.broker = self.site.start("broker", "axon_zmq.broker", *arguments)
        self._broker_options = more

    def kill_broker(self) -> None:
        """Kill the broker and start the next one immediately."""
        self.broker.stop()
        self.start_broker(**self._broker_options)

    def start_worker(self, mode: str) -> str:
        name = f"{mode}-{next(self._numbers)}"
        arguments = (f"--mode={mode}", f"--name={name}", f"--run-dir={self.site.folder}")
        self.workers[name] = self.site.start(name, "axon_zmq.worker", *arguments, **self._env)
        return name

    def kill_worker(self, name: str) -> float:
        """Kill a worker; return the time at which it had ended."""
        self.workers.pop(name).stop()
        return time.monotonic()

    def wait_for(self, **workers: int) -> dict[str, Any]:
        """Wait until each mode has exactly the given number of workers; return the `pong`."""
        with Client(self.endpoint) as client:
            return self._wait_for(client, workers)

    def _wait_for(self, client: Client, workers: dict[str, int]) -> dict[str, Any]:
        ends_at = time.monotonic() + WAIT_TIMEOUT_S
        while time.monotonic() < ends_at:
            pong = client.ping(WAIT_TIMEOUT_S)
            if not pong["settling"] and all(pong["modes"][mode]["workers"] == n for mode, n in workers.items()):
                return pong
            time.sleep(0.01)
        raise RuntimeError(f"workers {workers} have not registered after {WAIT_TIMEOUT_S:g} s:\n{self.site.logs()}")

    def wait_for_worker(self, name: str) -> None:
        """Wait until a worker of that name has registered."""
        until(lambda: any(worker["name"] == name for worker in self.status()["workers"]), name)

    def starts(self) -> Counter[str]:
        """Return how often each run of `paced` was started."""
        return Counter((self.site.folder / "starts").read_text().split("\n")[:-1])

    def status(self) -> dict[str, Any]:
        return broker_status.status(self.site.folder)


@contextmanager
def run_daemon(*modes: str, broker: dict[str, int] | None = None, **env: str) -> Generator[Daemon]:
    """Start a broker, and a worker for each named mode; stop them when the block ends."""
    with site() as place:
        daemon = Daemon(place, **env)
        daemon.start_broker(**(broker or {}))
        for mode in modes:
            daemon.start_worker(mode)
        daemon.wait_for(**{mode: modes.count(mode) for mode in modes})
        yield daemon


class SupervisedDaemon:
    """A complete daemon, started with `axon-zmq serve` in a separate directory."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.run_dir = folder / "run"
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        settings = {
            "AXON_RUN_DIR": str(self.run_dir),
            "AXON_FRONTEND": self.endpoint,
            "AXON_AGENTS": agents.NAMES,
            **OFFLINE,
        }
        self._starts = folder / "starts"
        self._starts.touch()
        self.env = environment({**settings, agents.STARTS: str(self._starts), **env})
        # Processes with this variable end with their parent. supervisord sets it for its children. `serve` itself must
        # not have it.
        del self.env["SUPERVISOR_ENABLED"]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the daemon, and wait until it is ready."""
        output = self.run_dir.parent / "serve.out"
        with output.open("wb") as out:
            serve = [_command(), "serve"]
            self._process = subprocess.Popen(serve, env=self.env, cwd=output.parent, stdout=out, stderr=out)
        until(lambda: "serving on" in output.read_text(), "the daemon", 60)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(WAIT_TIMEOUT_S)
        for process in self.family().values():
            process.kill()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an `axon-zmq` command with the settings of this daemon."""
        return subprocess.run([_command(), *arguments], env=self.env, capture_output=True, text=True, timeout=170)

    def family(self) -> dict[str, psutil.Process]:
        """Return the processes of the daemon, supervisord included, by program name."""
        found: dict[str, psutil.Process] = {}
        for process in psutil.process_iter(["cmdline", "status"]):
            line = process.info["cmdline"] or []
            is_ours = any(str(self.run_dir) in part for part in line)
            if not is_ours or process.info["status"] == psutil.STATUS_ZOMBIE:
                continue
            names = [part.removeprefix("--name=") for part in line if part.startswith("--name=")]
            modules = [part.rpartition(".")[2] for part in line if part.startswith(("axon_zmq.", "supervisor."))]
            found[(names + modules + [str(process.pid)])[0]] = process
        return found

    def status(self) -> dict[str, Any]:
        return broker_status.status(self.run_dir)

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.family().items()}

    def starts(self) -> Counter[str]:
        """Return how often each run of `paced` was started."""
        return Counter(self._starts.read_text().split("\n")[:-1])


def _command() -> str:
    return str(Path(sys.executable).parent / "axon-zmq")


@contextmanager
def run_supervised(**env: str) -> Generator[SupervisedDaemon]:
    """Start a complete daemon; stop it when the block ends."""
    with TemporaryDirectory(prefix="axon-chaos-") as folder, SupervisedDaemon(Path(folder), **env) as daemon:
        yield daemon


def until(true: Callable[[], Any], what: str, seconds: float = WAIT_TIMEOUT_S) -> Any:
    """Poll a function until its result is true, and return the result.

    Raises:
        TimeoutError: The result was not true within `seconds`.
    """
    ends_at = time.monotonic() + seconds
    while not (answer := true()):
        if time.monotonic() > ends_at:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.01)
    return answer


async def outcome(awaitable: Awaitable[Any]) -> Any:
    """Wait for a run, and return its `Complete` or its error."""
    try:
        return await awaitable
    except AxonError as error:
        return error


def descriptors(pid: int) -> int:
    """Return the number of file descriptors that a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def megabytes(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    return psutil.Process(pid).memory_info().rss / 2**20
