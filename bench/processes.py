"""Child processes in a temporary folder: started, measured for CPU time and memory, and ended with this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Self

from axon_zmq import Client
from axon_zmq.process import lifeline
from axon_zmq.protocol.limits import KIB
from axon_zmq.testing.ports import free_port

ROOT = Path(__file__).parent.parent
_NAMES = ("echo", "stream", "paced", "caller", "python_caller")
AGENTS = ",".join(f"{name}=bench.agents:{name}" for name in _NAMES)
WAIT_TIMEOUT_S = 120.0
"""Seconds that one step may take before the benchmark is aborted."""
CPU_SETTLE_S = 0.02
"""Seconds between the last reply and the reading of CPU time, so that the cleanup of a request is counted with it."""
QUIET_TIME_S = 0.25
"""Seconds of observation in `calm`: a process is calm if it uses less than a twentieth of them."""
_LINUX_CPU_CLOCK = 2
"""CPUCLOCK_SCHED: user and system time of a process with all its threads, in nanoseconds."""


class Process:
    """One child process."""

    def __init__(self, folder: Path, name: str, command: Sequence[str], **env: str) -> None:
        self._log = folder / f"{name}.log"
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                env=environment(env),
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def cpu(self) -> float:
        """Seconds of user and system time so far."""
        # The CPU clock of another process, as in clock_getcpuclockid(3): /proc/PID/stat only counts ticks of 10 ms.
        return time.clock_gettime((~self._child.pid << 3) | _LINUX_CPU_CLOCK)

    def resident(self, most: bool = False) -> int:
        """Bytes of resident memory: now, or with `most` the peak since the last `Growth` began."""
        name = "VmHWM:" if most else "VmRSS:"
        [line] = [line for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if line.startswith(name)]
        return int(line.split()[1]) * KIB

    def calm(self) -> None:
        """Wait until the process is almost idle, so that work after its start is not measured."""
        busy = True
        while busy:
            before = self.cpu()
            time.sleep(QUIET_TIME_S)
            busy = self.cpu() - before > QUIET_TIME_S / 20

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self._child.send_signal(number)

    def ended(self, seconds: float) -> bool:
        """Wait at most `seconds` for the end of the process; returns whether it has ended."""
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def call(self, name: str, *numbers: float) -> dict[str, float]:
        """Write one line to its stdin and read one line of JSON from its stdout."""
        assert self._child.stdin and self._child.stdout
        self._child.stdin.write(json.dumps([name, *numbers]).encode() + b"\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError(f"{name} failed:\n{self.log()}")
        return json.loads(answer)

    def ready(self) -> None:
        """Wait for the line on stdout that reports that it serves."""
        assert self._child.stdout
        if not self._child.stdout.readline():
            raise RuntimeError(f"the process did not start:\n{self.log()}")

    def log(self) -> str:
        """The last 2,000 characters of its stderr."""
        return self._log.read_text()[-2000:]

    def stop(self) -> None:
        """Kill the process. SIGKILL is enough, because no process here has anything to save."""
        self._child.kill()
        self._child.communicate()

    def text(self) -> str:
        """Everything on its stderr, and on the stderr of earlier processes with the same name."""
        return self._log.read_text()


class Cpu:
    """CPU time of processes during a `with` block, by name, in microseconds."""

    def __init__(self, **processes: Process) -> None:
        self._processes = processes
        self.spent: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._before = {name: process.cpu() for name, process in self._processes.items()}
        return self

    def __exit__(self, *exc_info: object) -> None:
        time.sleep(CPU_SETTLE_S)
        self.spent = {name: (process.cpu() - self._before[name]) * 1e6 for name, process in self._processes.items()}

    def per(self, count: int) -> dict[str, float]:
        """CPU time divided by `count`; `server` is the sum over all processes."""
        each = {name: spent / count for name, spent in self.spent.items()}
        return {**each, "server": sum(each.values())}


class Growth:
    """Growth of a process's memory from the start of a `with` block to its peak, in bytes."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.bytes = 0

    def __enter__(self) -> Self:
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")  # Resets the peak (VmHWM) to the current value.
        self._before = self._process.resident()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bytes = self._process.resident(most=True) - self._before


