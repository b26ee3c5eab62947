"""Adds, removes and restarts the worker programs of a running supervisord, one by one.

Each worker is a separate program. The section of an added program is a copy of an existing worker's section, in a file
that the configuration includes. So an added worker has the same interpreter, directory and environment as the others,
whatever the settings of the caller are.
"""

from __future__ import annotations

import fcntl
import re
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final
from xmlrpc.client import Fault

from axon_zmq.errors import ConfigurationError, UnavailableError
from axon_zmq.process.files import open_private
from axon_zmq.protocol.kinds import MODES, mode_of
from axon_zmq.supervise import broker_status, conf, supervisord

LOCK_FILE: Final = "slots.lock"
POLL_INTERVAL_S: Final = 0.05
"""Seconds between two checks of a program that starts or stops."""
START_TIMEOUT_S: Final = 60.0
"""Seconds in which a new worker must register with the broker. It usually takes 1 to 3 s."""
STOP_SLACK_S: Final = 30.0
"""Seconds beyond its `stopwaitsecs` that a program may take to stop."""
_STOPPED: Final = frozenset(("STOPPED", "FATAL", "UNKNOWN"))
"""States in which supervisord leaves a program as it is. supervisord soon restarts a program that is EXITED."""


@dataclass(frozen=True, slots=True)
class SpareAdded:
    """A spare worker, which serves while others are restarted, has registered."""

    name: str


@dataclass(frozen=True, slots=True)
class WorkerAdded:
    """A new worker has registered."""

    name: str
    broken: frozenset[str]
    """Agents that the worker could not load."""


@dataclass(frozen=True, slots=True)
class WorkerRestarted:
    """A worker was restarted and has registered again."""

    name: str


@dataclass(frozen=True, slots=True)
class WorkerRemoved:
    """A worker has finished its runs and was removed."""

    name: str


@dataclass(frozen=True, slots=True)
class BrokerRestarted:
    """The broker was restarted, and its workers have registered again."""


@dataclass(frozen=True, slots=True)
class AgentsUnchecked:
    """The broker is too old to report the agents that a spare could not load."""


Step = SpareAdded | WorkerAdded | WorkerRestarted | WorkerRemoved | BrokerRestarted | AgentsUnchecked
"""One complete step of `scale` or `roll`."""


class TemporarilyUnavailableError(UnavailableError):
    """Worker programs cannot be changed now, or did not start or stop in time.

    The message names the resulting state.
    """

    def __init__(self, message: str) -> None:
        super().__init__("unreachable", message)

    def __str__(self) -> str:
        return self.message


