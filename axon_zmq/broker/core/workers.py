"""The broker's workers: who registered, who makes progress, who hangs, who was lost, and what that means for a mode."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.broker.core.pools import PreviousState, Worker
from axon_zmq.broker.core.runs import Runs
from axon_zmq.broker.core.states import WorkerEvent, WorkerState
from axon_zmq.errors import RequestError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import RunKey, printable
from axon_zmq.protocol.kinds import mode_of
from axon_zmq.protocol.msgpack import unpack

_ALIVE: Final = frozenset((WorkerState.READY, WorkerState.LEAVING))
_DOWN: Final = frozenset(("BACKOFF", "FATAL", "UNKNOWN"))
"""supervisord's states of a program that should run and does not; it is about to start one that is EXITED."""


@dataclass(slots=True)
class _Place:
    """A worker's name, which outlives its processes."""

    mode: str
    crashes: deque[float] = field(default_factory=lambda: deque[float](maxlen=limits.CRASH_LOOP))
    missing_since: float | None = None
    """Since its process was lost, if no other has come."""

    def is_missing(self, now: float) -> bool:
        return self.missing_since is not None and now - self.missing_since > limits.MISSING_GRACE

    def crashes_within(self, now: float) -> int:
        return sum(now - crash < limits.CRASH_WINDOW for crash in self.crashes)


