"""A broker and workers on free ports and in temporary folders, and raw DEALER clients."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import zmq

from axon_zmq import Client, Complete
from axon_zmq.protocol.kinds import TERMINAL_KINDS
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.testing.ports import free_port
from tests.support import ROOT

WAIT_TIMEOUT_S = 60.0
"""Seconds after which a test gives up waiting for an event that must happen."""
OFFLINE = {"AXON_OFFLINE_MODELS": "true"}
"""Setting with which the clients of a daemon with other agents than the examples may name offline models."""
EXIT_TIMEOUT_S = 2.0
"""Seconds after which processes are killed that are asked to end, when coverage is measured."""


def wait_until(true: Callable[[], Any], what: str = "it", seconds: float = WAIT_TIMEOUT_S) -> Any:
    """Poll until the function returns a true value, and return it; other processes give no notification."""
    give_up = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < give_up, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)
    return answer


class Daemon:
    """Broker and workers as child processes without supervisord: they start quickly and can be killed."""

    def __init__(self, run_dir: Path, **env: str) -> None:
        self.run_dir = run_dir
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.env = {**os.environ, "AXON_FRONTEND": self.endpoint, "AXON_RUN_DIR": str(run_dir), **OFFLINE, **env}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_broker(self, *more: str) -> None:
        self._start("broker", "axon_zmq.broker", f"--frontend={self.endpoint}", *more)

    def start_worker(self, mode: str, number: int = 1) -> str:
        name = f"{mode}-{number}"
        self._start(name, "axon_zmq.worker", f"--mode={mode}", f"--name={name}")
        return name

    def _start(self, name: str, module: str, *arguments: str) -> None:
        with (self.run_dir / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, f"--run-dir={self.run_dir}"],
                env=self.env,
                cwd=ROOT / "tests/support",
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def log(self, name: str) -> str:
        return (self.run_dir / f"{name}.log").read_text()

    def wait(self, **workers: int) -> None:
        """Wait until this many workers of each mode have registered."""
        with Client(self.endpoint) as client:

            def there() -> bool:
                pong = client.ping(WAIT_TIMEOUT_S)
                return not pong["settling"] and all(pong["modes"][mode]["workers"] == n for mode, n in workers.items())

            wait_until(there, f"workers {workers}")

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(WAIT_TIMEOUT_S)

    def stop(self) -> None:
        if "COVERAGE_PROCESS_CONFIG" in os.environ:
            self._end_processes()
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait(WAIT_TIMEOUT_S)
        self.processes.clear()

    def _end_processes(self) -> None:
        """Let the processes end by themselves, the workers first: killed ones would not save what coverage measured."""
        give_up = time.monotonic() + EXIT_TIMEOUT_S
        for is_broker in (False, True):
            ending = [process for name, process in self.processes.items() if (name == "broker") is is_broker]
            for process in ending:
                process.send_signal(signal.SIGTERM)
            for process in ending:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, give_up - time.monotonic()))


@contextmanager
def running(*modes: str, broker: tuple[str, ...] = (), **env: str) -> Iterator[Daemon]:
    """A daemon with one worker for each given mode (a mode may be given several times), stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="axon-") as folder:
        daemon = Daemon(Path(folder), **env)
        try:
            daemon.start_broker(*broker)
            for number, mode in enumerate(modes, 1):
                daemon.start_worker(mode, number)
            daemon.wait(**{mode: modes.count(mode) for mode in modes})
            yield daemon
        except BaseException:
            for name in daemon.processes:
                print(f"--- {name}\n{daemon.log(name)}", file=sys.stderr)
            raise
        finally:
            daemon.stop()


class Dealer:
    """A raw DEALER, which sends frames as a client in any language would.

    Args:
        endpoint: The broker's frontend.
        identity: Routing id; None for an anonymous client.
        unbounded: Whether any number of messages may wait in the socket, as in chumak.
    """

    def __init__(self, endpoint: str, identity: bytes | None = None, *, unbounded: bool = False) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        if identity:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.LINGER, 0)
        if unbounded:
            self.socket.setsockopt(zmq.SNDHWM, 0)
            self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(endpoint)

    def send(self, kind: bytes, id: bytes, header: Any = None, body: Any = None) -> None:
        """Send a message; maps are packed, bytes are sent unchanged."""
        frames = [part if isinstance(part, bytes) else pack(part or {}) for part in (header, body)]
        self.socket.send_multipart([kind, id, *frames])

    def recv(self, seconds: float = WAIT_TIMEOUT_S, alive: bool = False) -> tuple[bytes, bytes, dict[str, Any]]:
        """The next message that is not an `alive`."""
        give_up = time.monotonic() + seconds
        while True:
            assert self.socket.poll(max(0, int((give_up - time.monotonic()) * 1000))), f"nothing came in {seconds} s"
            kind, id, body = self.socket.recv_multipart()[-3:]
            if alive or kind != b"alive":
                return kind, id, unpack(body, "the body")

    def silent(self, seconds: float = 0.3) -> bool:
        return not self.socket.poll(int(seconds * 1000))

    def until_end(self, id: bytes) -> list[tuple[bytes, dict[str, Any]]]:
        """All messages of one request, up to its terminal message."""
        messages = []
        while True:
            kind, of, body = self.recv()
            if of == id:
                messages.append((kind, body))
                if kind in TERMINAL_KINDS:
                    return messages

    def ask(self, kind: bytes, id: bytes, header: Any = None, body: Any = None) -> tuple[bytes, dict[str, Any]]:
        """Send a request and return its terminal message, `refused` or `pong`."""
        self.send(kind, id, header, body)
        while True:
            answer, of, reply = self.recv()
            if of == id and (answer in TERMINAL_KINDS or answer in (b"pong", b"refused")):
                return answer, reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close(0)
        self._context.term()


def run_in_mode(client: Client, mode: str, agent: Any, prompt: Any, **options: Any) -> Complete:
    """Run an agent in the given mode, and return its result."""
    if mode == "run_stream":
        return client.stream(agent, prompt, **options).complete()
    return getattr(client, mode)(agent, prompt, **options)


SHIPPED = ("echo.echo:agent", "assistant.assistant:make", "weather.weather:agent")
SAMPLES = (
    *("slow", "stubborn", "raising", "cancelling", "exiting", "interrupting", "leaving", "odd", "opaque"),
    *("thinker", "typed", "same_ids", "careful", "flood"),
)
AGENTS = ",".join(
    [f"{name}=axon_zmq.agents.{target}" for name, _, target in (pair.partition(".") for pair in SHIPPED)]
    + [f"{name}=sample_agents:{name}" for name in SAMPLES]
    + [f"{name}=sample_agents:{name}_" for name in ("logging", "callable")]
    + ["broken=sample_agents:no_such_agent"]
)
TOOLSETS = "plain=sample_agents:plain"
"""Agents and toolsets of the shared daemon."""