class WorkerPrograms:
    """The worker programs of one daemon.

    Each method raises `TemporarilyUnavailableError` if supervisord does not answer or refuses the call.

    Args:
        run_dir: Run directory of the daemon.
        configuration: Configuration file of supervisord; None to read its path from the command line of the process.

    Raises:
        TemporarilyUnavailableError: No supervisord uses the run directory.
    """

    def __init__(self, run_dir: Path, configuration: Path | None = None) -> None:
        self._run_dir = run_dir
        self._pid = pid = self._supervisor("getPID")
        self._configuration = configuration or supervisord.configuration(pid) or run_dir / "supervisord.conf"
        self._more = run_dir / conf.ADDED_PROGRAMS_FILE

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold the lock that keeps other commands from changing programs.

        Raises:
            TemporarilyUnavailableError: Another command holds the lock.
        """
        with open(self._run_dir / LOCK_FILE, "a", opener=open_private) as file:
            try:
                # The kernel releases the lock when the process ends, however it ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TemporarilyUnavailableError(
                    f"another scale or roll is running in {str(self._run_dir)!r}: wait until it has ended"
                ) from None
            yield

    def check_broker(self) -> None:
        """Check that the broker answers: without it, nothing reports whether a new worker has registered.

        Raises:
            TemporarilyUnavailableError: The broker does not answer.
        """
        try:
            broker_status.status(self._run_dir)
        except UnavailableError as fault:
            command = supervisord.start_broker(self._run_dir, self._pid)
            raise TemporarilyUnavailableError(
                f"{fault.message}; nothing was changed; start the broker with {command}"
            ) from None

    def names(self, mode: str | None = None) -> list[str]:
        """Return the programs of a mode, or of all modes, in the order of their numbers."""
        everything = [process["name"] for process in self._supervisor("getAllProcessInfo")]
        found = [name for name in everything if mode_of(name) and mode in (None, mode_of(name))]
        return sorted(found, key=lambda name: (mode_of(name) or "", int(name.rpartition("-")[2])))

    def next_name(self, mode: str) -> str:
        """Return the name for a new program of a mode, with the lowest free number."""
        taken = set(self.names(mode))
        return next(name for number in range(1, len(taken) + 2) if (name := f"{mode}-{number}") not in taken)

    def add(self, name: str) -> None:
        """Start a new program, and wait until its worker has registered.

        Raises:
            ConfigurationError: The configuration does not include `more.conf`, or has no worker section to copy.
            TemporarilyUnavailableError: The worker did not register in time. supervisord keeps trying to start it.
        """
        if name not in self._sections(self._configuration):
            text = self._more.read_text(encoding="utf-8") if self._more.exists() else ""
            if f"[program:{name}]" not in text:
                conf.replace(self._more, f"{text}\n{self._copy(name)}")
        try:
            # The same as `supervisorctl reread` and `supervisorctl update NAME`: all other programs continue to run.
            self._supervisor("reloadConfig")
            self._supervisor("addProcessGroup", name)
        except TemporarilyUnavailableError as fault:
            self._forget(name)
            raise ConfigurationError(
                f"{fault}: supervisord does not accept {name}; check its configuration, "
                f"which must contain [include] files={self._more}"
            ) from None
        self._await_registered(name, other_than=0)

    def broken(self) -> dict[str, set[str] | None]:
        """Return the agents that each ready worker could not load.

        The value is None if the worker or its broker is too old to report them.

        Raises:
            UnavailableError: No broker answers.
        """
        ready = [worker for worker in broker_status.status(self._run_dir)["workers"] if worker["state"] == "ready"]
        reported = {worker["name"]: worker.get("broken") for worker in ready}
        return {name: None if broken is None else set(broken) for name, broken in reported.items()}

    def remove(self, *names: str) -> None:
        """Stop and remove programs. Their workers finish their runs first.

        Raises:
            TemporarilyUnavailableError: A program did not stop in time.
        """
        # All are asked to stop before the first one is waited for: each may take its `stopwaitsecs`.
        for name in names:
            self._request_stop(name)
        for name in names:
            self._stop(name)
            self._supervisor("removeProcessGroup", name)
            self._forget(name)

    def restart(self, name: str) -> None:
        """Restart a program, and wait until its worker has registered. The worker finishes its runs first.

        Raises:
            TemporarilyUnavailableError: The program did not stop, or its worker did not register, in time.
        """
        before = self._info(name)["pid"]
        self._stop(name)
        self._start(name)
        self._await_registered(name, other_than=before)

    def restart_broker(self) -> None:
        """Restart the broker. Runs continue in their workers, and clients resume.

        Raises:
            UnavailableError: The broker did not run, or broker and workers were not ready again in time.
        """
        before = broker_status.status(self._run_dir)
        self._stop("broker")
        self._start("broker")

        def is_back() -> bool:
            with suppress(UnavailableError):
                now = broker_status.status(self._run_dir)
                is_new = now["boot"] != before["boot"] and not now["settling"]
                return is_new and len(now["workers"]) >= len(before["workers"])
            return False

        self._wait(is_back, START_TIMEOUT_S, "the broker did not restart, or not all workers registered with it")

    # --- inside ------------------------------------------------------------------------------------

    def _supervisor(self, method: str, *arguments: str | bool) -> Any:
        try:
            return supervisord.call(self._run_dir, method, *arguments)
        except Fault as fault:
            raise TemporarilyUnavailableError(
                f"supervisord refuses {method}({', '.join(map(str, arguments))}): {fault.faultString}"
            ) from None
        except supervisord.FAULTS as fault:
            where = str(self._run_dir)
            raise TemporarilyUnavailableError(
                f"no supervisord answers in {where!r} ({fault}): start the daemon, or set AXON_RUN_DIR"
            ) from None

    def _request_stop(self, name: str) -> bool:
        """Make supervisord stop a program, unless it is stopping; return whether it has stopped."""
        state = self._info(name)["statename"]
        if state in supervisord.RUNNING:
            with suppress(TemporarilyUnavailableError):  # the program has ended by itself meanwhile
                self._supervisor("stopProcess", name, False)
        return state in _STOPPED

    def _stop(self, name: str) -> None:
        seconds = _stop_seconds(self._sections(self._configuration, self._more).get(name, "")) + STOP_SLACK_S
        self._wait(lambda: self._request_stop(name), seconds, f"{name} did not stop")

    def _start(self, name: str) -> None:
        # supervisord retries a failed start. If all fail, the wait for the registration reports it.
        with suppress(TemporarilyUnavailableError):
            self._supervisor("startProcess", name, False)

    def _await_registered(self, name: str, other_than: int) -> None:
        def is_registered() -> bool:
            supervisord.wake(self._run_dir)
            pid = self._info(name)["pid"]
            with suppress(UnavailableError):
                workers = broker_status.status(self._run_dir)["workers"]
                return pid not in (0, other_than) and any(
                    (worker["name"], worker["pid"], worker["state"]) == (name, pid, "ready") for worker in workers
                )
            return False

        self._wait(is_registered, START_TIMEOUT_S, f"{name} did not register (see {self._run_dir / name}.log)")

    def _wait(self, done: Callable[[], bool], seconds: float, otherwise: str) -> None:
        ends_at = time.monotonic() + seconds
        while not done():
            if time.monotonic() > ends_at:
                raise TemporarilyUnavailableError(f"{otherwise} within {seconds:.0f} s")
            supervisord.wake(self._run_dir)
            time.sleep(POLL_INTERVAL_S)

    def _info(self, name: str) -> supervisord.ProcessInfo:
        return self._supervisor("getProcessInfo", name)

    def _sections(self, *files: Path) -> dict[str, str]:
        """Return the text of each program's section, by program name."""
        found: dict[str, str] = {}
        for file in files:
            try:
                text = file.read_text(encoding="utf-8").replace("%(here)s", str(file.parent).replace("%", "%%"))
            except OSError as fault:
                if file == self._configuration:
                    raise ConfigurationError(
                        f"cannot read the supervisord configuration {file}: {fault.strerror}; name it with --conf"
                    ) from None
                continue
            parts = re.split(r"^\[(?:program:)?(.+)\]\n", text, flags=re.MULTILINE)
            found |= dict(zip(parts[1::2], parts[2::2], strict=True))
        return found

    def _copy(self, name: str) -> str:
        """Return a copy of an existing worker's section under a new name, preferably of a worker of the same mode."""
        sections = self._sections(self._configuration, self._more)
        siblings = [each for each in sections if mode_of(each)]
        if not siblings:
            raise ConfigurationError(f"{self._configuration} has no [program:MODE-N] section of a worker to copy")
        sibling = max(siblings, key=lambda each: mode_of(each) == mode_of(name))
        body = sections[sibling].replace(f"--name={sibling}", f"--name={name}")
        body = body.replace(f"--mode={mode_of(sibling)} ", f"--mode={mode_of(name)} ")
        body = body.replace(f"/{sibling}.log", f"/{name}.log")
        return f"[program:{name}]\n{body.strip()}\n"

    def _forget(self, name: str) -> None:
        """Remove a section from the file of added programs."""
        if not self._more.exists():
            return
        sections = self._sections(self._more)
        kept = [f"[program:{each}]\n{body.strip()}\n" for each, body in sections.items() if each != name]
        conf.replace(self._more, "\n".join(kept))
        self._supervisor("reloadConfig")