class Workers:
    """What is known of worker processes, from themselves and from supervisord's side.

    Args:
        outgoing: Where effects go.
        runs: What they hold.
        hang_seconds: How long one may make no progress until it is killed.
        past: What an earlier broker left.
        now: Seconds of a monotonic clock.
    """

    def __init__(self, outgoing: Outgoing, runs: Runs, hang_seconds: float, past: PreviousState, now: float) -> None:
        self._out = outgoing
        self._runs = runs
        self._hang_seconds = hang_seconds
        self._past = past
        self._legacies = list(past.legacies)
        self._given: dict[str, bytes] = {}
        """Who was told to take which file, in case it is named again: the newest of them."""
        self._taking: dict[bytes, int] = {}
        """Workers that were told to take files and have not said yet what was in them."""
        self._all_came = False
        """Everybody registered that an earlier broker knew; until that was made use of."""
        self._missing: dict[bytes, int] = {}
        """Those who did not, and their pids, until they come or are killed."""
        self._places: dict[str, _Place] = {}
        self._programs: dict[str, Mapping[str, Any]] | None = None
        """What supervisord says of each; None: nobody told."""
        self._unregistered: dict[str, float] = {}
        """Programs that run, and since when they are awaited."""
        self._began_at = self._looked_at = self._missed_since = now
        self._forgot_at = 0.0
        """When a worker last dropped an ended run before its time, for want of room."""
        self._handlers: Final[Mapping[bytes, Callable[[Worker, Mapping[str, Any], float], None]]] = {
            kinds.PROGRESS: self._progress,
            kinds.SLOTS: self._slots,
            kinds.LEAVING: self._leaving,
            kinds.HANDOVER: self._handover,
            kinds.HOLDS: self._holds,
        }

    def __len__(self) -> int:
        return len(self._runs.workers)

    def all_leave(self) -> bool:
        """Whether there are workers, and none of them takes new runs."""
        workers = self._runs.workers
        return bool(workers) and not any(worker.state is WorkerState.READY for worker in workers.values())

    def are_all_there(self, expected: int) -> bool:
        """Whether everybody who may hold runs has registered, and said what it was left.

        Args:
            expected: How many; 0: every process that supervisord has started.
        """
        if self._taking:
            return False
        if expected:
            return len(self) >= expected
        if not self._programs:
            return False
        there = {worker.name for worker in self._runs.workers.values()}
        return all(name in there for name, program in self._programs.items() if program.get("pid"))

    def settled(self, now: float) -> None:
        """No more is waited for: whether nothing was lost between an earlier broker and this one."""
        known = self._past.workers or {}
        self._missing = {identity: pid for identity, pid in known.items() if identity not in self._runs.workers}
        for identity in self._missing:
            self._out.unregistered(identity, now)
        self._all_came = self._past.workers is not None and not self._missing
        self._believe()

    def _believe(self) -> None:
        """Everybody came, and has said what it was left: what was sent before this broker began is known, too."""
        if self._all_came and not self._taking and not self._legacies:
            self._all_came = False
            if self._runs.complete_since == self._began_at:
                self._runs.complete_since = max(self._past.lost_at, self._forgot_at)

    def _forgot(self, worker: Worker, body: Mapping[str, Any]) -> None:
        """A worker has dropped an ended run before its time: it is not known any more that it ran."""
        worker.forgot_at = max(worker.forgot_at, body.get("forgot_at", 0.0))
        self._forgot_at = max(self._forgot_at, worker.forgot_at)
        self._runs.complete_since = max(self._runs.complete_since, worker.forgot_at)

    # --- what they say -----------------------------------------------------------------------------

    def hear(self, peer: bytes, kind: bytes, body: bytes, now: float) -> None:
        """Take a control message."""
        try:
            said = unpack(body, "the body")
            if kind == kinds.READY:
                self._ready(peer, said, now)
            elif kind == kinds.PROCESSES:
                self._programs = _worker_programs(said["programs"])
            elif kind == kinds.EXITED:
                self._exited(said["name"], said["pid"])
            elif (handler := self._handlers.get(kind)) is not None:
                worker = self._runs.workers.get(peer)
                if worker is not None:
                    handler(worker, said, now)
                elif kind != kinds.PROGRESS:  # which a worker may have sent to an earlier broker
                    who = printable(peer)
                    self._out.note(logging.WARNING, f"{printable(kind)} from {who}, which is not registered")
        except (RequestError, KeyError, TypeError, ValueError, AttributeError) as fault:
            who = printable(peer)
            self._out.note(logging.ERROR, f"{printable(kind)} of {who} is nothing that anybody understands: {fault!r}")

    def _ready(self, identity: bytes, body: Mapping[str, Any], now: float) -> None:
        if body.get("v") != limits.BACKEND_PROTOCOL:
            self._out.note(logging.ERROR, f"{printable(identity)} speaks protocol {body.get('v')}: it gets no work")
            return
        mode, slots, name, holds = body["mode"], body["slots"], body["name"], body["holds"]
        worker = self._runs.workers.get(identity)
        if mode not in self._runs.pools:
            self._out.note(logging.ERROR, f"worker {name} serves mode {mode!r}, which this broker does not know")
        elif worker is None:
            pid, broken = body.get("pid", 0), tuple(body["broken"]) if "broken" in body else None
            worker = Worker(identity, mode, slots, name, seen=now, pid=pid, broken=broken)
            self._runs.workers[identity] = worker
            self._runs.pools[mode].workers[identity] = self._runs.describes.workers[identity] = worker
            self._runs.offer(worker)
            self._places.setdefault(name, _Place(mode)).missing_since = None
            self._forgot(worker, body)
            self._missing.pop(identity, None)
            self._out.registered(worker)
            self._out.note(logging.INFO, f"worker {name} is ready: {mode}, {slots} slots, {len(holds)} runs held")
            for held in holds:
                self._runs.adopt(worker, held, now)
            self._give_legacies(worker)
        else:
            self._forgot(worker, body)
            worker.step(WorkerEvent.READY)
            worker.slots, worker.seen = slots, now
            self._runs.offer(worker)
            for run in worker.runs.values():  # it takes all clients to be there again
                self._runs.tell_what_was_said(run)
        self._runs.dispatch_all(now)

    def _progress(self, worker: Worker, _body: Mapping[str, Any], now: float) -> None:
        was_silent = now - worker.seen >= limits.PROGRESS_TIMEOUT
        worker.seen = now
        if was_silent:
            self._runs.offer(worker)
            self._runs.dispatch_all(now)

    def _slots(self, worker: Worker, body: Mapping[str, Any], now: float) -> None:
        worker.slots = body["slots"]
        self._runs.offer(worker)
        self._runs.dispatch_all(now)

    def _leaving(self, worker: Worker, _body: Mapping[str, Any], _now: float) -> None:
        worker.step(WorkerEvent.LEAVE)
        worker.is_leaving = True
        self._out.control(worker.identity, kinds.LEFT)
        self._out.note(logging.INFO, f"worker {worker.name} is leaving with {len(worker.runs)} runs")

    # --- ended runs, from a worker that goes to one that stays -------------------------------------

    def _handover(self, worker: Worker, body: Mapping[str, Any], _now: float) -> None:
        self._forgot(worker, body)
        file = body["file"]
        if file in self._given:  # it was found at the start, and given away before its writer could say so
            self._runs.hand_over(worker.identity, self._given[file])
        else:
            heir = self._heir_of(worker)
            self._runs.hand_over(worker.identity, None if heir is None else heir.identity)
            if file not in self._legacies:
                self._legacies.append(file)
            if heir is not None:
                self._give_legacies(heir)
        self._out.control(worker.identity, kinds.HANDED)

    def _heir_of(self, leaving: Worker) -> Worker | None:
        stay = (worker for worker in self._runs.workers.values() if worker.state is WorkerState.READY)
        return max(stay, key=lambda worker: (worker.mode == leaving.mode, worker.free), default=None)

    def _give_legacies(self, heir: Worker) -> None:
        if heir.state is not WorkerState.READY or not self._legacies:
            return
        for file in self._legacies:
            self._out.control(heir.identity, kinds.TAKE, {"file": file})
            self._given[file] = heir.identity
            if len(self._given) > limits.REMEMBERED_FILES:
                del self._given[next(iter(self._given))]
        self._taking[heir.identity] = self._taking.get(heir.identity, 0) + len(self._legacies)
        self._legacies.clear()
        self._runs.hand_over(None, heir.identity)

    def _holds(self, worker: Worker, body: Mapping[str, Any], now: float) -> None:
        self._forgot(worker, body)
        for held in body["holds"]:
            self._runs.adopt(worker, held, now)
        left = self._taking.pop(worker.identity, 1) - 1
        if left > 0:
            self._taking[worker.identity] = left
        self._believe()

    # --- those that hang, end or are lost ----------------------------------------------------------

    def tick(self, now: float) -> None:
        """Have those killed that hang; time in which this process did not look does not count."""
        away = now - self._looked_at - limits.HOUSEKEEPING
        self._looked_at = now
        if away > limits.HOUSEKEEPING:
            self._missed_since += away
            for worker in self._runs.workers.values():
                worker.seen = min(now, worker.seen + away)
                self._runs.offer(worker)
            self._runs.dispatch_all(now)
        for worker in self._runs.workers.values():
            silent = now - worker.seen
            if silent >= self._hang_seconds and worker.state in _ALIVE and worker.pid:
                worker.step(WorkerEvent.KILL)
                worker.killed_at = now
                self._out.kill(worker.identity, worker.name, worker.pid)
                what = f"made no progress for {silent:.0f} s: it is killed, with {len(worker.runs)} runs"
                self._out.note(logging.ERROR, f"worker {worker.name} {what}")
        self._kill_missing(now)
        self._await_programs(now)
        for name, place in list(self._places.items()):
            if place.missing_since is not None and now - place.missing_since > limits.MISSING_TIME:
                del self._places[name]

    def _kill_missing(self, now: float) -> None:
        """Have those killed that an earlier broker knew, whose process runs, and who do not register."""
        if not self._missing or now - self._missed_since < self._hang_seconds:
            return
        missing, self._missing = self._missing, {}
        for identity, pid in missing.items():
            name = identity.decode().rpartition(".")[0]
            if pid and (self._programs or {}).get(name, {}).get("pid") == pid:
                self._out.kill(identity, name, pid)
                self._out.note(logging.ERROR, f"worker {name} has not registered again: it is killed")

    def _await_programs(self, now: float) -> None:
        there = {worker.name for worker in self._runs.workers.values()}
        running = [name for name, program in (self._programs or {}).items() if program.get("pid")]
        self._unregistered = {name: self._unregistered.get(name, now) for name in running if name not in there}

    def _exited(self, name: str, pid: int) -> None:
        for worker in self._runs.workers.values():
            if (worker.name, worker.pid) == (name, pid) and worker.state is not WorkerState.EXITED:
                worker.step(WorkerEvent.EXIT)

    def lost(self, identity: bytes, relayed: Container[RunKey], now: float) -> None:
        """A worker's link is down, and all that it had sent was read.

        Args:
            identity: The worker's.
            relayed: Runs of which something went to the client.
            now: The time.
        """
        worker = self._runs.workers.pop(identity, None)
        if worker is None:
            return
        worker.step(WorkerEvent.LOSE)
        for pool in (self._runs.pools[worker.mode], self._runs.describes):
            del pool.workers[identity]
            if not pool.workers:
                pool.empty_since = now
        self._taking.pop(identity, None)
        nothing_lost = worker.is_leaving and not worker.runs and not self._runs.has_left(identity)
        self._out.unregistered(identity, worker.forgot_at if nothing_lost else now)
        self._remember(worker, now)
        level = logging.INFO if nothing_lost else logging.WARNING
        self._out.note(level, f"worker {worker.name} is gone, with {len(worker.runs)} runs")
        self._runs.lose(worker, relayed, now)

    def _remember(self, worker: Worker, now: float) -> None:
        is_replaced = any(other.name == worker.name for other in self._runs.workers.values())
        if not worker.is_leaving:
            place = self._places.setdefault(worker.name, _Place(worker.mode))
            place.crashes.append(now)
            place.missing_since = None if is_replaced else now
        elif not is_replaced:
            self._places.pop(worker.name, None)

    # --- how it looks ------------------------------------------------------------------------------

    def degraded(self, mode: str, now: float) -> list[str]:
        """Why a mode serves with less than it should; empty where it does not."""
        programs = self._programs or {}
        reasons = [
            f"{name} is {program['state']}"
            for name, program in programs.items()
            if mode_of(name) == mode and program.get("state") in _DOWN
        ]
        reasons += [
            f"{name} runs and has not registered for {now - since:.0f} s"
            for name, since in self._unregistered.items()
            if mode_of(name) == mode and now - since > limits.MISSING_GRACE
        ]
        reasons += [
            f"{worker.name} hangs, and could not be killed"
            for worker in self._runs.pools[mode].workers.values()
            if worker.state is WorkerState.KILLED and now - worker.killed_at > limits.MISSING_GRACE
        ]
        for name, place in self._places.items():
            if place.mode == mode and place.crashes_within(now) >= limits.CRASH_LOOP:
                reasons.append(f"{name} crashed {limits.CRASH_LOOP} times within {limits.CRASH_WINDOW:.0f} s")
            elif place.mode == mode and place.is_missing(now) and self._programs is None:
                reasons.append(f"{name} has not come back since it crashed")
        return reasons

    def to_wire(self, now: float) -> list[dict[str, Any]]:
        """Each worker, for `status`."""
        return [
            {
                "name": worker.name,
                "identity": worker.identity,
                "mode": worker.mode,
                "pid": worker.pid,
                "state": worker.state.value,
                "broken": worker.broken,
                "slots": worker.slots,
                "busy": worker.busy,
                "silent_ms": max(0, int((now - worker.seen) * 1000)),
                "crashes": self._places[worker.name].crashes_within(now) if worker.name in self._places else 0,
            }
            for worker in self._runs.workers.values()
        ]


def _worker_programs(programs: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Those of supervisord's programs that are workers, by the names that the rendered configuration gives them."""
    return {name: dict(program) for name, program in programs.items() if mode_of(name)}
