"""The worker programs of a running supervisord: added, removed and restarted one by one, without touching the others.

Each slot of a mode is a program of its own. One that is added is a copy of a sibling's section, in a file which
the configuration includes; so it has the interpreter, the directory and the environment of the others, whatever
the settings of whoever asks are.
"""

from __future__ import annotations

import fcntl
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from axon_zmq import wire
from axon_zmq.errors import ConfigurationError, UnavailableError
from axon_zmq.supervise import backend, conf, rpc
from axon_zmq.wire import mode_of

LOCK: Final = "slots.lock"
LOOK: Final = 0.05
"""Seconds between two looks at what is starting or stopping."""
START_TIME: Final = 60.0
"""Seconds that a new worker may take until it has registered; 1 to 3 are usual."""
STOP_SLACK: Final = 30.0
"""Seconds over its own `stopwaitsecs` that a program may take to stop."""


class Slots:
    """The worker programs of one daemon.

    Args:
        run_dir: The daemon's.
        configuration: supervisord's own file; found through its process where left out.

    Raises:
        ConfigurationError: No supervisord serves the run directory, or its configuration is not found.
    """

    def __init__(self, run_dir: Path, configuration: Path | None = None) -> None:
        self._run_dir = run_dir
        try:
            pid = self._supervisor("getPID")
        except rpc.FAULTS as fault:
            raise ConfigurationError(
                f"no supervisord serves {str(run_dir)!r} ({fault}): start the daemon, or set AXON_RUN_DIR"
            ) from None
        self._configuration = configuration or _configuration_of(pid) or run_dir / "supervisord.conf"
        self._more = run_dir / conf.MORE

    @contextmanager
    def held(self) -> Generator[None]:
        """Nobody else changes slots meanwhile.

        Raises:
            ConfigurationError: Somebody does.
        """
        with (self._run_dir / LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError("another scale or roll is at work here: wait for its end") from None
            yield

    def names(self, mode: str | None = None) -> list[str]:
        """The programs of a mode, or of all, in the order of their numbers."""
        found = [name for name in rpc.workers(self._run_dir) if mode in (None, mode_of(name))]
        return sorted(found, key=lambda name: (mode_of(name) or "", int(name.rpartition("-")[2])))

    def next_name(self, mode: str) -> str:
        """The name of one more slot: the lowest number that is free."""
        taken = set(self.names(mode))
        return next(name for number in range(1, len(taken) + 2) if (name := f"{mode}-{number}") not in taken)

    def add(self, name: str) -> None:
        """Start one more slot, and wait until the broker has it.

        Raises:
            ConfigurationError: supervisord's configuration includes no further file, or has no slot to copy.
            UnavailableError: It did not register in time.
        """
        if name not in self._sections(self._configuration):
            text = self._more.read_text(encoding="utf-8") if self._more.exists() else ""
            if f"[program:{name}]" not in text:
                conf.replace(self._more, f"{text}\n{self._copy(name)}")
        self._supervisor("reloadConfig")
        try:
            self._supervisor("addProcessGroup", name)
        except rpc.FAULTS as fault:
            self._forget(name)
            raise ConfigurationError(
                f"supervisord does not take {name} ({fault}): its configuration must have [include] files={self._more}"
            ) from None
        self._await_registered(name, other_than=0)

    def remove(self, name: str) -> None:
        """Stop a slot, which finishes what it has, and take it out.

        Raises:
            UnavailableError: It did not stop in time.
        """
        self._stop(name)
        self._supervisor("removeProcessGroup", name)
        self._forget(name)

    def restart(self, name: str) -> None:
        """Stop a slot, which finishes what it has, and start it anew.

        Raises:
            UnavailableError: It did not stop, or come back, in time.
        """
        before = self._info(name)["pid"]
        self._stop(name)
        self._supervisor("startProcess", name, False)
        self._await_registered(name, other_than=before)

    def restart_broker(self) -> None:
        """Stop the broker and start it anew: runs go on, clients resume.

        Raises:
            UnavailableError: It did not come back in time.
        """
        workers = len(backend.status(self._run_dir)["workers"])
        boot = backend.status(self._run_dir)["boot"]
        self._stop("broker")
        self._supervisor("startProcess", "broker", False)

        def is_back() -> bool:
            with suppress(UnavailableError):
                now = backend.status(self._run_dir)
                return now["boot"] != boot and not now["settling"] and len(now["workers"]) >= workers
            return False

        self._wait(is_back, START_TIME, "the broker did not come back, with its workers")

    def _supervisor(self, method: str, *arguments: Any) -> Any:
        return rpc.call(self._run_dir, method, *arguments)

    # --- inside ------------------------------------------------------------------------------------

    def _stop(self, name: str) -> None:
        info = self._info(name)
        if info["pid"]:
            with suppress(*rpc.FAULTS):  # it ended by itself just now
                self._supervisor("stopProcess", name, False)
        seconds = _stop_seconds(self._sections(self._configuration, self._more).get(name, "")) + STOP_SLACK
        self._wait(lambda: not self._info(name)["pid"], seconds, f"{name} did not stop")

    def _await_registered(self, name: str, other_than: int) -> None:
        def is_there() -> bool:
            rpc.wake(self._run_dir)
            pid = self._info(name)["pid"]
            with suppress(UnavailableError):
                workers = backend.status(self._run_dir)["workers"]
                return pid not in (0, other_than) and any(
                    (worker["name"], worker["pid"], worker["state"]) == (name, pid, "ready") for worker in workers
                )
            return False

        self._wait(is_there, START_TIME, f"{name} did not register: see {self._run_dir / name}.log")

    def _wait(self, done: Callable[[], bool], seconds: float, otherwise: str) -> None:
        give_up = time.monotonic() + seconds
        while not done():
            if time.monotonic() > give_up:
                raise UnavailableError("no_worker", f"{otherwise}, within {seconds:.0f} s")
            rpc.wake(self._run_dir)
            time.sleep(LOOK)

    def _info(self, name: str) -> dict[str, Any]:
        return self._supervisor("getProcessInfo", name)

    def _sections(self, *files: Path) -> dict[str, str]:
        """The text of each program's section."""
        found: dict[str, str] = {}
        for file in files:
            try:
                text = file.read_text(encoding="utf-8").replace("%(here)s", str(file.parent).replace("%", "%%"))
            except OSError as fault:
                if file == self._configuration:
                    raise ConfigurationError(f"supervisord's configuration {file}: {fault.strerror}") from None
                continue
            parts = re.split(r"^\[(?:program:)?(.+)\]\n", text, flags=re.MULTILINE)
            found |= dict(zip(parts[1::2], parts[2::2], strict=True))
        return found

    def _copy(self, name: str) -> str:
        """A sibling's section under a new name; a sibling of another mode where its own has none."""
        sections = self._sections(self._configuration, self._more)
        siblings = [each for each in sections if mode_of(each)]
        if not siblings:
            raise ConfigurationError(f"{self._configuration} has no worker's section that could be copied")
        sibling = max(siblings, key=lambda each: mode_of(each) == mode_of(name))
        body = sections[sibling].replace(f"--name={sibling}", f"--name={name}")
        body = body.replace(f"--mode={mode_of(sibling)} ", f"--mode={mode_of(name)} ")
        body = body.replace(f"/{sibling}.log", f"/{name}.log")
        return f"[program:{name}]\n{body.strip()}\n"

    def _forget(self, name: str) -> None:
        """Take a section out of the file of those that were added."""
        if not self._more.exists():
            return
        sections = self._sections(self._more)
        kept = [f"[program:{each}]\n{body.strip()}\n" for each, body in sections.items() if each != name]
        conf.replace(self._more, "\n".join(kept))
        self._supervisor("reloadConfig")


def _configuration_of(pid: int) -> Path | None:
    """The file that a supervisord was started with, where its command line can be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        folder = Path(f"/proc/{pid}/cwd").resolve()
    except OSError:
        return None
    for option in ("-c", "--configuration"):
        if option in words:
            return folder / words[words.index(option) + 1]
    return None


def _stop_seconds(section: str) -> int:
    found = re.search(r"^stopwaitsecs=(\d+)", section, flags=re.MULTILINE)
    return int(found[1]) if found else 10


def scale(slots: Slots, mode: str, wanted: int, say: Callable[[str], None]) -> None:
    """Bring a mode to so many slots, the highest numbers going first.

    Raises:
        ConfigurationError: As `Slots.add`.
        UnavailableError: A slot did not start, or stop, in time; those that did stay.
    """
    with slots.held():
        while len(slots.names(mode)) < wanted:
            name = slots.next_name(mode)
            slots.add(name)
            say(f"{name} is there")
        while len(names := slots.names(mode)) > wanted:
            slots.remove(names[-1])
            say(f"{names[-1]} has gone")


def roll(slots: Slots, names: list[str], with_broker: bool, say: Callable[[str], None]) -> None:
    """Restart slots one after the other; a spare one of each mode is there before the first stops.

    Raises:
        ConfigurationError: As `Slots.add`.
        UnavailableError: A slot did not come back, or stop, in time; then the spare stays in its place.
    """
    with slots.held():
        for mode in wire.MODES:
            of_mode = [name for name in names if mode_of(name) == mode]
            if not of_mode:
                continue
            spare = slots.next_name(mode)
            slots.add(spare)
            say(f"{spare} is there as a spare")
            for name in of_mode:
                slots.restart(name)
                say(f"{name} is there again")
            slots.remove(spare)
            say(f"{spare} has gone")
        if with_broker:
            slots.restart_broker()
            say("the broker is there again")
