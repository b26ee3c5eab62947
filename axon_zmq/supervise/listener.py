"""Tells the broker what supervisord knows of its workers: `python -m axon_zmq.supervise.listener`.

supervisord starts it as an event listener. The broker hears from it which programs there are, which of them
cannot be kept running, and at once when a process has ended: the kernel tells that through a pidfd, and
supervisord, which looks once a second, is woken to start another. Its stdout is supervisord's protocol alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import zmq
from supervisor.childutils import get_headers, listener

from axon_zmq import endpoints, logs, wire
from axon_zmq.errors import ConfigurationError
from axon_zmq.supervise import lifeline, rpc
from axon_zmq.wire import CONTROL

log = logging.getLogger("axon_zmq.listener")

STDIN: Final = 0
PIPE: Final = 100
"""Messages that wait for a broker which is busy; one that is away gets the whole picture when it comes."""


class Listener:
    """One event listener.

    Args:
        run_dir: The daemon's, with supervisord's socket and the broker's.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._ends: dict[int, tuple[str, int]] = {}
        """Name and pid of the process that each pidfd stands for."""
        context = zmq.Context()
        self._dealer = context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.IMMEDIATE, 1)
        self._dealer.setsockopt(zmq.SNDHWM, PIPE)
        self._dealer.setsockopt(zmq.LINGER, 0)
        self._dealer.setsockopt(zmq.RECONNECT_IVL, 50)
        self._monitor = self._dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._poller = zmq.Poller()
        for readable in (STDIN, self._monitor):
            self._poller.register(readable, zmq.POLLIN)
        self._dealer.connect(endpoints.backend_endpoint(run_dir))

    def run(self) -> None:
        """Listen until supervisord is gone."""
        self._tell_programs()
        listener.ready()
        while True:
            for ready, _ in self._poller.poll():
                if ready == STDIN:
                    if not self._take_event():
                        return
                elif ready is self._monitor:
                    self._monitor.recv_multipart()
                    self._tell_programs()
                elif isinstance(ready, int):
                    self._tell_end(ready)

    def _take_event(self) -> bool:
        """Read one event of supervisord's; False where it says no more."""
        header = sys.stdin.readline()
        if not header:
            return False
        sys.stdin.read(int(get_headers(header)["len"]))
        self._tell_programs()
        listener.ok()
        listener.ready()
        return True

    def _tell_programs(self) -> None:
        """What the event says is in the whole picture too."""
        try:
            processes = rpc.processes(self._run_dir)
        except rpc.FAULTS as fault:
            log.info("supervisord does not say what it runs: %r", fault)
            return
        programs = {process["name"]: {"state": process["statename"], "pid": process["pid"]} for process in processes}
        for name, program in programs.items():
            self._watch(name, program["pid"])
        self._tell(b"processes", {"programs": programs})

    def _watch(self, name: str, pid: int) -> None:
        if not pid or not hasattr(os, "pidfd_open") or (name, pid) in self._ends.values():
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return  # it has ended already: supervisord's next event says so
        self._ends[descriptor] = (name, pid)
        self._poller.register(descriptor, zmq.POLLIN)

    def _tell_end(self, descriptor: int) -> None:
        name, pid = self._ends.pop(descriptor)
        self._poller.unregister(descriptor)
        os.close(descriptor)
        self._tell(b"exited", {"name": name, "pid": pid})
        rpc.wake(self._run_dir)

    def _tell(self, kind: bytes, body: Mapping[str, Any]) -> None:
        with suppress(zmq.Again):  # no broker is there
            self._dealer.send_multipart([CONTROL, kind, wire.pack(body)], zmq.NOBLOCK)


def main(argv: list[str] | None = None) -> int:
    """Listen until supervisord ends; 2 where it cannot be started as configured."""
    parser = argparse.ArgumentParser(prog="python -m axon_zmq.supervise.listener")
    parser.add_argument("--run-dir", required=True, type=Path, help="the daemon's")
    options = parser.parse_args(argv)
    lifeline.hold()
    logs.configure("events", "info")
    try:
        Listener(endpoints.private_directory(options.run_dir.absolute())).run()
    except ConfigurationError as error:
        log.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
