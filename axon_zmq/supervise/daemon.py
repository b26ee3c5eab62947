"""The whole daemon in the foreground, as `axon-zmq serve` runs it: a supervisord and the processes that it starts."""

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
from typing import IO

from axon_zmq.errors import ConfigurationError
from axon_zmq.net import endpoints
from axon_zmq.process import event_loop
from axon_zmq.process.core_dumps import disable_core_dumps
from axon_zmq.process.files import open_private
from axon_zmq.process.locks import lock_holder
from axon_zmq.process.run_dir import backend_endpoint, check_frontend_path, check_private, private_directory
from axon_zmq.settings import Settings
from axon_zmq.supervise import conf, supervisord

PR_SET_PDEATHSIG = 1
"""Option of prctl, from `linux/prctl.h`: sets the signal that a process gets when its parent ends."""
POLL_INTERVAL_S = 0.1
"""Seconds between two checks whether supervisord still runs."""


def check_run_dir(run_dir: Path) -> None:
    """Check that the daemon can create or use a run directory, without changing anything.

    Args:
        run_dir: Absolute path of the run directory.

    Raises:
        ConfigurationError: The directory cannot be used or created, the path of a socket in it is too long, or
            supervisord cannot use its path.
    """
    conf.check_path(run_dir)
    check_private(run_dir)
    backend_endpoint(run_dir)
    # supervisord binds a path that ends in its pid, then renames the socket. Linux's highest pid has 7 digits.
    endpoints.check_ipc(f"ipc://{run_dir / 'supervisor.sock'}.4194304")


class Daemon:
    """A supervisord as a child process of this one.

    Args:
        settings: The settings; a relative `run_dir` is made absolute.
        directory: Working directory of the processes, from which agents' modules are imported.
    """

    def __init__(self, settings: Settings, directory: Path) -> None:
        run_dir = settings.run_dir.absolute()
        self.settings = settings.model_copy(update={"run_dir": run_dir})
        self.conf = run_dir / "supervisord.conf"
        self._directory = directory
        self._signalled = False
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start supervisord, and install signal handlers that stop it at SIGTERM, SIGINT and SIGHUP.

        All checks precede the first write, so a refused start leaves no files.

        Raises:
            ConfigurationError: Another daemon uses the run directory or the frontend, or a setting would keep the
                processes from starting.
        """
        check_run_dir(self.settings.run_dir)
        rendered = conf.render(self.settings, python=sys.executable, directory=str(self._directory))
        disable_core_dumps()  # supervisord and its processes inherit this
        self._check_free()
        check_frontend_path(self.settings.frontend, self.settings.run_dir)
        event_loop.new_loop(self.settings.loop).close()
        private_directory(self.settings.run_dir)
        with self._files(rendered) as log:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(self.conf)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # otherwise Ctrl-C in a terminal would reach every process at once
                preexec_fn=_before_supervisord,
            )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _files(self, rendered: str) -> IO[bytes]:
        """Write supervisord's configuration; return supervisord's log file.

        Args:
            rendered: The configuration.

        Raises:
            ConfigurationError: A file cannot be written.
        """
        try:
            conf.replace(self.conf, rendered)
            # Workers that `scale` added to the previous daemon are not started again: the settings decide.
            conf.replace(self.settings.run_dir / conf.ADDED_PROGRAMS_FILE, "")
            return open(self.settings.run_dir / "supervisord.log", "ab", opener=open_private)
        except OSError as fault:
            raise ConfigurationError(f"cannot write {fault.filename!r}: {fault.strerror}") from None

    def _check_free(self) -> None:
        if holder := lock_holder(self.settings.run_dir):
            raise ConfigurationError(
                f"a daemon (broker pid {holder}) already uses the run directory {str(self.settings.run_dir)!r}: "
                "stop it, or set other values of AXON_RUN_DIR and AXON_FRONTEND"
            )
        if (pid := supervisord.holder(self.settings.run_dir)) is not None:
            raise ConfigurationError(
                f"a supervisord (pid {pid or 'unknown'}) already uses the run directory "
                f"{str(self.settings.run_dir)!r}, without a broker: start the broker with "
                f"{supervisord.start_broker(self.settings.run_dir, pid)}, "
                "stop the supervisord, or set other values of AXON_RUN_DIR and AXON_FRONTEND"
            )
        if self.settings.frontend.startswith("tcp://"):
            address, port = endpoints.tcp_address(self.settings.frontend)
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
                # Like libzmq's bind, which succeeds while connections of an earlier daemon are in TIME_WAIT.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((address.strip("[]"), port))
                except OSError as fault:
                    raise ConfigurationError(
                        f"cannot listen on {self.settings.frontend}: {fault.strerror}; "
                        "set AXON_FRONTEND to a free endpoint"
                    ) from None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.stopping and self._process is not None:
            self._process.kill()  # its processes end too: each one watches its parent (process/lifeline.py)
        self._signalled = True

    @property
    def stopping(self) -> bool:
        """Whether a signal or `stop` has asked the daemon to stop."""
        return self._signalled or self._stopped

    def stop(self) -> None:
        """Stop all workers at once, wait until they have finished their runs, then stop the broker and supervisord.

        supervisord itself would stop the workers one after the other.
        """
        assert self._process is not None
        self._stopped = True
        if self._process.poll() is not None:
            return  # another supervisord may use the run directory by now: do not stop its workers
        try:
            supervisord.stop_workers(self.settings.run_dir)
            while self._process.poll() is None and not supervisord.workers_are_gone(self.settings.run_dir):
                time.sleep(POLL_INTERVAL_S)
        except supervisord.FAULTS:
            pass  # supervisord is starting or ending; after SIGTERM it stops its processes itself
        if self._process.poll() is None:
            self._process.terminate()
            supervisord.wake(self.settings.run_dir)

    def wait(self, on_signal: Callable[[], None]) -> int:
        """Wait until supervisord has ended, by itself or after a signal.

        Args:
            on_signal: Called once when a signal arrives, before the daemon is stopped.

        Returns:
            The exit code for `serve`: 0 if the daemon was asked to stop.
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
        """Check that supervisord still runs, and make it check its processes.

        Raises:
            ConfigurationError: supervisord has ended by itself.
        """
        if self._process is not None and self._process.poll() is not None:
            raise ConfigurationError(f"the daemon ended unexpectedly: see the logs in {str(self.settings.run_dir)!r}")
        supervisord.wake(self.settings.run_dir)


def _before_supervisord() -> None:
    """Prepare the child process before it becomes supervisord: private files, and SIGTERM if `serve` is killed."""
    os.umask(0o077)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
