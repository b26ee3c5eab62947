"""Every rule of the worker, as a sans-I/O core.

`WorkerCore.receive(event, now)` takes an event and the time, and returns effects. It decides about registration with
each broker, the run table, the end of each run, replays, and the handover of ended runs from a leaving worker to its
successor. It reads no clock and uses no socket or event loop; `host` applies its effects. The rules for the end of a
run:

- A run **ends once**, with the result or the exception of its code. If it was asked to end and its code raises an
  exception, the exception is replaced by the error for the reason (`ERRORS`); if its code still returns a result, the
  run ends with that result.
- When a run is asked to end, its code gets `END_GRACE_S` and some turns of the event loop to return a partial answer.
  After that, the core ends the run without a partial answer, and the run is **stuck**: its code still occupies the
  worker. The worker therefore reports one slot fewer to the broker before it sends the terminal message, because the
  broker counts the slot as free when it relays that message.
- If a run is still stuck after `STUCK_GRACE_S`, the worker leaves, and supervisord starts a new process.

A run holds one of the worker's slots while its code executes (`concurrency`). If its code only waits for tools that the
client executes, the core sends `waiting` to the broker, which may send another run. Before the code continues, the core
sends `continuing`, and the run takes a slot again.

A worker **leaves** in phases. Each phase has a time limit, because the broker may not answer:

    SERVING --Leave--> ANNOUNCING --left--> DRAINING --no open run--> HANDING_OVER --all read--> WRITING
                                               |                           ^                       |
                                               +--time over--> ENDING -----+            GONE <-- WAITING
                                                                                         handed

In DRAINING the open runs may finish. When the drain time is over, ENDING ends the remaining ones as `shutting_down`. In
HANDING_OVER the worker finishes reading the handover files that the broker assigned to it. In WRITING it writes its
ended runs into its own handover file. In WAITING it has sent the name of that file to the broker. A worker without
ended runs writes no file and goes from WRITING to GONE at once.

Messages of runs do not pass through the core: `run.Run` sends them and numbers them in `ActiveRun.buffer`.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import count
from typing import Any, Final

from axon_zmq.errors import AxonError, RequestError
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.backend import (
    VERSION,
    Continuing,
    Describe,
    EndReason,
    FromBroker,
    Handed,
    Handover,
    Held,
    Holds,
    Leaving,
    Left,
    MalformedMessageError,
    Message,
    More,
    Progress,
    Ready,
    Replayed,
    RunClient,
    RunEnd,
    RunResume,
    RunStart,
    Slots,
    Take,
    ToRun,
    Waiting,
    decode_at_worker,
)
from axon_zmq.protocol.frames import RunKey, body_digest, error_body, printable, refused_body
from axon_zmq.worker.core import concurrency
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.core.concurrency import Slot
from axon_zmq.worker.core.effects import (
    AskToEnd,
    AwaitTurns,
    Catalog,
    Continue,
    ContinueTools,
    Control,
    Deliver,
    Effect,
    Exit,
    Finish,
    Grant,
    Note,
    PauseTools,
    ReadHandover,
    ReplayComplete,
    Send,
    Start,
    WriteHandover,
)
from axon_zmq.worker.core.events import (
    Answered,
    CodeReturned,
    Completed,
    Connected,
    Disconnected,
    Event,
    Failed,
    GraceOver,
    HandoverRead,
    HandoverWritten,
    Leave,
    MemoryUsed,
    OnlyWaits,
    Received,
    Sent,
    Tick,
)
from axon_zmq.worker.core.replays import PART_MESSAGES, Replay, Replays
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from axon_zmq.worker.delivery.replay_store import ReplayStore

PROGRESS_INTERVAL_S: Final = 1.0
"""Seconds between two `progress` messages."""
END_GRACE_S: Final = 0.05
"""Seconds that the code of a run gets to return a partial answer after the run was asked to end, before turns of the
event loop are counted. pydantic-ai ends a run within about 1 ms if nothing blocks."""
LONGEST_END_GRACE_S: Final = 8.0
"""Seconds after which a run is ended even if its code did not get all its turns of the event loop, counted from the
time when it was asked to end. On a machine with three times more work than it can do, 200 runs that ended at once took
more than 2 s."""
STUCK_GRACE_S: Final = 10.0
"""Seconds that a run may be stuck before the worker process is replaced."""
MORE_TIMEOUT_S: Final = 0.1
"""Seconds that the next part of the replays waits for the broker's answer. A broker of an earlier version, or one that
was restarted, never answers."""
ANSWER_TIMEOUT_S: Final = 1.0
"""Seconds that a leaving worker waits for each answer of the broker, and for handover files that it still reads."""
WRITE_TIMEOUT_S: Final = 10.0
"""Seconds that writing the handover file, of 128 MiB at most, may take."""
MEMORY_GRACE_S: Final = 1.0
"""Seconds after the end of a run within which its memory must be free, before another run is ended for lack of it."""
MEMORY_LEAVE_S: Final = 3.0
"""Seconds for which a worker may use too much memory until it leaves."""
MEMORY_FORGOTTEN_S: Final = 1.0
"""Seconds without a report after which a worker no longer uses too much memory."""
LARGE_RUN_BYTES: Final = 64 * limits.KIB
"""Bytes of a run's messages, in both directions, from which it may be the cause of a lack of memory. Smaller runs are
not ended for it: to end them would free nothing."""
LARGE_ANSWER_BYTES: Final = limits.MIB
"""Bytes of an ended run's kept messages from which the limit on all kept messages is enforced at once."""
ERRORS: Final[Mapping[EndReason, tuple[str, str]]] = {
    EndReason.CANCELLED: ("cancelled", "cancelled by the client"),
    EndReason.CLIENT_GONE: ("cancelled", 'the client was gone for too long; on_disconnect "keep" prevents this'),
    EndReason.KEPT_TOO_LONG: (
        "cancelled",
        "the run waited for a tool of its client, and the client was gone for too long (max_keep_ms)",
    ),
    EndReason.DEADLINE: ("deadline_exceeded", "timeout_ms passed during the run"),
    EndReason.SLOW_CONSUMER: ("slow_consumer", "the client read too slowly: its send queue in the broker is full"),
    EndReason.MEMORY: (
        "out_of_memory",
        "the worker used too much memory (AXON_WORKER_MEMORY), and this run had the most bytes of all its runs",
    ),
    EndReason.SHUTTING_DOWN: ("shutting_down", "the worker was stopped before the run had ended"),
    EndReason.SUPERSEDED: ("cancelled", "the run continues on another worker"),
}
"""Error type and message of a run that was asked to end, by the reason."""


