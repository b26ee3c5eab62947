"""A worker's decisions, without I/O: an event and the time go in, effects come out.

`WorkerCore.receive(event, now)` contains every rule of the worker: registration with each broker, the table of runs,
how a run ends, what is replayed, and how ended runs pass from a leaving worker to its successor. It reads no clock,
touches no socket and knows no event loop; `host` does. The rules about a run's end:

- A run **ends once**: with what its code returned or raised. Once it was asked to end, whatever its code raises is
  reported as the reason for that; if it returns a result all the same, the result counts.
- Its code gets `END_GRACE_S` and some turns of the event loop to return its partial answer. Then it is answered for
  without one, and its code is **stuck**: it still occupies the worker, so the broker is told of one slot less, before
  the terminal message frees the run's slot in the broker's books.
- If code is still stuck after `STUCK_GRACE_S`, the worker leaves, and supervisord starts a fresh process.

A worker **leaves** in steps, of which each has a time limit, because there may be no broker to answer:

    SERVING --Leave--> ANNOUNCING --left--> DRAINING --no open run--> HANDING_OVER --all read--> WRITING
                                               |                           ^                       |
                                               +--time over--> ENDING -----+            GONE <-- WAITING
                                                                                         handed

In DRAINING the open runs may finish; when the drain time is over they are ended as `shutting_down`, in ENDING. In
HANDING_OVER the files that this worker was told to take are read to their end; in WRITING its ended runs are written
into a file of its own; in WAITING the broker was told the file's name. A worker without ended runs writes no file, and
is GONE at once.

Messages that runs send pass through `ActiveRun.buffer`, which numbers and keeps them.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import count
from typing import Any, Final, NamedTuple

from axon_zmq.errors import AxonError, RequestError
from axon_zmq.protocol import kinds
from axon_zmq.protocol.backend import (
    VERSION,
    Describe,
    EndReason,
    FromBroker,
    Handed,
    Handover,
    Holds,
    Leaving,
    Left,
    MalformedMessageError,
    Message,
    Progress,
    Ready,
    RunClient,
    RunEnd,
    RunResume,
    RunStart,
    Slots,
    Take,
    ToRun,
    decode_at_worker,
)
from axon_zmq.protocol.frames import RunKey, body_digest, error_body, printable, refused_body
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from axon_zmq.worker.delivery.replay_store import ReplayStore

PROGRESS_INTERVAL_S: Final = 1.0
"""Between two `progress` messages, sent by the event loop that does the work."""
END_GRACE_S: Final = 0.05
"""How long a run that was asked to end may take to return its partial answer before the worker answers without it.
pydantic-ai ends a run within about 1 ms if nothing blocks."""
LONGEST_END_GRACE_S: Final = 8.0
"""How long that and the turns of the event loop that follow may take together: on a machine that is three times too
busy, 200 runs that ended at once took more than 2 s."""
STUCK_GRACE_S: Final = 10.0
"""How long the code of an ended run may go on before the worker process is replaced."""
ANSWER_TIMEOUT_S: Final = 1.0
"""How long a leaving worker waits for each answer of the broker, and for files that it still reads."""
WRITE_TIMEOUT_S: Final = 10.0
"""How long it may take to write the handover file, of 128 MiB at most."""
ERRORS: Final[Mapping[EndReason, tuple[str, str]]] = {
    EndReason.CANCELLED: ("cancelled", "cancelled by the client"),
    EndReason.CLIENT_GONE: ("cancelled", "its client went away"),
    EndReason.DEADLINE: ("deadline_exceeded", "timeout_ms passed during the run"),
    EndReason.SLOW_CONSUMER: ("slow_consumer", "the client read too slowly"),
    EndReason.SHUTTING_DOWN: ("shutting_down", "the worker had to stop before the run was done"),
    EndReason.SUPERSEDED: ("cancelled", "the run went on elsewhere"),
}
"""The error type and message with which a run ends that was asked to."""


class Phase(Enum):
    """How far a worker's leaving has come."""

    SERVING = "serving"
    ANNOUNCING = "announcing"
    """The broker was told; what it had sent before is still arriving."""
    DRAINING = "draining"
    ENDING = "ending"
    """The drain time is over: the open runs were asked to end."""
    HANDING_OVER = "handing over"
    """Handover files that this worker was told to take are read to their end."""
    WRITING = "writing"
    """Its own handover file is being written."""
    WAITING = "waiting"
    """The handover file was written; the broker has not confirmed it."""
    GONE = "gone"


