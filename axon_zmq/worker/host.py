"""The asyncio shell of a worker: it executes runs and applies the effects of the worker core.

The link, the code of runs and timers cause events; `WorkerCore.receive` returns effects for each, and `Host` applies
them. Messages of a run do not pass through the core: `Run.send` numbers them in the run's replay buffer and passes them
to the link.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from axon_zmq.errors import AxonError
from axon_zmq.process.event_loop import Turns
from axon_zmq.process.event_queue import EventQueue
from axon_zmq.process.logs import current_run
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.backend import Describe, Ready, ToRun
from axon_zmq.protocol.frames import RunKey, error_body, printable, refused_body
from axon_zmq.protocol.msgpack import unpack
from axon_zmq.protocol.plain import packer
from axon_zmq.protocol.requests import DescribeRequest, checked
from axon_zmq.worker import run_logs
from axon_zmq.worker.adapter import errors, tracing
from axon_zmq.worker.adapter.client_tools import RemoteCall, read_answer
from axon_zmq.worker.core.active_run import ActiveRun
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
    OnlyWaits,
    Received,
    Sent,
    Tick,
)
from axon_zmq.worker.core.worker import WorkerCore
from axon_zmq.worker.delivery import handover
from axon_zmq.worker.delivery.credit import Credit
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer
from axon_zmq.worker.link import Link
from axon_zmq.worker.memory import Memory
from axon_zmq.worker.registry.agents import Registry
from axon_zmq.worker.run import Mode, Run
from axon_zmq.worker.starts import Starts

log = logging.getLogger(__name__)

END_TURNS: Final = 64
"""Number of turns of the event loop, after `END_GRACE_S`, within which a run's code must end. Ending a run takes about
13 turns; if hundreds of runs are cancelled at once, each turn takes long. (Runs of `run_sync` end in other threads, so
turns of this loop are only a rough measure for them.)"""
LAST_SEND_TIMEOUT_S: Final = 1.0
"""Seconds that a leaving worker waits for the broker to receive its last messages."""
LARGE_TOOL_RESULT_BYTES: Final = 32 * limits.KIB
"""Size in bytes above which a `tool_result` is decoded and checked in a thread, so that it delays no other run."""
TRACED_ERRORS: Final = frozenset(("internal", "tool_failed"))
"""Error types whose traceback is logged, unless the tool itself reported the failure."""


class MakeLink(Protocol):
    """Makes the link to the broker."""

    def __call__(
        self,
        *,
        received: Callable[[list[bytes]], None],
        connected: Callable[[], None],
        disconnected: Callable[[], None],
    ) -> Link:
        """Make the link, with the keyword arguments of `Link`."""
        ...


class Host:
    """Executes the runs of one worker process.

    Args:
        core: The worker core, which decides.
        modes: The executor of each kind of run.
        registry: Answers `describe`.
        run_dir: The run directory, which contains the handover files.
        connect: Makes the link.
        memory_limit: Bytes that this process may use; 0: no limit.
    """

    def __init__(
        self,
        *,
        core: WorkerCore,
        modes: Mapping[bytes, Mode],
        registry: Registry,
        run_dir: Path,
        connect: MakeLink,
        memory_limit: int = 0,
    ) -> None:
        self._core = core
        self._modes = modes
        self._registry = registry
        self._run_dir = run_dir
        self._pack = packer()
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        """The context of the process. A run's code may cause an effect; tasks and timers started in the run's own
        context would write its request id into the log lines of other runs."""
        self._turns = Turns(END_TURNS)
        self._starts: Starts[Run] = Starts(lambda run: self._spawn(self._execute(run)))
        self._runs: dict[ActiveRun, Run] = {}
        """The executing `Run` of each run in the core's table."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._events = EventQueue(core.receive, time.monotonic, self._apply)
        self._memory = Memory(memory_limit, self._put)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = float("inf")
        """When `_timer` fires, in seconds of the monotonic clock."""
        self._done: asyncio.Future[None] = self._loop.create_future()
        """Done when the process must end; with an exception after an internal error."""
        self.registered = asyncio.Event()
        """Set when the first `ready` was sent."""
        self._link = connect(
            received=lambda frames: self._put(Received(frames)),
            connected=lambda: self._put(Connected()),
            disconnected=lambda: self._put(Disconnected()),
        )
        self._arm_timer()

    def __repr__(self) -> str:
        return f"<Host {self._core!r}>"

    async def serve(self) -> None:
        """Execute runs until the core returns `Exit`."""
        try:
            await self._done
            try:
                await asyncio.wait_for(self._link.room(), LAST_SEND_TIMEOUT_S)
            except TimeoutError:
                log.warning("the broker did not receive the last messages within %g s", LAST_SEND_TIMEOUT_S)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._memory.close()
            self._link.close()

    def leave(self) -> None:
        """Start to leave: no new runs are taken, and `serve` returns when the open ones have ended."""
        self._put(Leave())

    # --- the core --------------------------------------------------------------------------------------

    def _put(self, event: Event) -> None:
        """Pass an event to the core and apply its effects."""
        try:
            self._events.put(event)
        except Exception as error:
            # A bug of ours. The core may have processed half of the event, so its state is no longer reliable: the
            # process ends, and supervisord starts a new one.
            self._give_up(error)
            raise
        self._arm_timer()

    def _arm_timer(self) -> None:
        """Set the timer for the next `Tick` that the core needs.

        A timer that fires too early is harmless: the core ignores the tick, and the timer is set again.
        """
        due = self._core.next_timer()
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        # Not read from the handle: if the time has already passed, uvloop returns a handle without `when`.
        self._timer_due = due
        # At least 1 ms, the resolution of uvloop's clock: with less, a timer fires before `due` and must be set again.
        delay = max(0.001, due - time.monotonic())
        self._timer = self._loop.call_later(delay, self._tick, context=self._context)

    def _tick(self) -> None:
        self._timer = None
        self._put(Tick())

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Send(client, kind, id, body):
                self._link.send(client, kind, id, body)
            case Control(message):
                self._link.control(message)
                if isinstance(message, Ready):
                    self.registered.set()
            case Start():
                self._start(effect)
            case Finish():
                self._finish(effect)
            case AwaitTurns(active, give_up):
                self._turns.call_after(partial(self._put, GraceOver(active)), give_up)
            case Note(level, text, id):
                log.log(level, text, extra={"run": printable(id) or "-"})
            case Exit():
                if not self._done.done():
                    self._done.set_result(None)
            case Catalog() | WriteHandover() | ReadHandover():
                self._spawn(self._coroutine_for(effect))
            case AskToEnd() | Continue() | Deliver() | Grant() | ReplayComplete() | PauseTools() | ContinueTools():
                self._apply_to_run(effect)

    def _coroutine_for(self, effect: Catalog | WriteHandover | ReadHandover) -> Coroutine[Any, Any, None]:
        match effect:
            case Catalog(message):
                return self._describe(message)
            case WriteHandover(runs):
                return self._write_handover(runs)
            case ReadHandover(file):
                return self._read_handover(file)

    def _apply_to_run(
        self, effect: AskToEnd | Continue | Deliver | Grant | ReplayComplete | PauseTools | ContinueTools
    ) -> None:
        run = self._runs[effect.run]
        match effect:
            case AskToEnd() if self._starts.remove(run):
                self._spawn(self._end_unstarted(run))
            case AskToEnd():
                run.end()
            case Continue():
                run.proceed()
            case Deliver(_, message):
                self._deliver(run, message)
            case Grant(_, upto):
                if run.credit.is_given:
                    run.grant(upto)
            case ReplayComplete():
                run.replayed()
            case PauseTools():
                run.remote.pause_timers()
            case ContinueTools():
                run.remote.continue_timers()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, context=self._context.copy())
        self._tasks.add(task)  # asyncio keeps only weak references to tasks
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        """End the process if the task raised an exception, which is a bug of ours: its event is missing in the core."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        if not self._done.done():
            failure = RuntimeError("internal error of the worker")
            failure.__cause__ = error
            self._done.set_exception(failure)

    # --- runs ------------------------------------------------------------------------------------------

    def _start(self, effect: Start) -> None:
        active, message, has_slot = effect
        run = Run(
            active=active,
            header=message.header,
            body=message.body,
            link=self._link,
            loop=self._loop,
            credit=Credit(message.header.get("credit"), self._size),
            only_waits=partial(self._put, OnlyWaits(active)),
            answered=partial(self._put, Answered(active)),
        )
        if has_slot:
            run.started.set()
        active.open_calls = run.remote.listed
        self._runs[active] = run
        self._starts.add(run)

    async def _end_unstarted(self, run: Run) -> None:
        """End a run whose code was not started and never will be.

        This is a task because the core must process the failure before the run is forgotten. Within an effect, it would
        process it later.
        """
        self._failed(run, AxonError.of("cancelled", "ended before it was started"))
        self._release(run)

    async def _execute(self, run: Run) -> None:
        current_run.set(run.name)
        run_logs.executing_run.set(run)
        try:
            if not run.started.is_set():
                await run.started.wait()
                _check_not_ending(run)
            self._reserve_memory(run)
            with _traced(run.header):
                body = await self._modes[run.kind].execute(run)
        except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:
            # Every exception comes from the agent's code, CancelledError and SystemExit too: the process itself is
            # stopped by a signal, never by cancelling this task.
            self._failed(run, error)
        else:
            self._put(Completed(run.active, body))
        finally:
            self._release(run)

    def _reserve_memory(self, run: Run) -> None:
        """Reserve memory for reading the body of a run.

        Raises:
            UnavailableError: `overloaded` if there is too little.
        """
        if reserved := self._memory.admit(len(run.body), len(self._runs) == 1):
            run.on_read = partial(self._memory.was_read, reserved)

    def _failed(self, run: Run, error: BaseException) -> None:
        made = error if isinstance(error, AxonError) else errors.internal(error)
        is_traced = made.error_type in TRACED_ERRORS and not isinstance(made, errors.ReportedByToolError)
        # A run that was asked to end may fail in any way, which is not a problem for the operator.
        if is_traced and run.active.reason is None and not run.ended:
            _log_trace(run, made)
        self._put(Failed(run.active, errors.redact(made)))

    def _release(self, run: Run) -> None:
        """Forget a run whose code has returned."""
        run.body_was_read()
        # `_finish` has done this before; but the code of a stuck run may have started to relay its logs after that.
        run_logs.handler.forget(run)
        self._starts.ended(run)
        del self._runs[run.active]
        self._memory.run_ended(run.active.size + run.active.buffer.bytes)
        self._put(CodeReturned(run.active))

    def _finish(self, effect: Finish) -> None:
        """Send a run's terminal message, with the first body that can be packed."""
        active, kind, bodies = effect
        run = self._runs[active]
        run_logs.handler.forget(run)
        run.remote.drop_all()
        failure: AxonError | None = None
        for body in bodies:
            try:
                run.finish(kind, body)
            except AxonError as error:
                failure = error
            except Exception as error:  # from a method of the value that packing calls, such as `__iter__` of a mapping
                failure = errors.internal(error)
            else:
                self._log_end(run, kind, body)
                self._put(Sent(active))
                return
        if failure is not None:
            self._failed(run, failure)

    def _log_end(self, run: Run, kind: bytes, body: Mapping[str, Any]) -> None:
        how = body["error_type"] if kind == kinds.ERROR else printable(kind)
        took_ms = (time.monotonic() - run.active.started) * 1000
        count = run.active.buffer.seq
        log.info("%s %s after %.0f ms, %d messages", printable(run.kind), how, took_ms, count, extra={"run": run.name})

    # --- messages from a run's client ------------------------------------------------------------------

    def _deliver(self, run: Run, message: ToRun) -> None:
        more: dict[str, Any] = {}
        try:
            match message.kind:
                case kinds.STEER:
                    run.steer(message.body)
                case kinds.CREDIT:
                    run.grant(message.header["upto"])
                case _:
                    call_id = more["call_id"] = message.header["call_id"]
                    self._take_tool_result(run, call_id, message.body)
        except AxonError as error:
            self._refuse(run, message.kind, error, **more)

    def _take_tool_result(self, run: Run, call_id: str, body: bytes) -> None:
        """Pass a `tool_result` to the tool call that waits for it.

        Raises:
            AxonError: No such call is open, or the body is invalid.
        """
        if len(body) > LARGE_TOOL_RESULT_BYTES:
            reserved = self._memory.admit(len(body), len(self._runs) == 1)
            try:
                call = run.remote.start_reading(call_id)
            except AxonError:
                self._memory.was_read(reserved)
                raise
            self._spawn(self._take_large_tool_result(run, call, body, reserved))
        else:
            call = run.remote.expected(call_id)
            run.remote.take(call, read_answer(call.tool, body))

    async def _take_large_tool_result(self, run: Run, call: RemoteCall, body: bytes, reserved: int) -> None:
        try:
            run.remote.take(call, await asyncio.to_thread(read_answer, call.tool, body))
        except AxonError as error:
            run.remote.reopen(call)
            self._refuse(run, kinds.TOOL_RESULT, error, call_id=call.call_id)
        finally:
            self._memory.was_read(reserved)

    def _refuse(self, run: Run, of: bytes, error: AxonError, **more: Any) -> None:
        client, id = run.key
        self._link.send(client, kinds.REFUSED, id, refused_body(of, errors.redact(error), **more))

    # --- files and the catalog -------------------------------------------------------------------------

    async def _write_handover(self, runs: Sequence[tuple[RunKey, ReplayBuffer]]) -> None:
        file = await asyncio.to_thread(handover.write, self._run_dir, runs)
        if file is not None:
            log.info("wrote %d ended runs into handover file %s", len(runs), file)
        self._put(HandoverWritten(file))

    async def _read_handover(self, file: str) -> None:
        taken = await asyncio.to_thread(handover.take, self._run_dir, file, self._pack, time.monotonic())
        self._put(HandoverRead(taken.runs, taken.is_whole))

    async def _describe(self, message: Describe) -> None:
        try:
            request = checked(DescribeRequest, unpack(message.body, "the body", limits.MAX_ITEMS))
            kind, packed = kinds.CATALOG, self._pack(await self._registry.describe(request.agent))
        except AxonError as error:
            kind, packed = kinds.ERROR, error_body(errors.redact(error))
        except Exception as error:  # from the code of an agent, such as a function that makes its description
            kind, packed = kinds.ERROR, error_body(errors.internal(error))
        self._link.send(message.client, kind, message.id, packed)

    def _size(self, body: Any) -> int:
        return len(self._pack(body))


def _check_not_ending(run: Run) -> None:
    if run.is_ending:
        raise AxonError.of("cancelled", "ended before it was started")


def _log_trace(run: Run, error: AxonError) -> None:
    """Log the traceback without the exception's text, which may contain parts of a prompt."""
    cause = error.__cause__ or error
    trace = "".join(traceback.format_tb(cause.__traceback__))
    log.error("%s in\n%s", type(cause).__name__, trace, extra={"run": run.name})


def _traced(header: Mapping[str, Any]) -> AbstractContextManager[None]:
    return tracing.continue_trace(header) if "traceparent" in header else nullcontext()