def _stop_seconds(section: str) -> int:
    found = re.search(r"^stopwaitsecs=(\d+)", section, flags=re.MULTILINE)
    return int(found[1]) if found else 10


def scale(running: WorkerPrograms, mode: str, wanted: int) -> Iterator[Step]:
    """Add or remove programs until a mode has the wanted number; the highest numbers are removed first.

    Yields:
        Each step as soon as it is complete.

    Raises:
        ConfigurationError: As `WorkerPrograms.add`.
        TemporarilyUnavailableError: No broker answers, or a program did not start or stop in time. Completed steps are
            not undone.
    """
    with running.held():
        running.check_broker()
        while len(running.names(mode)) < wanted:
            name = running.next_name(mode)
            running.add(name)
            yield WorkerAdded(name, frozenset(running.broken().get(name) or ()))
        surplus = running.names(mode)[wanted:][::-1]
        running.remove(*surplus)
        yield from map(WorkerRemoved, surplus)


def roll(running: WorkerPrograms, names: Sequence[str], with_broker: bool) -> Iterator[Step]:
    """Restart programs one by one. In each mode, a spare worker registers before the first program stops.

    Ctrl-C, SIGTERM and SIGHUP end the roll after the current program has been restarted.

    Yields:
        Each step as soon as it is complete.

    Raises:
        ConfigurationError: As `WorkerPrograms.add`.
        UnavailableError: No broker answers, or a program did not stop or restart in time. Then the spare stays, so that
            as many workers serve as before.
    """
    with running.held(), _signals() as received:
        running.check_broker()
        for mode in MODES:
            of_mode = [name for name in names if mode_of(name) == mode]
            if of_mode and not received:
                yield from _roll_mode(running, running.next_name(mode), of_mode, received)
        if with_broker and not received:
            running.restart_broker()
            yield BrokerRestarted()
        if received:
            raise TemporarilyUnavailableError(
                "interrupted: the steps listed above are complete, the rest were not started"
            )