@dataclass(slots=True, weakref_slot=True, eq=False, kw_only=True)
class ActiveRun:
    """A run in the run table: from its start until its code has returned."""

    client: bytes
    id: bytes
    kind: bytes
    buffer: ReplayBuffer
    """Numbers and keeps its messages; it stays in the replay store after the run's end."""
    deadline: float
    """Seconds of the monotonic clock."""
    started: float
    open_calls: Callable[[], list[dict[str, Any]]] = list
    """Lists its unanswered tool calls as `resumed` reports them; whoever executes the run sets it."""
    reason: EndReason | None = None
    """Why it was asked to end; None if it was not."""
    ended: bool = False
    """Its terminal message was sent."""
    is_stuck: bool = False
    """It has ended, but its code has not returned."""
    end_asked_at: float = 0.0
    """When it was asked to end; only meaningful if it was."""
    cancel_deadline: Callable[[], None] | None = None
    """Forgets the timer of its deadline."""

    @property
    def key(self) -> RunKey:
        """Routing id of its client, and its id."""
        return self.client, self.id


# --- events ------------------------------------------------------------------------------------------


class Connected(NamedTuple):
    """A broker is there that may not know this worker; everything that an earlier one had sent was taken."""


class Disconnected(NamedTuple):
    """The broker is away, and all clients with it."""


class Received(NamedTuple):
    """A message from the broker."""

    frames: Sequence[bytes]


class Completed(NamedTuple):
    """A run's code has returned; the body of `complete`."""

    run: ActiveRun
    body: dict[str, Any]


class Failed(NamedTuple):
    """A run's code has raised, or its result cannot be sent."""

    run: ActiveRun
    error: AxonError


class Sent(NamedTuple):
    """The terminal message of a `Finish` effect was sent."""

    run: ActiveRun


class CodeReturned(NamedTuple):
    """A run's code is done: it no longer occupies the worker."""

    run: ActiveRun


class GraceOver(NamedTuple):
    """The event loop has made enough turns for a run's code to end, if it will: see `AwaitTurns`."""

    run: ActiveRun


class HandoverWritten(NamedTuple):
    """The ended runs are in a file; None if there were none, or it could not be written."""

    file: str | None


class HandoverRead(NamedTuple):
    """A handover file was read."""

    runs: Sequence[tuple[RunKey, ReplayBuffer]]
    """Those whose resume window has not passed."""
    is_whole: bool
    """Whether all of it could be read."""


class Leave(NamedTuple):
    """The process was told to stop."""


class Tick(NamedTuple):
    """Time has passed."""


Event = (
    Connected
    | Disconnected
    | Received
    | Completed
    | Failed
    | Sent
    | CodeReturned
    | GraceOver
    | HandoverWritten
    | HandoverRead
    | Leave
    | Tick
)

# --- effects -----------------------------------------------------------------------------------------


class Send(NamedTuple):
    """Send `[client, kind, id, body]` to the broker."""

    client: bytes
    kind: bytes
    id: bytes
    body: bytes


class Control(NamedTuple):
    """Send a control message to the broker."""

    message: Message


class Start(NamedTuple):
    """Execute a run."""

    run: ActiveRun
    message: RunStart


class AskToEnd(NamedTuple):
    """Have a run's code end; its `reason` says why."""

    run: ActiveRun


