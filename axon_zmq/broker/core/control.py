"""Control messages from workers and the event listener.

This is the counterpart of `admission`, which handles clients' messages. Control messages are decoded here and nowhere
else. A malformed message is logged and has no other effect.
"""

from __future__ import annotations

import logging

from axon_zmq.broker.core.handovers import Handovers
from axon_zmq.broker.core.health import Health
from axon_zmq.broker.core.outgoing import Outgoing
from axon_zmq.broker.core.pools import Pool, Worker
from axon_zmq.broker.core.recovery import PreviousState, Recovery
from axon_zmq.broker.core.relay import Relay
from axon_zmq.broker.core.runs import Runs
from axon_zmq.broker.core.states import WorkerEvent
from axon_zmq.broker.core.workers import Workers
from axon_zmq.protocol.backend import (
    TO_BROKER,
    Continuing,
    Exited,
    Handover,
    Holds,
    Leaving,
    Left,
    MalformedMessageError,
    Message,
    ModeStatus,
    More,
    Processes,
    Progress,
    Ready,
    Replayed,
    Slots,
    Waiting,
    WorkerStatus,
    decode,
)
from axon_zmq.protocol.frames import printable


class Control:
    """Handles control messages and the loss of workers.

    Args:
        outgoing: Collects the effects.
        workers: Records of workers, which these messages change.
        runs: All runs.
        relay: Relays the messages of registered workers and drops messages of lost workers.
        recovery: Keeps track of which workers of an earlier broker have registered.
        previous: The state that an earlier broker left.
        hang_seconds: Seconds after which a worker of an earlier broker is killed if it has not registered.
    """

    def __init__(
        self,
        *,
        outgoing: Outgoing,
        workers: Workers,
        runs: Runs,
        relay: Relay,
        recovery: Recovery,
        previous: PreviousState,
        hang_seconds: float,
    ) -> None:
        self._out = outgoing
        self._workers = workers
        self._runs = runs
        self._relay = relay
        self._recovery = recovery
        self._hang_seconds = hang_seconds
        self._health = Health()
        self._handovers = Handovers(outgoing=outgoing, workers=workers, runs=runs, files=previous.handover_files)

    def __repr__(self) -> str:
        return f"<Control {self._workers!r} {self._handovers!r}>"

    # --- messages --------------------------------------------------------------------------------------

    def receive(self, peer: bytes, kind: bytes, body: bytes, now: float) -> None:
        """Handle a control message. Kinds that this version does not know are ignored.

        Args:
            peer: Routing id of the sender.
            kind: The message's kind.
            body: The packed body.
            now: The time.
        """
        try:
            message = decode(TO_BROKER, kind, body)
        except MalformedMessageError as fault:
            self._out.log(logging.ERROR, f"{fault} from {printable(peer)}")
            return
        match message:
            case Ready():
                self._ready(peer, message, now)
            case Processes():
                self._health.set_programs(message.programs)
            case Exited(name, pid):
                # The worker is not lost yet, because its last messages may be unread. The probe finds its link down,
                # and reads them before the worker is declared lost.
                self._workers.exited(name, pid)
                self._out.probe_workers()
            case None:  # a kind that a newer version has added
                pass
            case _:
                self._from_worker(peer, message, now)

    def _from_worker(self, peer: bytes, message: Message, now: float) -> None:
        worker = self._workers.get(peer)
        if worker is None:
            # A `progress` that the worker sent to an earlier broker may arrive before its `ready`.
            if not isinstance(message, Progress):
                text = f"ignoring {printable(message.kind)} from {printable(peer)}: the worker is not registered"
                self._out.log(logging.WARNING, text)
            return
        match message:
            case Progress():
                if self._workers.progressed(worker, now):
                    self._runs.dispatch_all(now)
            case Slots(slots):
                self._workers.set_slots(worker, slots)
                self._runs.dispatch_all(now)
            case Replayed():
                self._out.control(peer, More())
            case Waiting(client, id) | Continuing(client, id):
                self._runs.set_waiting(worker, (client, id), isinstance(message, Waiting), now)
            case Leaving():
                self._leaving(worker)
            case Handover(file, forgot_at):
                self._note_forgotten(worker, forgot_at)
                self._handovers.written(worker, file)
            case Holds():
                self._holds(worker, message, now)
            case _:
                pass

    def _ready(self, peer: bytes, ready: Ready, now: float) -> None:
        self._relay.worker_registered(peer)
        worker = self._workers.get(peer)
        if ready.mode not in self._workers.pools:
            known = ", ".join(self._workers.pools)
            text = f"ignoring worker {ready.name}: unknown mode {ready.mode!r}, expected one of {known}"
            self._out.log(logging.ERROR, text)
        elif worker is None:
            self._register(peer, ready, now)
        else:
            # The worker has reconnected to this same broker, so its runs are known.
            self._note_forgotten(worker, ready.forgot_at)
            worker.step(WorkerEvent.READY)
            worker.progress_at = now
            self._workers.set_slots(worker, ready.slots)
            # A `waiting` or `continuing` may have been lost with the connection.
            for held in ready.holds:
                self._runs.set_waiting(worker, (held.client, held.id), held.waiting, now)
            # A worker that registers assumes that all clients are connected, so `gone` is sent again for gone clients.
            for run in worker.runs.values():
                self._runs.deliver_pending(run)
        self._runs.dispatch_all(now)

    def _register(self, peer: bytes, ready: Ready, now: float) -> None:
        worker = self._workers.add(peer, ready, now)
        self._health.registered(worker)
        self._note_forgotten(worker, ready.forgot_at)
        self._recovery.worker_registered(peer)
        self._out.registered(worker)
        text = f"worker {ready.name} registered: mode {ready.mode}, {ready.slots} slots, {len(ready.holds)} held runs"
        self._out.log(logging.INFO, text)
        for held in ready.holds:
            self._runs.adopt(worker, held, now)
        self._handovers.give_to(worker)

    def _leaving(self, worker: Worker) -> None:
        worker.step(WorkerEvent.LEAVE)
        worker.is_leaving = True
        # Messages to one worker keep their order, so no run follows this answer.
        self._out.control(worker.routing_id, Left())
        self._out.log(logging.INFO, f"worker {worker.name} is leaving, with {len(worker.runs)} open runs")

    def _holds(self, worker: Worker, message: Holds, now: float) -> None:
        self._note_forgotten(worker, message.forgot_at)
        for held in message.holds:
            self._runs.adopt(worker, held, now)
        self._handovers.read(worker)
        self._confirm_complete_history()

    def _note_forgotten(self, worker: Worker, forgot_at: float) -> None:
        worker.forgot_at = max(worker.forgot_at, forgot_at)
        self._recovery.forgotten_by_worker(worker.forgot_at)

    # --- recovery --------------------------------------------------------------------------------------

    def all_registered(self, expected: int) -> bool:
        """Whether every expected worker has registered, and has read every handover file that it was given.

        Args:
            expected: Number of workers; 0: all worker processes that supervisord has started.
        """
        if not self._handovers.are_read:
            return False
        return len(self._workers) >= expected if expected else self._health.all_registered(self._workers)

    def recovered(self, now: float) -> None:
        """End recovery: workers that have not registered by now count as lost."""
        self._recovery.finish(now)
        self._confirm_complete_history()

    def _confirm_complete_history(self) -> None:
        if self._handovers.are_complete:
            self._recovery.confirm_complete_history()

    # --- workers that hang or are lost -----------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Kill workers that hang, and update which workers are missing."""
        if away := self._workers.skip_suspended_time(now):
            self._recovery.skip_time(away)
            self._runs.dispatch_all(now)
        self._workers.kill_hung(now)
        for routing_id, pid in self._recovery.take_overdue(now, self._hang_seconds).items():
            self._kill_missing(routing_id, pid)
        self._health.tick(self._workers, now)

    def _kill_missing(self, routing_id: bytes, pid: int) -> None:
        """Kill a worker of an earlier broker that has not registered, if supervisord reports that it still runs."""
        # A worker's routing id is "<name of its program>.<random>".
        name = printable(routing_id).rpartition(".")[0]
        if pid and self._health.runs_as(name, pid):
            self._out.kill(routing_id, name, pid, is_linked=False)
            text = f"killing worker {name} (pid {pid}): it has not registered since the broker was restarted"
            self._out.log(logging.ERROR, text)

    def lost(self, routing_id: bytes, now: float) -> None:
        """Handle the loss of a worker: its link is down, and all messages that it had sent have been read.

        Args:
            routing_id: Routing id of the worker.
            now: The time.
        """
        self._relay.worker_lost(routing_id)
        worker = self._workers.get(routing_id)
        if worker is None:
            return
        self._workers.remove(worker, now)
        self._handovers.worker_lost(worker)
        # A leaving worker that has finished and handed over its runs loses nothing, so the journal must not record a
        # loss at this time: after one, the next broker could be certain only about runs that were sent later.
        nothing_lost = worker.is_leaving and not worker.runs and not self._runs.has_ended_runs_of(routing_id)
        self._out.unregistered(routing_id, worker.forgot_at if nothing_lost else now)
        self._health.lost(worker, self._workers.is_name_used(worker.name), now)
        level = logging.INFO if nothing_lost else logging.WARNING
        lost = f"lost worker {worker.name} with {len(worker.runs)} open runs"
        self._out.log(level, f"worker {worker.name} has stopped" if nothing_lost else lost)
        self._runs.lose(worker, now)

    # --- status ----------------------------------------------------------------------------------------

    def mode_status(self, pool: Pool, now: float) -> ModeStatus:
        """Describe a mode, for `status` and `pong`."""
        reasons = self._health.reasons(pool.mode, pool.workers.values(), now)
        return ModeStatus(
            workers=len(pool.workers),
            free=pool.free,
            queued=pool.waiting,
            degraded=bool(reasons),
            reasons=tuple(reasons),
        )

    def worker_statuses(self, now: float) -> tuple[WorkerStatus, ...]:
        """Describe each worker, for `status`."""
        return tuple(
            WorkerStatus(
                name=worker.name,
                identity=worker.routing_id,
                mode=worker.mode,
                pid=worker.pid,
                state=worker.state.value,
                broken=worker.broken,
                slots=worker.slots,
                busy=worker.busy,
                silent_ms=max(0, int((now - worker.progress_at) * 1000)),
                crashes=self._health.crashes(worker.name, now),
                waiting=worker.waiting,
            )
            for worker in self._workers
        )