def _roll_mode(running: WorkerPrograms, spare: str, names: Sequence[str], received: Sequence[int]) -> Iterator[Step]:
    try:
        running.add(spare)
        is_checked = _check_agents(running, spare)
    except UnavailableError as fault:
        running.remove(spare)
        raise TemporarilyUnavailableError(
            f"{fault.message}; the spare was removed, and nothing else was changed"
        ) from None
    if not is_checked:
        yield AgentsUnchecked()
    yield SpareAdded(spare)
    for number, name in enumerate(names):
        if received:
            break
        try:
            running.restart(name)
        except TemporarilyUnavailableError as fault:
            left = ", ".join(names[number + 1 :]) or "none"
            raise TemporarilyUnavailableError(
                f"{fault}; the spare {spare} stays in its place; not restarted: {left}"
            ) from None
        yield WorkerRestarted(name)
    running.remove(spare)
    yield WorkerRemoved(spare)


def _check_agents(running: WorkerPrograms, spare: str) -> bool:
    """Check that the spare could load every agent that any other worker of its mode could load.

    Returns:
        False if the spare or the broker is too old to report the agents that could not be loaded.

    Raises:
        TemporarilyUnavailableError: The spare could not load such an agent.
    """
    reported = running.broken()
    broken = reported.pop(spare, None)
    if broken is None:
        return False
    others = [each for name, each in reported.items() if mode_of(name) == mode_of(spare) and each is not None]
    if lost := {agent for agent in broken if any(agent not in each for each in others)}:
        raise TemporarilyUnavailableError(
            f"{spare} could not load {', '.join(sorted(lost))}, which other workers have loaded (see its log)"
        )
    return True


@contextmanager
def _signals() -> Generator[list[int]]:
    """Record signals that ask to stop, and yield the list of them. The second one raises KeyboardInterrupt."""
    received: list[int] = []

    def record(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
