"""Health of each mode: whether it has as many workers as it should, and the reasons if it does not.

There are three sources: workers that register or are lost, the states of supervisord's programs as the event listener
reports them, and time. Crashes are counted for each worker name, because a name outlives its processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from axon_zmq.broker.core.pools import Worker
from axon_zmq.broker.core.states import WorkerState
from axon_zmq.protocol.backend import Program
from axon_zmq.protocol.kinds import mode_of

CRASH_LOOP: Final = 3
"""Number of crashes of one worker name within `CRASH_WINDOW_S` that makes its mode degraded."""
CRASH_WINDOW_S: Final = 60.0
"""Seconds for which a crash counts."""
MISSING_GRACE_S: Final = 10.0
"""Seconds for which a worker may be missing before its mode is degraded. A restart takes 1 to 3 s."""
MISSING_FORGOTTEN_S: Final = 600.0
"""Seconds after which a missing worker is forgotten: it may have been started by hand, in which case nothing restarts
it."""
_DOWN: Final = frozenset(("BACKOFF", "FATAL", "UNKNOWN"))
"""supervisord's states of a program that should run and does not. EXITED is not among them, because supervisord is
about to restart such a program."""


@dataclass(slots=True)
class _NameRecord:
    """Recent history of one worker name."""

    mode: str
    crashes: deque[float] = field(default_factory=lambda: deque[float](maxlen=CRASH_LOOP))
    missing_since: float | None = None
    """Time since which no process of this name has been registered, after a crash; None if one is registered."""

    def is_missing(self, now: float) -> bool:
        return self.missing_since is not None and now - self.missing_since > MISSING_GRACE_S

    def crashes_within(self, now: float) -> int:
        return sum(now - crash < CRASH_WINDOW_S for crash in self.crashes)


class Health:
    """Worker names and supervisord's programs, and the problems with them."""

    def __init__(self) -> None:
        self._names: dict[str, _NameRecord] = {}
        self._programs: Mapping[str, Program] | None = None
        """supervisord's worker programs; None if nothing was reported."""
        self._unregistered: dict[str, float] = {}
        """Programs that run without a registered worker, and the time since which each has done so."""

    def __repr__(self) -> str:
        return f"<Health of {len(self._names)} names, {len(self._programs or {})} programs>"

    def set_programs(self, programs: Mapping[str, Program]) -> None:
        """Set the states of supervisord's programs; programs other than workers are ignored."""
        self._programs = {name: program for name, program in programs.items() if mode_of(name)}

    def registered(self, worker: Worker) -> None:
        """Record that a worker has registered."""
        self._names.setdefault(worker.name, _NameRecord(worker.mode)).missing_since = None

    def lost(self, worker: Worker, is_replaced: bool, now: float) -> None:
        """Record that a worker is lost: this is a crash, unless the worker was leaving.

        Args:
            worker: The lost worker.
            is_replaced: Whether another process with this name is registered.
            now: The time.
        """
        if not worker.is_leaving:
            record = self._names.setdefault(worker.name, _NameRecord(worker.mode))
            record.crashes.append(now)
            record.missing_since = None if is_replaced else now
        elif not is_replaced:  # an orderly stop, such as after `axon-zmq scale`: the worker is not missing
            self._names.pop(worker.name, None)

    def tick(self, registered: Iterable[Worker], now: float) -> None:
        """Update which programs run without a registered worker, and forget workers that have been missing for long."""
        names = {worker.name for worker in registered}
        running = [name for name, program in (self._programs or {}).items() if program.pid]
        self._unregistered = {name: self._unregistered.get(name, now) for name in running if name not in names}
        for name, record in list(self._names.items()):
            if record.missing_since is not None and now - record.missing_since > MISSING_FORGOTTEN_S:
                del self._names[name]

    # --- queries ---------------------------------------------------------------------------------------

    def all_registered(self, registered: Iterable[Worker]) -> bool:
        """Whether each worker process that supervisord has started is registered; False without a report."""
        if not self._programs:
            return False
        names = {worker.name for worker in registered}
        return all(name in names for name, program in self._programs.items() if program.pid)

    def runs_as(self, name: str, pid: int) -> bool:
        """Whether supervisord reports that a program runs with this pid."""
        program = (self._programs or {}).get(name)
        return program is not None and program.pid == pid

    def crashes(self, name: str, now: float) -> int:
        """Number of recent crashes of a worker name."""
        return self._names[name].crashes_within(now) if name in self._names else 0

    def reasons(self, mode: str, registered: Iterable[Worker], now: float) -> list[str]:
        """The reasons why a mode is degraded, as sentences; empty if it is not.

        Args:
            mode: The mode.
            registered: The registered workers of the mode.
            now: The time.
        """
        return [
            *(
                f"{name} is {program.state}"
                for name, program in (self._programs or {}).items()
                if mode_of(name) == mode and program.state in _DOWN
            ),
            *(
                f"{name} has been running for {now - since:.0f} s without registering"
                for name, since in self._unregistered.items()
                if mode_of(name) == mode and now - since > MISSING_GRACE_S
            ),
            *(
                f"{worker.name} hangs and is still there {now - worker.killed_at:.0f} s after SIGKILL"
                for worker in registered
                if worker.state is WorkerState.KILLED and now - worker.killed_at > MISSING_GRACE_S
            ),
            *self._of_names(mode, now),
        ]

    def _of_names(self, mode: str, now: float) -> Iterable[str]:
        for name, record in self._names.items():
            if record.mode == mode and record.crashes_within(now) >= CRASH_LOOP:
                yield f"{name} crashed {CRASH_LOOP} times within {CRASH_WINDOW_S:.0f} s"
            # If supervisord has reported its programs, the state of the program is given as the reason instead.
            elif record.mode == mode and record.is_missing(now) and self._programs is None:
                yield f"{name} crashed and has not been restarted"
