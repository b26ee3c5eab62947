"""The whole daemon in the foreground: `axon-zmq serve`, which is a supervisord and what it starts."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from axon_zmq.errors import ConfigurationError
from axon_zmq.net import endpoints
from axon_zmq.process import event_loop
from axon_zmq.process.locks import lock_holder
from axon_zmq.process.run_dir import backend_endpoint, open_private, private_directory
from axon_zmq.settings import Settings
from axon_zmq.supervise import conf, supervisord

POLL_INTERVAL_S = 0.1
"""Seconds between two checks whether supervisord still runs: its end is found only by polling."""


class Daemon:
    """A supervisord of our own, as a child process.

    Args:
        settings: `run_dir` is made absolute.
        directory: Where agents' modules are imported from.
    """

    def __init__(self, settings: Settings, directory: Path) -> None:
        run_dir = private_directory(settings.run_dir.absolute())
        backend_endpoint(run_dir)
        endpoints.check_ipc(f"ipc://{run_dir / 'supervisor.sock'}.4194304")  # supervisord adds its pid at first
        self.settings = settings.model_copy(update={"run_dir": run_dir})
        self.conf = run_dir / "supervisord.conf"
        self._directory = directory
        self._signalled = False
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and from now on stop it at SIGTERM, SIGINT and SIGHUP.

        Raises:
            ConfigurationError: Another daemon holds the run directory or the frontend, or processes could not start.
        """
        self._check_free()
        endpoints.check_folder(self.settings.frontend)
        event_loop.new_loop(self.settings.loop).close()
        conf.write(self.settings, self.conf, sys.executable, self._directory)
        conf.replace(self.settings.run_dir / conf.ADDED_PROGRAMS_FILE, "")  # what was scaled lasts until the next start
        with open(self.settings.run_dir / "supervisord.log", "ab", opener=open_private) as log:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(self.conf)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on once
                preexec_fn=_before_supervisord,
            )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _check_free(self) -> None:
        if holder := lock_holder(self.settings.run_dir):
            raise ConfigurationError(
                f"a daemon (broker pid {holder}) serves {str(self.settings.run_dir)!r} already: "
                "stop it, or set AXON_RUN_DIR and AXON_FRONTEND for another"
            )
        if (pid := supervisord.holder(self.settings.run_dir)) is not None:
            raise ConfigurationError(
                f"a supervisord (pid {pid or '?'}) holds {str(self.settings.run_dir)!r}, "
                f"perhaps with its broker stopped: {supervisord.start_broker(self.settings.run_dir, pid)}, "
                "stop the supervisord, or set AXON_RUN_DIR and AXON_FRONTEND for another"
            )
        if self.settings.frontend.startswith("tcp://"):
            address, port = endpoints.tcp_address(self.settings.frontend)
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((address.strip("[]"), port))
                except OSError as fault:
                    raise ConfigurationError(
                        f"cannot listen on {self.settings.frontend}: {fault.strerror}; set another AXON_FRONTEND"
                    ) from None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.stopping and self._process is not None:
            self._process.kill()  # and all that it has started with it
        self._signalled = True

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._signalled or self._stopped

    def stop(self) -> None:
        """Stop it: workers finish what they have, all at a time, and then the broker goes."""
        assert self._process is not None
        self._stopped = True
        if self._process.poll() is not None:
            return  # whoever serves the run directory now is not ours
        try:
            supervisord.stop_workers(self.settings.run_dir)
            while self._process.poll() is None and not supervisord.workers_are_gone(self.settings.run_dir):
                time.sleep(POLL_INTERVAL_S)
        except supervisord.FAULTS:
            pass  # it is starting or ending: it stops its processes itself
        if self._process.poll() is None:
            self._process.terminate()
            supervisord.wake(self.settings.run_dir)

    def wait(self, on_signal: Callable[[], None]) -> int:
        """Wait until it has ended, by itself or after a signal; 0 if it was asked to stop.

        Args:
            on_signal: Called once when a signal arrives, before the daemon stops.
        """
        assert self._process is not None
        while not self.stopping and self._process.poll() is None:
            time.sleep(POLL_INTERVAL_S)
        if self._process.poll() is None and not self._stopped:
            on_signal()
            self.stop()
        while self._process.poll() is None:
            supervisord.wake(self.settings.run_dir)
            time.sleep(POLL_INTERVAL_S)
        return 0 if self.stopping else max(1, self._process.returncode)

    def check_alive(self) -> None:
        """Look whether it is still there, and let it look at its processes.

        Raises:
            ConfigurationError: It has ended by itself.
        """
        if self._process is not None and self._process.poll() is not None:
            raise ConfigurationError(f"the daemon ended: see the logs in {str(self.settings.run_dir)!r}")
        supervisord.wake(self.settings.run_dir)


def _before_supervisord() -> None:
    """In supervisord before it starts: it stops in order when `serve` itself is killed; its files are private."""
    os.umask(0o077)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
