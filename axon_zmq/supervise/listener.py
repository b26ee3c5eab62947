"""Tells the broker what supervisord knows of its programs: `python -m axon_zmq.supervise.listener`.

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
from typing import IO, Any, Final

import zmq
from supervisor.childutils import get_headers, listener

from axon_zmq.errors import ConfigurationError
from axon_zmq.process import lifeline, logs
from axon_zmq.process.run_dir import backend_endpoint, private_directory
from axon_zmq.protocol import kinds
from axon_zmq.protocol.kinds import CONTROL, mode_of
from axon_zmq.protocol.msgpack import pack
from axon_zmq.supervise import supervisord

log = logging.getLogger("axon_zmq.listener")

SEND_QUEUE_MESSAGES: Final = 100
"""Messages that may wait for a busy broker. A broker that was away gets the states of all programs when it is back."""
READ_BYTES: Final = 65536
"""Bytes that are read from supervisord at a time."""
_STATE: Final = "PROCESS_STATE_"
"""How the names of supervisord's events start that are about a process; its state follows."""
_LIVE: Final = frozenset(("STARTING", "RUNNING"))


class Listener:
    """One event listener.

    Args:
        run_dir: The daemon's, with supervisord's socket and the broker's.
        events: supervisord's end of a pipe, from which its events are read.
        answers: Where they are answered.
    """

    def __init__(self, run_dir: Path, events: int, answers: IO[str]) -> None:
        self._run_dir = run_dir
        self._events = events
        self._answers = answers
        self._read = b""
        self._programs: dict[str, dict[str, Any]] = {}
        """State and pid of each program of ours."""
        self._ends: dict[int, tuple[str, int]] = {}
        """Name and pid of the process that each pidfd stands for."""
        self._context = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.setsockopt(zmq.IMMEDIATE, 1)
        self._dealer.setsockopt(zmq.SNDHWM, SEND_QUEUE_MESSAGES)
        self._dealer.setsockopt(zmq.LINGER, 0)
        self._dealer.setsockopt(zmq.RECONNECT_IVL, 50)
        self._monitor = self._dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._poller = zmq.Poller()
        for readable in (events, self._monitor, self._dealer):
            self._poller.register(readable, zmq.POLLIN)
        self._dealer.connect(backend_endpoint(run_dir))

    def run(self) -> None:
        """Listen until supervisord is gone."""
        self._tell_programs()
        listener.ready(self._answers)
        is_there = True
        while is_there:
            for ready, _ in self._poller.poll():
                if ready == self._events:
                    is_there = self._take_events()
                elif ready is self._monitor:
                    self._monitor.recv_multipart()
                    self._tell_programs()
                elif ready is self._dealer:
                    self._dealer.recv_multipart()  # a later broker's, perhaps: nothing that this version knows
                elif isinstance(ready, int):
                    self._tell_end(ready)

    def close(self) -> None:
        """Let go of the sockets; what waits is dropped."""
        self._dealer.disable_monitor()
        self._context.destroy(linger=0)

    # --- supervisord -------------------------------------------------------------------------------

    def _take_events(self) -> bool:
        """Read what supervisord says, and answer each event; False where it is gone."""
        read = os.read(self._events, READ_BYTES)
        self._read += read
        while (event := self._next_event()) is not None:
            self._note(*event)
            self._tell_programs()
            listener.ok(self._answers)
            listener.ready(self._answers)
        return bool(read)

    def _next_event(self) -> tuple[str, str] | None:
        """Name and data of an event that was read whole."""
        head, newline, rest = self._read.partition(b"\n")
        if not newline:
            return None
        try:
            headers = get_headers(head.decode())
            length = int(headers["len"])
        except (ValueError, KeyError):
            log.warning("supervisord says what is no event: %r", head[:200])
            self._read = rest
            return "", ""
        if len(rest) < length:
            return None
        self._read = rest[length:]
        return headers.get("eventname", ""), rest[:length].decode(errors="replace")

    def _note(self, event: str, data: str) -> None:
        """Keep what one event says: supervisord may not answer when it is asked for all."""
        if not event.startswith(_STATE):
            return
        try:
            told = get_headers(data)
            name, state, pid = told["processname"], event.removeprefix(_STATE), int(told.get("pid", 0))
        except (ValueError, KeyError):
            log.warning("supervisord says what cannot be read: %s %r", event, data[:200])
            return
        if _is_ours(name):
            self._programs[name] = {"state": state, "pid": pid if state in _LIVE else 0}

    def _ask(self) -> None:
        """All that supervisord knows now, which is newer than the event that it is asked at."""
        try:
            told = supervisord.processes(self._run_dir)
        except supervisord.FAULTS as fault:
            log.info("supervisord does not say what it runs: %r", fault)
            return
        self._programs = {
            process["name"]: {"state": process["statename"], "pid": process["pid"]}
            for process in told
            if _is_ours(process["name"])
        }

    # --- the broker --------------------------------------------------------------------------------

    def _tell_programs(self) -> None:
        self._ask()
        for name, program in self._programs.items():
            self._watch(name, program["pid"])
        self._tell(kinds.PROCESSES, {"programs": self._programs})

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
        self._tell(kinds.EXITED, {"name": name, "pid": pid})
        supervisord.wake(self._run_dir)

    def _tell(self, kind: bytes, body: Mapping[str, Any]) -> None:
        with suppress(zmq.Again):  # no broker is there
            self._dealer.send_multipart([CONTROL, kind, pack(body)], zmq.NOBLOCK)


def _is_ours(name: str) -> bool:
    """Whether a program is the broker or a worker, by the names that the rendered configuration gives them."""
    return name == "broker" or mode_of(name) is not None


def _take_stdout() -> IO[str]:
    """stdout for supervisord alone: what anything else prints goes to the log, where it does no harm."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def main(argv: list[str] | None = None) -> int:
    """Listen until supervisord ends; 2 where it cannot be started as configured."""
    parser = argparse.ArgumentParser(prog="python -m axon_zmq.supervise.listener")
    parser.add_argument("--run-dir", required=True, type=Path, help="the daemon's")
    options = parser.parse_args(argv)
    lifeline.hold()
    answers = _take_stdout()
    logs.configure("events", "info")
    try:
        listening = Listener(private_directory(options.run_dir.absolute()), 0, answers)
    except ConfigurationError as error:
        log.error("%s", error)
        return 2
    with suppress(BrokenPipeError):  # supervisord is gone
        listening.run()
    listening.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