class Phase(Enum):
    """Phases of a worker that leaves."""

    SERVING = "serving"
    ANNOUNCING = "announcing"
    """`leaving` was sent; messages that the broker sent before it was read are still arriving."""
    DRAINING = "draining"
    """The open runs may finish."""
    ENDING = "ending"
    """The drain time is over: the open runs were asked to end."""
    HANDING_OVER = "handing over"
    """The handover files that the broker assigned to this worker are being read."""
    WRITING = "writing"
    """Its own handover file is being written."""
    WAITING = "waiting"
    """The handover file was written; the broker has not confirmed it."""
    GONE = "gone"
    """Nothing more is sent, and the process ends."""


_AFTER_HANDING_OVER: Final = (Phase.WRITING, Phase.WAITING, Phase.GONE)
_REFUSED_AFTER_END: Final = RequestError("invalid_request", "the run has already ended")


@dataclass(slots=True, eq=False)
class _Timer:
    """A call at a time, as an entry of the heap of timers."""

    due: float
    """Seconds of the monotonic clock."""
    order: int
    """Serial number: decides the order of timers with the same `due`."""
    fire: Callable[[float], None] | None
    """The function to call; None if the timer was cancelled."""

    def __lt__(self, other: _Timer) -> bool:
        return (self.due, self.order) < (other.due, other.order)


