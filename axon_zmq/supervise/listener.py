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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

import zmq
from supervisor.childutils import listener

from axon_zmq.errors import ConfigurationError
from axon_zmq.process import lifeline, logs
from axon_zmq.process.run_dir import backend_endpoint, private_directory
from axon_zmq.protocol import kinds
from axon_zmq.protocol.kinds import CONTROL, mode_of
from axon_zmq.protocol.msgpack import pack
from axon_zmq.supervise import supervisord
from axon_zmq.supervise.process_events import Event, EventReader, MalformedEvent, ProcessState

log = logging.getLogger("axon_zmq.listener")

SEND_QUEUE_MESSAGES: Final = 100
"""Messages that may wait for a busy broker. A broker that was away gets the states of all programs when it is back."""
READ_BYTES: Final = 65536
"""Bytes that are read from supervisord at a time."""
_LIVE: Final = frozenset(("STARTING", "RUNNING"))


@dataclass(frozen=True, slots=True)
class Program:
    """One of supervisord's programs, as the broker is told of it."""

    state: str
    """supervisord's, such as `RUNNING`."""
    pid: int
    """0 if no process runs."""


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
        self._reader = EventReader()
        self._programs: dict[str, Program] = {}
        """The broker and the workers, by name."""
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

    def __repr__(self) -> str:
        return f"<Listener {len(self._programs)} programs>"

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
        """Read the events of supervisord and answer each one; False when supervisord is gone."""
        read = os.read(self._events, READ_BYTES)
        self._reader.feed(read)
        while (event := self._reader.next()) is not None:
            self._note(event)
            self._tell_programs()
            listener.ok(self._answers)
            listener.ready(self._answers)
        return bool(read)

    def _note(self, event: Event) -> None:
        """Keep the state that an event reports: supervisord may not answer when it is asked for all states."""
        match event:
            case ProcessState(name, state, pid) if _is_ours(name):
                self._programs[name] = Program(state, pid if state in _LIVE else 0)
            case MalformedEvent("header", data):
                log.warning("supervisord says what is no event: %r", data[:200])
            case MalformedEvent(what, data):
                log.warning("supervisord says what cannot be read: %s %r", what, data[:200])
            case _:
                pass

    def _ask(self) -> None:
        """Ask supervisord for all states, which are newer than the event that was just received."""
        try:
            infos = supervisord.processes(self._run_dir)
        except supervisord.FAULTS as fault:
            log.info("supervisord does not say what it runs: %r", fault)
            return
        self._programs = {
            info["name"]: Program(info["statename"], info["pid"]) for info in infos if _is_ours(info["name"])
        }

    # --- the broker --------------------------------------------------------------------------------

    def _tell_programs(self) -> None:
        self._ask()
        for name, program in self._programs.items():
            self._watch(name, program.pid)
        self._tell(kinds.PROCESSES, {"programs": {name: asdict(each) for name, each in self._programs.items()}})

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

    def _tell(self, kind: bytes, body: Mapping[str, object]) -> None:
        with suppress(zmq.Again):  # no broker is there
            self._dealer.send_multipart([CONTROL, kind, pack(body)], zmq.NOBLOCK)


def _is_ours(name: str) -> bool:
    """Whether a program is the broker or a worker, by the names that the rendered configuration gives them."""
    return name == "broker" or mode_of(name) is not None


def _take_stdout() -> IO[str]:
    """Reserve stdout for supervisord's protocol: whatever else is printed goes to the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def main(argv: list[str] | None = None) -> int:
    """Listen until supervisord ends; 2 if it cannot be started as configured."""
    parser = argparse.ArgumentParser(prog="python -m axon_zmq.supervise.listener")
    parser.add_argument("--run-dir", required=True, type=Path, help="the daemon's")
    options = parser.parse_args(argv)
    lifeline.die_with_parent()
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