class AwaitTurns(NamedTuple):
    """Report `GraceOver` after some turns of the event loop.

    Time alone does not tell whether code had its chance: if hundreds of runs end at once, each waits for the others.
    """

    run: ActiveRun
    give_up: float
    """Seconds of the monotonic clock at which it is reported in any case."""


class Finish(NamedTuple):
    """Send a run's terminal message, after everything of it that waits, and report `Sent`.

    If no body can be packed, nothing is sent, and `Failed` is reported instead.
    """

    run: ActiveRun
    kind: bytes
    bodies: tuple[dict[str, Any], ...]
    """In order of preference: the first that can be packed is sent."""


class Deliver(NamedTuple):
    """Hand a client's message to its run's code, or refuse it."""

    run: ActiveRun
    message: ToRun


class Grant(NamedTuple):
    """A resuming client takes messages up to this `seq`, if the run is under credit."""

    run: ActiveRun
    upto: int


class PauseTools(NamedTuple):
    """The run's client is away: the time of its open tool calls stands still."""

    run: ActiveRun


class ContinueTools(NamedTuple):
    """The run's client is there again."""

    run: ActiveRun


class Catalog(NamedTuple):
    """Answer a `describe`."""

    message: Describe


class WriteHandover(NamedTuple):
    """Write ended runs into a handover file, and report `HandoverWritten`."""

    runs: Sequence[tuple[RunKey, ReplayBuffer]]


class ReadHandover(NamedTuple):
    """Read and delete a handover file, and report `HandoverRead`."""

    file: str


class Exit(NamedTuple):
    """The worker is done: close the link once it has sent what waits, and end the process."""


class Note(NamedTuple):
    """Write a line to the log."""

    level: int
    text: str
    id: bytes = b""


Effect = (
    Send
    | Control
    | Start
    | AskToEnd
    | AwaitTurns
    | Finish
    | Deliver
    | Grant
    | PauseTools
    | ContinueTools
    | Catalog
    | WriteHandover
    | ReadHandover
    | Exit
    | Note
)

# --- the core ----------------------------------------------------------------------------------------

_REFUSED_AFTER_END: Final = RequestError("invalid_request", "the run has already ended")