class WorkerCore:
    """The runs of one worker process, from registration to handover. Not thread-safe.

    Args:
        name: The program's name in `supervisorctl status`.
        mode: `run_sync`, `run` or `run_stream`.
        served: The kinds of runs that this worker executes.
        slots: Its concurrency.
        pid: Its process id.
        broken: The agents that it could not load.
        drain_s: Seconds that open runs may take to finish when the worker leaves.
        pack_body: Packs the bodies of runs' messages.
        now: Seconds of a monotonic clock, as in every call of `receive`.
        part_messages: Maximum number of messages in a part of the replays.
    """

    def __init__(
        self,
        *,
        name: str,
        mode: str,
        served: frozenset[bytes],
        slots: int,
        pid: int,
        broken: tuple[str, ...] | None,
        drain_s: float,
        pack_body: Callable[[Any], bytes],
        now: float,
        part_messages: int = PART_MESSAGES,
    ) -> None:
        self.phase = Phase.SERVING
        self._name = name
        self._mode = mode
        self._served = served
        self._slots = concurrency.Slots(slots)
        self._pid = pid
        self._broken = broken
        self._drain_s = drain_s
        self._pack = pack_body
        self._runs: dict[RunKey, ActiveRun] = {}
        self._open_runs = 0
        self._store = ReplayStore()
        self._reading = 0
        """How many handover files are being read."""
        self._replays = Replays(
            begin=self._begin_replay,
            send=self._send,
            complete=self._complete_replay,
            ask=lambda: self._control(Replayed()),
            part_messages=part_messages,
        )
        self._more_at = float("inf")
        """When the next part of the replays is sent without an answer; infinity if none waits for one."""
        self._early_resumes: list[RunResume] = []
        """Requests to resume unknown runs, which may be in a handover file that is being read."""
        self._handover: Handover | None = None
        """The message about this worker's own handover file; None until the file was written."""
        self._next_progress = now + PROGRESS_INTERVAL_S
        self._phase_ends = float("inf")
        """When the time limit of the current phase is reached, in seconds of the monotonic clock."""
        self._memory_since = self._memory_reported = self._memory_ended = float("-inf")
        """Since when the process uses too much memory, when that was last reported, and when a run was last ended for
        it, in seconds of the monotonic clock."""
        self._timers: list[_Timer] = []
        """A heap; it may contain cancelled timers."""
        self._order = count()
        self._effects: list[Effect] = []

    def __repr__(self) -> str:
        return f"<WorkerCore {self._name} {self.phase.value}, {len(self._runs)} runs, {self._slots!r}>"

    # --- queries of the shell and of tests -------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[ActiveRun]:
        return iter(self._runs.values())

    def get(self, key: RunKey) -> ActiveRun | None:
        """Return the run with this key, if its code has not returned."""
        return self._runs.get(key)

    @property
    def open_runs(self) -> int:
        """How many runs have not ended."""
        return self._open_runs

    @property
    def slots(self) -> int:
        """How many slots are not stuck."""
        return self._slots.available

    @property
    def held_slots(self) -> int:
        """How many slots runs hold that have not ended."""
        return self._slots.held

    def slot_of(self, run: ActiveRun) -> Slot:
        """Return the relation of a run to the slots of the worker."""
        return self._slots.of(run)

    @property
    def kept_runs(self) -> int:
        """How many runs have messages that are kept for replay."""
        return len(self._store)

    @property
    def timers(self) -> int:
        """How many timers are in the heap, including cancelled ones."""
        return len(self._timers)

    def next_timer(self) -> float:
        """Return the time of the next `Tick` that the core needs, in seconds of the monotonic clock."""
        due = min(self._next_progress, self._phase_ends, self._more_at)
        return min(due, self._timers[0].due) if self._timers else due

    def receive(self, event: Event, now: float) -> list[Effect]:
        """Process one event, and return the effects to apply, in order.

        Args:
            event: The event.
            now: Seconds of the machine's monotonic clock, which broker and workers share.
        """
        match event:
            case Received(frames):
                self._received(frames, now)
            case Completed(run, body):
                if not run.ended:
                    self._put(Finish(run, kinds.COMPLETE, (body,)))
            case Failed(run, error):
                self._failed(run, error)
            case Sent(run):
                self._sent(run, now)
            case OnlyWaits(run):
                self._only_waits(run)
            case Answered(run):
                self._answered(run)
            case CodeReturned(run):
                self._code_returned(run)
            case GraceOver(run):
                self._end_as_stuck(run, now)
            case _:
                self._lifecycle(event, now)
        while (next_run := self._slots.grant()) is not None:
            self._put(Continue(next_run))
        if self.phase is not Phase.SERVING:
            self._advance(now)
        self._watch_replays(now)
        effects, self._effects = self._effects, []
        return effects

    def _lifecycle(self, event: Event, now: float) -> None:
        match event:
            case Tick():
                self._tick(now)
            case Connected():
                self._register()
            case Disconnected():
                for run in self._runs.values():
                    self._put(PauseTools(run))
            case MemoryUsed(used, most):
                self._memory_used(used, most, now)
            case Leave():
                self._leave(now)
            case HandoverRead(runs, is_whole):
                self._handover_read(runs, is_whole, now)
            case HandoverWritten(file):
                self._handover_written(file, now)
            case _:
                pass

    def _put(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _control(self, message: Message) -> None:
        self._put(Control(message))

    def _send(self, key: RunKey, kind: bytes, body: bytes) -> None:
        client, id = key
        self._put(Send(client, kind, id, body))

    def _note(self, level: int, text: str, id: bytes = b"") -> None:
        self._put(Note(level, text, id))

    # --- registration ----------------------------------------------------------------------------------

    def _register(self) -> None:
        """Register with a broker: report the worker and the runs that it holds.

        The broker adopts the runs that it does not know. It answers `gone` for each run whose client is gone.
        """
        for run in self._runs.values():
            self._put(ContinueTools(run))
        self._control(
            Ready(
                v=VERSION,
                mode=self._mode,
                slots=self._slots.available,
                name=self._name,
                holds=self._held(),
                pid=self._pid,
                broken=self._broken,
                forgot_at=self._store.forgot_at,
            )
        )
        if self.phase is not Phase.SERVING:
            self._control(Leaving())
        if self.phase is Phase.WAITING and self._handover is not None:
            # The first `handover` may have gone to the previous broker. If it reached this broker before `ready`, it
            # was ignored, because a broker ignores messages of workers that it does not know.
            self._control(self._handover)

    def _held(self) -> tuple[Held, ...]:
        waiting = {run.key for run in self._runs.values() if self._slots.of(run) is Slot.LEFT}
        sizes = {run.key: run.size for run in self._runs.values() if not run.ended}
        return self._store.held(waiting=waiting, sizes=sizes)

    # --- messages of the broker ------------------------------------------------------------------------

    def _received(self, frames: Sequence[bytes], now: float) -> None:
        try:
            message = decode_at_worker(frames)
        except MalformedMessageError as fault:
            self._malformed(frames, fault)
            return
        match message:
            case RunStart():
                self._start(message, now)
            case ToRun():
                self._to_run(message)
            case RunEnd(client, id, reason):
                self._on_end_request((client, id), reason, now)
            case RunResume():
                self._resume(message)
            case RunClient(client, id, is_gone):
                run = self._runs.get((client, id))
                if run is not None and not run.ended:
                    self._put(PauseTools(run) if is_gone else ContinueTools(run))
            case Describe():
                self._put(Catalog(message))
            case _:
                self._on_control_message(message, now)

    def _on_control_message(self, message: FromBroker | None, now: float) -> None:
        match message:
            case Take(file):
                self._reading += 1
                self._put(ReadHandover(file))
                # A restarted broker may send `take` before it reads `leaving`, even for the file that this worker
                # has just written. The runs in that file must not be lost with this process.
                self._write_again(now)
            case More():
                self._next_part()
            case Left() if self.phase is Phase.ANNOUNCING:
                self._drain(now)
            case Handed() if self.phase is Phase.WAITING:
                self._exit()
            case _:  # a late answer, `there`, or a kind of a later version of the protocol
                pass

    def _malformed(self, frames: Sequence[bytes], fault: MalformedMessageError) -> None:
        """Log a malformed message of the broker; if it is a request, answer it with an error.

        Without that answer, the client would wait until its deadline.
        """
        self._note(logging.ERROR, f"ignored a message of {len(frames)} frames from the broker: {fault}")
        if len(frames) > 2 and frames[0] != kinds.CONTROL and fault.kind in kinds.REQUEST_KINDS:
            error = AxonError.of("internal", "the worker received this request in a malformed message; see its log")
            self._send((frames[0], frames[2]), kinds.ERROR, error_body(error))

    def _start(self, message: RunStart, now: float) -> None:
        if message.kind not in self._served:
            error = AxonError.of("internal", f"the worker {self._name} does not execute {printable(message.kind)}")
            self._send((message.client, message.id), kinds.ERROR, error_body(error))
            return
        if (known := self._runs.get((message.client, message.id))) is not None and not known.ended:
            # A second run under this key would replace the buffer of the first, whose end then fails. No broker sends
            # this; the process, and with it the runs of others, must survive if one does.
            self._note(logging.ERROR, "ignored a second start of a run that has not ended", message.id)
            return
        lease = message.lease
        # The run info is kept with the messages: if the broker dies, `ready` reports it to the next one, which adopts
        # the run.
        run_info = RunInfo(
            kind=printable(message.kind),
            digest=lease.digest or body_digest(message.body),
            deadline=lease.deadline,
            keep=message.header.get("on_disconnect") == "keep",
        )
        run = ActiveRun(
            client=message.client,
            id=message.id,
            kind=message.kind,
            buffer=ReplayBuffer(self._pack, run_info),
            deadline=lease.deadline,
            started=now,
            size=len(message.body),
        )
        self._replays.forget(run.key)
        self._runs[run.key] = run
        self._open_runs += 1
        self._store.add(run.key, run.buffer)
        # The worker ends the run at its deadline itself, so that deadlines hold while no broker is running.
        run.cancel_deadline = self._call_at(run.deadline, partial(self._end, run, EndReason.DEADLINE))
        self._put(Start(run, message, self._slots.start(run)))

    def _to_run(self, message: ToRun) -> None:
        run = self._runs.get((message.client, message.id))
        if run is not None and not run.ended:
            run.size += len(message.body)
            self._put(Deliver(run, message))
            return
        more = {"call_id": message.header["call_id"]} if "call_id" in message.header else {}
        self._refuse((message.client, message.id), message.kind, **more)

    def _refuse(self, key: RunKey, kind: bytes, **more: Any) -> None:
        self._send(key, kinds.REFUSED, refused_body(kind, _REFUSED_AFTER_END, **more))

    # --- the end of a run ------------------------------------------------------------------------------

    def _on_end_request(self, key: RunKey, reason: EndReason, now: float) -> None:
        run = self._runs.get(key)
        if run is not None and not run.ended:
            self._end(run, reason, now)
        elif reason is EndReason.CANCELLED:
            self._refuse(key, kinds.CANCEL)

    def _end(self, run: ActiveRun, reason: EndReason, now: float) -> None:
        """Ask a run's code to end, and start the timer after which the run is ended without waiting for its code."""
        # The first reason counts: a run that was cancelled and then passes its deadline is reported as cancelled.
        if run.ended or run.reason is not None:
            return
        run.reason, run.end_asked_at = reason, now
        if self._slots.of(run) is not Slot.HELD:
            self._slots.end(run)  # it ends without a slot, as this takes no time; a run that waits for one ends at once
        self._put(AskToEnd(run))
        self._call_at(now + END_GRACE_S, partial(self._on_end_grace, run))

    def _on_end_grace(self, run: ActiveRun, _now: float) -> None:
        # A time limit alone is too strict on a busy loop: when hundreds of runs ended at once, most of them looked
        # stuck after 50 ms although their code had not been called yet.
        if not run.ended:
            self._put(AwaitTurns(run, run.end_asked_at + LONGEST_END_GRACE_S))

    def _end_as_stuck(self, run: ActiveRun, now: float) -> None:
        """End a run whose code has not returned in time: the client gets the error, and the run is stuck."""
        if run.ended:
            return
        run.is_stuck = True
        self._slots.change_stuck(1)
        # `slots` must arrive first: the broker frees the run's slot when it relays the terminal message, and would
        # dispatch another run to a worker that is still occupied.
        self._report_slots()
        self._failed(run, AxonError.of("cancelled", ""))  # `_failed` replaces it by the error for the reason
        self._call_at(now + STUCK_GRACE_S, partial(self._on_stuck_grace, run))

    def _on_stuck_grace(self, run: ActiveRun, now: float) -> None:
        # Python cannot stop a thread, nor a coroutine that never awaits: only a new process frees the slot.
        if run.is_stuck:
            text = f"its code still occupies the worker {STUCK_GRACE_S:g} s after the run ended: replacing this process"
            self._note(logging.ERROR, text, run.id)
            self._leave(now)

    def _failed(self, run: ActiveRun, error: AxonError) -> None:
        if run.ended:
            return
        if run.reason is not None:
            # A cancelled run may raise anything: a tool's error, a closed connection, a library's own exception. The
            # client needs the reason. The partial answer in `details` is kept.
            error_type, message = ERRORS[run.reason]
            error = AxonError.of(error_type, message, error.details)
        # If the error cannot be packed, it is sent without its details; if that fails too, also without its message.
        fallbacks = AxonError.of(error.error_type, error.message), AxonError.of(error.error_type, "")
        self._put(Finish(run, kinds.ERROR, tuple(each.to_body() for each in (error, *fallbacks))))

    def _sent(self, run: ActiveRun, now: float) -> None:
        if run.ended:
            return
        run.ended = True
        self._slots.end(run)
        self._open_runs -= 1
        if run.cancel_deadline is not None:
            run.cancel_deadline()
        self._store.end(run.key, now)
        if run.buffer.bytes > LARGE_ANSWER_BYTES:
            # Within one second, a hundred answers of 48 MiB can end: the limit of the store must hold before the next
            # tick.
            self._store.tidy(now)

    def _memory_used(self, used: int, most: int, now: float) -> None:
        """End the largest run, and leave if that does not help: the other runs may then finish, and none is lost."""
        if now - self._memory_reported > MEMORY_FORGOTTEN_S:
            self._memory_since = now
        self._memory_reported = now
        if self.phase is Phase.SERVING and now - self._memory_since >= MEMORY_LEAVE_S:
            why = f"the process has used more than {most} bytes for {MEMORY_LEAVE_S:g} s ({used} now)"
            fix = "raise AXON_WORKER_MEMORY if this occurs in normal operation"
            self._note(logging.ERROR, f"replacing this process: {why}; {fix}")
            self._leave(now)
        if now - self._memory_ended < MEMORY_GRACE_S:
            return
        open_runs = (run for run in self._runs.values() if not run.ended and run.reason is None)
        largest = max(open_runs, key=ActiveRun.weight, default=None)
        if largest is not None and largest.weight() >= LARGE_RUN_BYTES:
            self._memory_ended = now
            text = f"ending this run of {largest.weight()} bytes, the largest: the process uses {used} bytes of {most}"
            self._note(logging.ERROR, f"{text} (AXON_WORKER_MEMORY)", largest.id)
            self._end(largest, EndReason.MEMORY, now)

    def _code_returned(self, run: ActiveRun) -> None:
        # While the code of an ended run was stuck, its client may have started another run with the same id.
        if self._runs.get(run.key) is run:
            del self._runs[run.key]
        # `open_calls` is a bound method, which would keep the executing `Run` alive, and with it the request body of up
        # to many megabytes.
        run.open_calls = list
        if run.is_stuck:
            run.is_stuck = False
            self._slots.change_stuck(-1)
            self._report_slots()

    def _report_slots(self) -> None:
        self._control(Slots(self._slots.available))

    # --- runs that only wait for their client ----------------------------------------------------------

    def _only_waits(self, run: ActiveRun) -> None:
        if self._slots.of(run) is Slot.HELD and run.reason is None:
            self._slots.leave(run)
            self._control(Waiting(run.client, run.id))

    def _answered(self, run: ActiveRun) -> None:
        if self._slots.of(run) is not Slot.LEFT:
            self._put(Continue(run))  # it is ending, or its `OnlyWaits` came too late: it must not wait for a slot
            return
        # Sent even if no slot is free: the broker must not send a new run before this one has got its slot.
        self._control(Continuing(run.client, run.id))
        if self._slots.take_again(run):
            self._put(Continue(run))

    # --- replay ----------------------------------------------------------------------------------------

    def _resume(self, message: RunResume) -> None:
        """Replay a run's messages from the `seq` that its client requests."""
        key = message.client, message.id
        buffer = self._store.get(key)
        if buffer is not None:
            self._replays.request(key, buffer, message.header)
            if self.phase in _AFTER_HANDING_OVER:
                self._replays.finish()  # nothing may be left when the broker assigns the ended runs to the successor
        elif self._reading:
            # The broker sends resumes to the successor as soon as it has sent `take`, before the file was read.
            self._early_resumes.append(message)
        else:
            error = RequestError("unknown_request", "the run's messages are no longer kept", {"may_have_run": True})
            self._send(key, kinds.ERROR, error_body(error))

    def _begin_replay(self, replay: Replay) -> None:
        buffer, header = replay.buffer, replay.header
        run = self._runs.get(replay.key)
        if run is not None and run.buffer is not buffer:
            run = None  # an earlier run with the same key, whose code is stuck
        found = buffer.replay(header.get("from") or 1)
        calls = [] if run is None else run.open_calls()
        resumed = {"from": found.start, "gap": found.gap, "open_calls": calls, "last": buffer.seq}
        self._send(replay.key, kinds.RESUMED, self._pack(resumed))
        replay.next_seq = found.start
        replay.messages.extend(found.messages)
        if run is not None:
            replay.run = run
            run.is_replaying = True

    def _complete_replay(self, replay: Replay) -> None:
        run = replay.run
        if run is None:
            return
        run.is_replaying = False
        if not run.ended:
            self._put(ReplayComplete(run))
            if "upto" in replay.header:
                self._put(Grant(run, replay.header["upto"]))

    def _watch_replays(self, now: float) -> None:
        """Set the time of the next part of the replays if it has begun to wait for the broker's answer."""
        if not self._replays.is_waiting:
            self._more_at = float("inf")
        elif self._more_at == float("inf"):
            self._more_at = now + MORE_TIMEOUT_S

    def _next_part(self) -> None:
        self._more_at = float("inf")
        if self._replays.is_waiting:
            self._replays.next_part()

    # --- leaving ---------------------------------------------------------------------------------------

    def _leave(self, now: float) -> None:
        if self.phase is Phase.SERVING:
            self._control(Leaving())
            self._enter(Phase.ANNOUNCING, now + ANSWER_TIMEOUT_S)

    def _enter(self, phase: Phase, until: float) -> None:
        self.phase, self._phase_ends = phase, until

    def _drain(self, now: float) -> None:
        self._note(logging.INFO, f"leaving: {self.open_runs} open runs have {self._drain_s:g} s to finish")
        self._enter(Phase.DRAINING, now + self._drain_s)

    def _advance(self, now: float) -> None:
        """Enter the next phase of leaving, if the current one is complete or its time limit is reached."""
        match self.phase:
            case Phase.ANNOUNCING if now >= self._phase_ends:
                self._drain(now)
                self._advance(now)
            case Phase.DRAINING if not self.open_runs:
                self._enter(Phase.HANDING_OVER, now + ANSWER_TIMEOUT_S)
                self._advance(now)
            case Phase.DRAINING if now >= self._phase_ends:
                for run in list(self._runs.values()):
                    self._end(run, EndReason.SHUTTING_DOWN, now)
                # A little longer than the end of a run can take, so that every run is answered before its worker goes.
                self._enter(Phase.ENDING, now + LONGEST_END_GRACE_S + 2 * END_GRACE_S)
            case Phase.ENDING if not self.open_runs or now >= self._phase_ends:
                self._enter(Phase.HANDING_OVER, now + ANSWER_TIMEOUT_S)
                self._advance(now)
            case Phase.HANDING_OVER if not self._reading or now >= self._phase_ends:
                self._replays.finish()
                self._store.tidy(now)
                self._enter(Phase.WRITING, now + WRITE_TIMEOUT_S)
                self._put(WriteHandover(list(self._store.ended(now))))
            case Phase.WRITING if now >= self._phase_ends:
                self._note(logging.ERROR, f"the handover file was not written within {WRITE_TIMEOUT_S:g} s")
                self._exit()
            case Phase.WAITING if now >= self._phase_ends:
                text = f"no broker confirmed the handover file within {ANSWER_TIMEOUT_S:g} s: the next one will find it"
                self._note(logging.WARNING, text)
                self._exit()
            case _:
                pass

    def _handover_written(self, file: str | None, now: float) -> None:
        if self.phase is not Phase.WRITING:
            return  # more ended runs arrived meanwhile: `_write_again` has a new file written
        if file is None:
            self._exit()
            return
        self._handover = Handover(file, self._store.forgot_at)
        self._control(self._handover)
        self._enter(Phase.WAITING, now + ANSWER_TIMEOUT_S)

    def _handover_read(self, runs: Sequence[tuple[RunKey, ReplayBuffer]], is_whole: bool, now: float) -> None:
        """Take over the runs of a handover file, and answer the requests to resume them that arrived meanwhile."""
        self._reading -= 1
        if not is_whole:
            # Some runs are lost. Because of `forgot_at`, the broker no longer claims that an unknown run never ran.
            self._store.forgot_at = now
        taken = self._store.merge(runs)
        self._store.tidy(now)
        self._control(Holds(self._store.held(taken), self._store.forgot_at))
        self._note(logging.INFO, f"took over {len(taken)} ended runs")
        self._write_again(now)
        resumes, self._early_resumes = self._early_resumes, []
        for message in resumes:
            self._resume(message)

    def _write_again(self, now: float) -> None:
        """Have the handover file written again if it lacks ended runs that this worker took over or will take over."""
        if self.phase in (Phase.WRITING, Phase.WAITING):
            self._handover = None
            self._enter(Phase.HANDING_OVER, now + ANSWER_TIMEOUT_S)

    def _exit(self) -> None:
        self._enter(Phase.GONE, float("inf"))
        self._put(Exit())

    # --- timers ----------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if now >= self._more_at:
            self._next_part()
        while self._timers and self._timers[0].due <= now:
            timer = heapq.heappop(self._timers)
            if timer.fire is not None:
                timer.fire(now)
        if now >= self._next_progress:
            # `progress` shows the broker that the event loop turns. A ZeroMQ heartbeat would not: libzmq's I/O thread
            # answers it even if Python code blocks the loop.
            self._next_progress = now + PROGRESS_INTERVAL_S
            self._control(Progress(self.open_runs))
            self._store.tidy(now)  # once a second and not at each message, because it goes through all buffers

    def _call_at(self, due: float, fire: Callable[[float], None]) -> Callable[[], None]:
        """Call `fire` at the time `due`; returns a function that cancels the call."""
        timer = _Timer(due, next(self._order), fire)
        heapq.heappush(self._timers, timer)
        if len(self._timers) > 2 * len(self._runs) + 100:
            # Most runs end long before their deadline, which may be an hour away: without this, their cancelled
            # timers would stay in the heap until then.
            self._timers = [each for each in self._timers if each.fire is not None]
            heapq.heapify(self._timers)

        def cancel() -> None:
            timer.fire = None  # a heap has no cheap removal; without its function, the timer keeps no run alive

        return cancel
