"""Event listener that reports supervisord's programs to the broker: `python -m axon_zmq.supervise.listener`.

supervisord starts it as an event listener. The listener sends the broker the states of all programs, so that the broker
knows which of them cannot be kept running. The listener also watches a pidfd of each process, through which the kernel
reports the end of that process immediately. The listener then notifies the broker and wakes supervisord, which
otherwise checks its processes once per second. The listener's stdout is reserved for supervisord's protocol.
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
from axon_zmq.process import lifeline, logs, redaction
from axon_zmq.process.core_dumps import disable_core_dumps
from axon_zmq.process.run_dir import backend_endpoint, private_directory
from axon_zmq.protocol import kinds
from axon_zmq.protocol.kinds import CONTROL, mode_of
from axon_zmq.protocol.msgpack import pack
from axon_zmq.supervise import supervisord
from axon_zmq.supervise.process_events import Event, EventReader, MalformedEvent, ProcessState

log = logging.getLogger("axon_zmq.listener")

SEND_QUEUE_MESSAGES: Final = 100
"""Maximum number of messages that wait for a busy broker. After a reconnect, the broker gets the states of all programs
anyway."""
READ_BYTES: Final = 65536
"""Maximum number of bytes of one read from supervisord."""
_LIVE: Final = frozenset(("STARTING", "RUNNING"))


@dataclass(frozen=True, slots=True)
class Program:
    """State of one program, as it is reported to the broker."""

    state: str
    """State in supervisord, such as `RUNNING`."""
    pid: int
    """0 if no process runs."""


class Listener:
    """Reads supervisord's events and reports to the broker.

    Args:
        run_dir: Run directory of the daemon, with the sockets of supervisord and of the broker.
        events: File descriptor from which supervisord's events are read.
        answers: File to which the answers to the events are written.
    """

    def __init__(self, run_dir: Path, events: int, answers: IO[str]) -> None:
        self._run_dir = run_dir
        self._events = events
        self._answers = answers
        self._reader = EventReader()
        self._programs: dict[str, Program] = {}
        """Programs of the broker and the workers, by name."""
        self._ends: dict[int, tuple[str, int]] = {}
        """Name and pid of the process that each pidfd refers to."""
        self._context = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        # Without IMMEDIATE, messages queued while the broker is away would reach the next broker out of date.
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
        """Read events until supervisord ends."""
        self._report_programs()
        listener.ready(self._answers)
        is_connected = True
        while is_connected:
            for ready, _ in self._poller.poll():
                if ready == self._events:
                    is_connected = self._take_events()
                elif ready is self._monitor:
                    self._monitor.recv_multipart()  # a handshake: a new broker does not know the programs yet
                    self._report_programs()
                elif ready is self._dealer:
                    self._dealer.recv_multipart()  # this version expects none; a newer broker may send some
                elif isinstance(ready, int):
                    self._report_end(ready)

    def close(self) -> None:
        """Close the sockets and drop queued messages."""
        self._dealer.disable_monitor()
        self._context.destroy(linger=0)

    # --- supervisord -------------------------------------------------------------------------------

    def _take_events(self) -> bool:
        """Read events of supervisord and answer each one; return False when supervisord has ended."""
        read = os.read(self._events, READ_BYTES)
        self._reader.feed(read)
        while (event := self._reader.next()) is not None:
            self._record(event)
            self._report_programs()
            # supervisord sends the next event only after these two answers.
            listener.ok(self._answers)
            listener.ready(self._answers)
        return bool(read)

    def _record(self, event: Event) -> None:
        """Record the state that an event reports, in case supervisord does not answer the request for all states."""
        match event:
            case ProcessState(name, state, pid) if _is_ours(name):
                self._programs[name] = Program(state, pid if state in _LIVE else 0)
            case MalformedEvent("header", data):
                log.warning("malformed event header from supervisord: %r", data[:200])
            case MalformedEvent(what, data):
                log.warning("malformed event from supervisord: %s %r", what, data[:200])
            case _:
                pass

    def _refresh(self) -> None:
        """Request all states from supervisord; they are newer than the event that was just received."""
        try:
            infos = supervisord.processes(self._run_dir)
        except supervisord.FAULTS as fault:
            log.info("no process states from supervisord: %r", fault)
            return
        self._programs = {
            info["name"]: Program(info["statename"], info["pid"]) for info in infos if _is_ours(info["name"])
        }

    # --- the broker --------------------------------------------------------------------------------

    def _report_programs(self) -> None:
        self._refresh()
        for name, program in self._programs.items():
            self._watch(name, program.pid)
        self._send(kinds.PROCESSES, {"programs": {name: asdict(each) for name, each in self._programs.items()}})

    def _watch(self, name: str, pid: int) -> None:
        # Without pidfds (Linux before 5.3, macOS), only supervisord's events report an end.
        if not pid or not hasattr(os, "pidfd_open") or (name, pid) in self._ends.values():
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return  # the process has already ended: the next event of supervisord reports it
        self._ends[descriptor] = (name, pid)
        self._poller.register(descriptor, zmq.POLLIN)

    def _report_end(self, descriptor: int) -> None:
        name, pid = self._ends.pop(descriptor)
        self._poller.unregister(descriptor)
        os.close(descriptor)
        self._send(kinds.EXITED, {"name": name, "pid": pid})
        supervisord.wake(self._run_dir)

    def _send(self, kind: bytes, body: Mapping[str, object]) -> None:
        with suppress(zmq.Again):  # no broker is connected, or its queue is full
            self._dealer.send_multipart([CONTROL, kind, pack(body)], zmq.NOBLOCK)


def _is_ours(name: str) -> bool:
    """Return whether a program is the broker or a worker, judging by the names in the rendered configuration."""
    return name == "broker" or mode_of(name) is not None


def _take_stdout() -> IO[str]:
    """Return a file for supervisord's protocol, and redirect stdout to stderr: stray prints go to the log."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def main(argv: list[str] | None = None) -> int:
    """Run the event listener until supervisord ends; return the exit code: 2 if its configuration is invalid."""
    parser = argparse.ArgumentParser(prog="python -m axon_zmq.supervise.listener")
    parser.add_argument("--run-dir", required=True, type=Path, help="run directory of the daemon")
    options = parser.parse_args(argv)
    disable_core_dumps()
    lifeline.die_with_parent()  # ends this process with supervisord, even if supervisord is killed
    answers = _take_stdout()
    logs.configure("events", "info")
    redaction.redact_standard_streams()
    try:
        listening = Listener(private_directory(options.run_dir.absolute()), 0, answers)
    except ConfigurationError as error:
        log.error("%s", error)
        return 2
    with suppress(BrokenPipeError):  # supervisord has ended
        listening.run()
    listening.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