class Site:
    """A folder, a free port, and the processes that were started for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.backend = f"ipc://{folder / 'broker.sock'}"
        self._processes: list[Process] = []

    def start(self, name: str, *arguments: str, **env: str) -> Process:
        """Start `python -m` with these arguments."""
        return self._start(name, [sys.executable, "-m", *arguments], **env)

    def imported(self, modules: str) -> Process:
        """Start a Python process that imports modules, reports that on stdout, and waits."""
        return self._start("imported", [sys.executable, "-c", f"import {modules}; print(flush=True); input()"])

    def launch(self, name: str, *command: str, **env: str) -> Process:
        """Start a program that is not ours, in such a way that it ends with this process."""
        return self._start(name, lifeline.tied_command(command), **env)

    def _start(self, name: str, command: Sequence[str], **env: str) -> Process:
        process = Process(self.folder, name, command, **env)
        self._processes.append(process)
        return process

    def broker(self, workers: int) -> Process:
        """Start the broker."""
        arguments = (f"--frontend={self.endpoint}", f"--run-dir={self.folder}", f"--workers={workers}")
        return self.start("broker", "axon_zmq.broker", *arguments)

    def worker(self, mode: str, number: int = 0, **env: str) -> Process:
        """Start a worker with the agents of `bench.agents`."""
        name = f"{mode}-{number}"
        arguments = (f"--mode={mode}", f"--name={name}", f"--run-dir={self.folder}")
        return self.start(
            name, "axon_zmq.worker", *arguments, **{"AXON_AGENTS": AGENTS, "AXON_OFFLINE_MODELS": "true", **env}
        )

    def source(self, mode: str = "run_stream", workers: int = 1) -> Process:
        """Start one process without agents that acts as that many workers; see `bench.source`."""
        return self.start(f"source-{mode}", "bench.source", self.backend, f"--mode={mode}", f"--workers={workers}")

    def wait_for(self, *modes: str, each: int = 1) -> None:
        """Wait until `each` workers of each mode are registered."""
        give_up = time.monotonic() + WAIT_TIMEOUT_S
        with Client(self.endpoint) as client:
            while time.monotonic() < give_up:
                pong = client.ping(WAIT_TIMEOUT_S)
                if not pong["settling"] and all(pong["modes"][mode]["workers"] >= each for mode in modes):
                    return
                time.sleep(0.02)
        raise RuntimeError(f"the daemon does not serve after {WAIT_TIMEOUT_S:g} s:\n{self.logs()}")

    def logs(self) -> str:
        """The end of the stderr of each process."""
        return "\n".join(process.log() for process in self._processes)

    def stop(self) -> None:
        """End every process."""
        for process in self._processes:
            process.stop()


@contextmanager
def site() -> Generator[Site]:
    """A temporary site; its processes are ended and its folder is removed at the end."""
    with TemporaryDirectory(prefix="axon-bench-") as folder:
        made = Site(Path(folder))
        try:
            yield made
        finally:
            made.stop()


@contextmanager
def relaying(workers: int = 1) -> Generator[tuple[Site, Process]]:
    """A site with a broker and one process that acts as that many workers without agents."""
    with site() as place:
        broker = place.broker(workers)
        place.source(workers=workers)
        place.wait_for("run_stream", each=workers)
        yield place, broker


def environment(env: dict[str, str]) -> dict[str, str]:
    """The environment of child processes: ours without `AXON_` settings.

    `SUPERVISOR_ENABLED` lets children die with this process, as under supervisord.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AXON_")}
    return {**plain, "PYTHONPATH": str(ROOT), "SUPERVISOR_ENABLED": "1", **env}


def bound(seconds: int) -> None:
    """Abort this process after `seconds`: as after SIGTERM, the stack is unwound, which ends the child processes."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(f"ended by {signal.Signals(number).name} (SIGALRM is the time limit of {seconds} s)")

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGALRM, leave)
    signal.alarm(seconds)