@dataclass(slots=True, eq=False)
class _Timer:
    """What is due at a time; emptied when it is no longer of interest, so that it keeps nothing alive."""

    due: float
    order: int
    fire: Callable[[float], None] | None

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
        drain_s: Seconds that open runs may take once the worker was told to leave.
        pack_body: Packs the bodies of runs' messages.
        now: Seconds of a monotonic clock, as in every call of `receive`.
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
    ) -> None:
        self.phase = Phase.SERVING
        self._name = name
        self._mode = mode
        self._served = served
        self._slots = slots
        self._pid = pid
        self._broken = broken
        self._drain_s = drain_s
        self._pack = pack_body
        self._runs: dict[RunKey, ActiveRun] = {}
        self._open_runs = 0
        self._store = ReplayStore()
        self._stuck = 0
        self._reading = 0
        """Handover files that are being read."""
        self._asked_early: list[RunResume] = []
        """Requests to resume runs that may be in a file which is being read."""
        self._handover: Handover | None = None
        """The handover file of this worker, once it was written."""
        self._next_progress = now + PROGRESS_INTERVAL_S
        self._phase_ends = float("inf")
        """When the current phase of leaving is given up."""
        self._timers: list[_Timer] = []
        """A heap; timers of runs that have ended meanwhile are among them."""
        self._order = count()
        self._effects: list[Effect] = []

    def __repr__(self) -> str:
        return f"<WorkerCore {self._name} {self.phase.value}, {len(self._runs)} runs, {self._stuck} stuck>"

    # --- what a shell or a test may ask ----------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[ActiveRun]:
        return iter(self._runs.values())

    def get(self, key: RunKey) -> ActiveRun | None:
        """A run whose code has not returned."""
        return self._runs.get(key)

    @property
    def open_runs(self) -> int:
        """Runs that have not ended."""
        return self._open_runs

    @property
    def kept_runs(self) -> int:
        """Runs whose messages are kept for replay."""
        return len(self._store)

    @property
    def timers(self) -> int:
        """Timers that are set, those of ended runs included."""
        return len(self._timers)

    def next_timer(self) -> float:
        """When a `Tick` is due at the latest, in seconds of the same clock."""
        due = min(self._next_progress, self._phase_ends)
        return min(due, self._timers[0].due) if self._timers else due

    def receive(self, event: Event, now: float) -> list[Effect]:
        """Take one event; the effects to apply, in order.

        Args:
            event: What happened.
            now: Seconds of a monotonic clock, the same as the broker's.
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
            case CodeReturned(run):
                self._code_returned(run)
            case GraceOver(run):
                self._answer_for(run, now)
            case _:
                self._lifecycle(event, now)
        if self.phase is not Phase.SERVING:
            self._advance(now)
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
        """Tell a broker what this worker is and which runs it holds; it answers which clients are gone."""
        for run in self._runs.values():
            self._put(ContinueTools(run))
        self._control(
            Ready(
                v=VERSION,
                mode=self._mode,
                slots=self._slots - self._stuck,
                name=self._name,
                holds=self._store.held(),
                pid=self._pid,
                broken=self._broken,
                forgot_at=self._store.forgot_at,
            )
        )
        if self.phase is not Phase.SERVING:
            self._control(Leaving())
        if self.phase is Phase.WAITING and self._handover is not None:
            self._control(self._handover)  # sent to an earlier broker, or ignored by this one before `ready`

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
                self._asked_to_end((client, id), reason, now)
            case RunResume():
                self._resume(message)
            case RunClient(client, id, is_gone):
                run = self._runs.get((client, id))
                if run is not None and not run.ended:
                    self._put(PauseTools(run) if is_gone else ContinueTools(run))
            case Describe():
                self._put(Catalog(message))
            case _:
                self._controlled(message, now)

    def _controlled(self, message: FromBroker | None, now: float) -> None:
        match message:
            case Take(file):
                self._reading += 1
                self._put(ReadHandover(file))
                # A new broker may send this before it knows that the worker leaves, perhaps with the worker's own file.
                self._write_again(now)
            case Left() if self.phase is Phase.ANNOUNCING:
                self._drain(now)
            case Handed() if self.phase is Phase.WAITING:
                self._exit()
            case _:  # an answer that is no longer waited for, `there`, or a kind of a later version
                pass

    def _malformed(self, frames: Sequence[bytes], fault: MalformedMessageError) -> None:
        """A broker's message cannot be read. If it would have started a run, the client must not wait for it."""
        self._note(logging.ERROR, f"{fault}; {len(frames)} frames from the broker")
        if len(frames) > 2 and frames[0] != kinds.CONTROL and fault.kind in kinds.REQUEST_KINDS:
            error = AxonError.of("internal", "the worker cannot read what the broker sent with this run")
            self._send((frames[0], frames[2]), kinds.ERROR, error_body(error))

    def _start(self, message: RunStart, now: float) -> None:
        if message.kind not in self._served:
            error = AxonError.of("internal", f"the worker {self._name} does not execute {printable(message.kind)}")
            self._send((message.client, message.id), kinds.ERROR, error_body(error))
            return
        lease = message.lease
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
        )
        self._runs[run.key] = run
        self._open_runs += 1
        self._store.add(run.key, run.buffer)
        run.cancel_deadline = self._call_at(run.deadline, partial(self._end, run, EndReason.DEADLINE))
        self._put(Start(run, message))

    def _to_run(self, message: ToRun) -> None:
        run = self._runs.get((message.client, message.id))
        if run is not None and not run.ended:
            self._put(Deliver(run, message))
            return
        more = {"call_id": message.header["call_id"]} if "call_id" in message.header else {}
        self._refuse((message.client, message.id), message.kind, **more)

    def _refuse(self, key: RunKey, kind: bytes, **more: Any) -> None:
        self._send(key, kinds.REFUSED, refused_body(kind, _REFUSED_AFTER_END, **more))

    # --- how a run ends --------------------------------------------------------------------------------

    def _asked_to_end(self, key: RunKey, reason: EndReason, now: float) -> None:
        run = self._runs.get(key)
        if run is not None and not run.ended:
            self._end(run, reason, now)
        elif reason is EndReason.CANCELLED:
            self._refuse(key, kinds.CANCEL)

    def _end(self, run: ActiveRun, reason: EndReason, now: float) -> None:
        """Ask a run's code to end, and answer for it if it does not."""
        if run.ended or run.reason is not None:
            return
        run.reason, run.end_asked_at = reason, now
        self._put(AskToEnd(run))
        self._call_at(now + END_GRACE_S, partial(self._on_end_grace, run))

    def _on_end_grace(self, run: ActiveRun, _now: float) -> None:
        if not run.ended:
            self._put(AwaitTurns(run, run.end_asked_at + LONGEST_END_GRACE_S))

    def _answer_for(self, run: ActiveRun, now: float) -> None:
        """A run's code has not ended in time: its client gets the error, and its code is stuck."""
        if run.ended:
            return
        run.is_stuck = True
        self._stuck += 1
        self._tell_slots()  # first: the terminal message frees the run's slot in the broker's books
        self._failed(run, AxonError.of("cancelled", ""))
        self._call_at(now + STUCK_GRACE_S, partial(self._on_stuck_grace, run))

    def _on_stuck_grace(self, run: ActiveRun, now: float) -> None:
        if run.is_stuck:
            self._note(logging.ERROR, "its code still occupies the worker: this process leaves, to be replaced", run.id)
            self._leave(now)

    def _failed(self, run: ActiveRun, error: AxonError) -> None:
        if run.ended:
            return
        if run.reason is not None:  # whatever its code made of being ended
            error_type, message = ERRORS[run.reason]
            error = AxonError.of(error_type, message, error.details)
        # Without the partial answer, or even without the text, if those cannot be packed.
        fallbacks = AxonError.of(error.error_type, error.message), AxonError.of(error.error_type, "")
        self._put(Finish(run, kinds.ERROR, tuple(each.to_body() for each in (error, *fallbacks))))

    def _sent(self, run: ActiveRun, now: float) -> None:
        if run.ended:
            return
        run.ended = True
        self._open_runs -= 1
        if run.cancel_deadline is not None:
            run.cancel_deadline()
        self._store.end(run.key, now)

    def _code_returned(self, run: ActiveRun) -> None:
        if self._runs.get(run.key) is run:  # a run with the same id may have started since
            del self._runs[run.key]
        run.open_calls = list  # whoever executed the run is not kept alive
        if run.is_stuck:
            run.is_stuck = False
            self._stuck -= 1
            self._tell_slots()

    def _tell_slots(self) -> None:
        self._control(Slots(self._slots - self._stuck))

    # --- replay ----------------------------------------------------------------------------------------

    def _resume(self, message: RunResume) -> None:
        """Send a run's messages again, from the `seq` that its client asks for."""
        key = message.client, message.id
        buffer = self._store.get(key)
        if buffer is not None:
            self._replay(key, buffer, message.header)
        elif self._reading:
            self._asked_early.append(message)
        else:
            error = RequestError("unknown_request", "the run's messages are no longer kept", {"may_have_run": True})
            self._send(key, kinds.ERROR, error_body(error))

    def _replay(self, key: RunKey, buffer: ReplayBuffer, header: Mapping[str, Any]) -> None:
        run = self._runs.get(key)
        if run is not None and run.buffer is not buffer:
            run = None
        replay = buffer.replay(header.get("from") or 1)
        calls = [] if run is None else run.open_calls()
        resumed = {"from": replay.start, "gap": replay.gap, "open_calls": calls, "last": buffer.seq}
        self._send(key, kinds.RESUMED, self._pack(resumed))
        for message in replay.messages:
            self._send(key, message.kind, message.body)
        if run is not None and not run.ended and "upto" in header:
            self._put(Grant(run, header["upto"]))

    # --- leaving ---------------------------------------------------------------------------------------

    def _leave(self, now: float) -> None:
        if self.phase is Phase.SERVING:
            self._control(Leaving())
            self._enter(Phase.ANNOUNCING, now + ANSWER_TIMEOUT_S)

    def _enter(self, phase: Phase, until: float) -> None:
        self.phase, self._phase_ends = phase, until

    def _drain(self, now: float) -> None:
        self._note(logging.INFO, f"leaving with {self.open_runs} open runs")
        self._enter(Phase.DRAINING, now + self._drain_s)

    def _advance(self, now: float) -> None:
        """Take the next step of leaving, if what the current one waits for has happened or took too long."""
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
                self._enter(Phase.ENDING, now + LONGEST_END_GRACE_S + 2 * END_GRACE_S)
            case Phase.ENDING if not self.open_runs or now >= self._phase_ends:
                self._enter(Phase.HANDING_OVER, now + ANSWER_TIMEOUT_S)
                self._advance(now)
            case Phase.HANDING_OVER if not self._reading or now >= self._phase_ends:
                self._store.tidy(now)
                self._enter(Phase.WRITING, now + WRITE_TIMEOUT_S)
                self._put(WriteHandover(list(self._store.ended(now))))
            case Phase.WRITING if now >= self._phase_ends:
                self._note(logging.ERROR, f"the handover file was not written within {WRITE_TIMEOUT_S:g} s")
                self._exit()
            case Phase.WAITING if now >= self._phase_ends:
                self._note(logging.WARNING, "no broker confirmed the handover file: the next one will find it")
                self._exit()
            case _:
                pass

    def _handover_written(self, file: str | None, now: float) -> None:
        if self.phase is not Phase.WRITING:
            return  # they will be written again
        if file is None:
            self._exit()
            return
        self._handover = Handover(file, self._store.forgot_at)
        self._control(self._handover)
        self._enter(Phase.WAITING, now + ANSWER_TIMEOUT_S)

    def _handover_read(self, runs: Sequence[tuple[RunKey, ReplayBuffer]], is_whole: bool, now: float) -> None:
        """The runs of a file are this worker's; requests to resume them that came meanwhile are answered."""
        self._reading -= 1
        if not is_whole:
            self._store.forgot_at = now
        taken = self._store.merge(runs)
        self._store.tidy(now)
        self._control(Holds(self._store.held(taken), self._store.forgot_at))
        self._note(logging.INFO, f"took over {len(taken)} ended runs")
        self._write_again(now)
        asked, self._asked_early = self._asked_early, []
        for message in asked:
            self._resume(message)

    def _write_again(self, now: float) -> None:
        """More ended runs have come, or will: a handover file that was written without them is written again."""
        if self.phase in (Phase.WRITING, Phase.WAITING):
            self._handover = None
            self._enter(Phase.HANDING_OVER, now + ANSWER_TIMEOUT_S)

    def _exit(self) -> None:
        self._enter(Phase.GONE, float("inf"))
        self._put(Exit())

    # --- time ------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        while self._timers and self._timers[0].due <= now:
            timer = heapq.heappop(self._timers)
            if timer.fire is not None:
                timer.fire(now)
        if now >= self._next_progress:
            self._next_progress = now + PROGRESS_INTERVAL_S
            self._control(Progress(self.open_runs))
            self._store.tidy(now)

    def _call_at(self, due: float, fire: Callable[[float], None]) -> Callable[[], None]:
        """Call a function at a time; what is returned cancels that."""
        timer = _Timer(due, next(self._order), fire)
        heapq.heappush(self._timers, timer)
        if len(self._timers) > 2 * len(self._runs) + 100:
            # Most runs end long before their deadline: without this, their emptied timers would stay until then.
            self._timers = [each for each in self._timers if each.fire is not None]
            heapq.heapify(self._timers)

        def cancel() -> None:
            timer.fire = None

        return cancel
