"""A worker's runs: started, relayed and ended.

A run that is cancelled or out of time is answered at once, with its partial answer where its code
hands it over within `END_GRACE`. Code that goes on regardless keeps its slot: the slot is taken out of
service, and after `STUCK_GRACE` the process leaves so that supervisord brings a fresh one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from axon_zmq.errors import AxonError, RequestError
from axon_zmq.process.event_loop import Turns
from axon_zmq.process.logs import current_run
from axon_zmq.protocol import frames, kinds, limits
from axon_zmq.protocol.backend import VERSION
from axon_zmq.protocol.frames import error_body, refused_body
from axon_zmq.protocol.msgpack import unpack
from axon_zmq.protocol.plain import packer
from axon_zmq.protocol.requests import DescribeRequest, checked
from axon_zmq.worker import run_logs
from axon_zmq.worker.adapter import errors, tracing
from axon_zmq.worker.adapter.client_tools import RemoteCall, read_answer
from axon_zmq.worker.delivery.credit import Credit
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from axon_zmq.worker.delivery.replay_store import Replays
from axon_zmq.worker.link import Link
from axon_zmq.worker.registry.agents import Registry
from axon_zmq.worker.run import Mode, Run

log = logging.getLogger(__name__)

LEAVE_TIMEOUT: Final = 1.0
"""Seconds that a leaving worker waits for the broker's word; there may be no broker."""
LARGE_ANSWER: Final = 32 * limits.KIB
"""Bytes of a tool's answer above which it is read and checked in a thread, to hold up no other run."""
REASONS: Final[Mapping[str, tuple[str, str]]] = {
    "cancelled": ("cancelled", "cancelled by the client"),
    "client_gone": ("cancelled", "its client went away"),
    "deadline": ("deadline_exceeded", "timeout_ms passed during the run"),
    "slow_consumer": ("slow_consumer", "the client read too slowly"),
    "shutting_down": ("shutting_down", "the worker had to stop before the run was done"),
    "superseded": ("cancelled", "the run went on elsewhere"),
}
"""Why a run may be asked to end, and the error that it ends with."""


class Host:
    """The runs of one worker process.

    Args:
        name: The program's name in `supervisorctl status`.
        mode_name: `run_sync`, `run` or `run_stream`.
        modes: What executes each kind that this worker takes.
        slots: Runs at a time.
        registry: For `describe`.
        run_dir: Where a leaving worker leaves its ended runs to another one.
        connect: Makes the link, given `received`, `connected` and `disconnected`.
    """

    def __init__(
        self,
        name: str,
        mode_name: str,
        modes: Mapping[str, Mode],
        slots: int,
        registry: Registry,
        run_dir: Path,
        connect: Callable[[Callable[[list[bytes]], None], Callable[[], None], Callable[[], None]], Link],
    ) -> None:
        self._name = name
        self._mode_name = mode_name
        self._modes = {kind.encode(): mode for kind, mode in modes.items()}
        self._slots = slots
        self._registry = registry
        self._jobs: dict[tuple[bytes, bytes], Run] = {}
        self._stuck = 0
        self._turns = Turns(limits.END_TURNS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pack = packer()
        self.registered = asyncio.Event()
        """Set once a broker has been told of this worker."""
        self._leave = asyncio.Event()
        self._may_go = asyncio.Event()
        """The broker knows that this worker leaves."""
        self._idle = asyncio.Event()
        self._link = connect(self._received, self._register, self._cut_off)
        self._replays = Replays(self._link, run_dir, self._jobs.get)

    def __repr__(self) -> str:
        return f"<Host {self._name} {len(self._jobs)} of {self._slots} slots, {self._stuck} stuck>"

    async def serve(self, drain_time: float) -> None:
        """Work until told to leave; then finish what there is, at most for `drain_time` seconds."""
        progress = asyncio.create_task(self._report())
        leave = asyncio.create_task(self._leave.wait())
        try:
            await asyncio.wait((progress, leave), return_when=asyncio.FIRST_COMPLETED)
            if progress.done():
                progress.result()  # raises: it never ends by itself
            await self._drain(drain_time)
        finally:
            progress.cancel()
            leave.cancel()
            self._link.close()

    def leave(self) -> None:
        """Take no more runs and go when those that are open have ended."""
        self._leave.set()

    async def _drain(self, drain_time: float) -> None:
        self._link.control(kinds.LEAVING, {})
        with suppress(TimeoutError):  # what the broker had sent before it knew comes before its answer
            await asyncio.wait_for(self._may_go.wait(), LEAVE_TIMEOUT)
        log.info("leaving with %d open runs", len(self._jobs))
        if not await self._empty(drain_time):
            for job in list(self._jobs.values()):
                self._end(job, "shutting_down")
            await self._empty(limits.LONGEST_END_GRACE + 2 * limits.END_GRACE)
        await self._replays.hand_over(LEAVE_TIMEOUT)
        try:
            await asyncio.wait_for(self._link.room(), 1.0)
        except TimeoutError:
            log.warning("the broker did not take the last messages")

    async def _empty(self, most_seconds: float) -> bool:
        self._idle.clear()
        if all(job.ended for job in self._jobs.values()):
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), most_seconds)
        except TimeoutError:
            return False
        return True

    # --- what the broker is told -------------------------------------------------------------------

    def _cut_off(self) -> None:
        """The broker is away, and all clients with it."""
        for job in self._jobs.values():
            job.remote.pause()

    def _register(self) -> None:
        """Say what this worker is and what it holds; clients that are gone the broker tells of."""
        for job in self._jobs.values():
            job.remote.go_on()
        ready = {
            "mode": self._mode_name,
            "slots": self._slots - self._stuck,
            "name": self._name,
            "pid": os.getpid(),
            "broken": self._registry.broken,
            **self._replays.to_wire(),
        }
        self._link.control(kinds.READY, {"v": VERSION, **ready})
        if self._leave.is_set():
            self._link.control(kinds.LEAVING, {})
        self.registered.set()

    def _tell_slots(self) -> None:
        self._link.control(kinds.SLOTS, {"slots": self._slots - self._stuck})

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(limits.PROGRESS_INTERVAL)
            self._link.control(kinds.PROGRESS, {"open": len(self._jobs)})
            self._replays.tidy()

    # --- what the broker asks ----------------------------------------------------------------------

    def _received(self, frames: list[bytes]) -> None:
        client, kind, *rest = frames
        if kind in self._modes:
            self._start(client, kind, rest)
        elif kind == kinds.DESCRIBE:
            self._spawn(self._describe(client, rest[0], rest[2]))
        elif kind == kinds.LEFT:
            self._may_go.set()
        elif kind == kinds.HANDED:
            self._replays.handed.set()
        elif kind == kinds.TAKE:
            self._spawn(self._replays.take(unpack(rest[1], "take")["file"]))
        elif kind in _ABOUT_A_RUN:
            self._about_a_run(client, kind, rest)

    def _about_a_run(self, client: bytes, kind: bytes, rest: list[bytes]) -> None:
        id, *more = rest
        job = self._jobs.get((client, id))
        if kind == kinds.END:
            self._asked_to_end(client, id, unpack(more[0], "end")["reason"])
        elif kind == kinds.RESUME:
            self._replays.resume((client, id), unpack(more[0], "resume"))
        elif kind in _FROM_ITS_CLIENT:
            self._hear(client, kind, id, *more)
        elif job is not None and not job.ended:
            (job.remote.pause if kind == kinds.GONE else job.remote.go_on)()

    def _start(self, client: bytes, kind: bytes, rest: list[bytes]) -> None:
        id, header_frame, body, lease = rest
        now = time.monotonic()
        told = unpack(lease, "the lease")
        deadline, digest = (
            told["deadline"],
            told.get("digest") or frames.body_digest(body),
        )  # an older broker tells none
        header = unpack(header_frame, "the header")
        keep = header.get("on_disconnect") == "keep"
        job = Run(
            client=client,
            id=id,
            kind=kind,
            header=header,
            body=body,
            started=now,
            outbox=ReplayBuffer(self._pack, RunInfo(kind.decode(), digest, deadline, keep)),
            link=self._link,
            loop=asyncio.get_running_loop(),
            credit=Credit(header.get("credit"), self._size),
        )
        self._jobs[job.key] = job
        self._replays.add(job.key, job.outbox)
        job.timer = job.loop.call_later(max(0.0, deadline - now), self._end, job, "deadline")
        self._spawn(self._work(job))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, job: Run) -> None:
        current_run.set(job.name)
        run_logs.current_job.set(job)
        try:
            with _traced(job.header):
                body = await self._modes[job.kind].execute(job)
            self._complete(job, body)
        except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:
            # The agent's own: nobody ends this task.
            self._fail(job, error)
        finally:
            self._release(job)

    def _release(self, job: Run) -> None:
        """The run's code is done: its slot is free."""
        run_logs.handler.forget(job)  # again: its code may have asked for logs after it was answered for
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
        if job.stuck:
            job.stuck = False
            self._stuck -= 1
            self._tell_slots()

    # --- how a run ends ----------------------------------------------------------------------------

    def _asked_to_end(self, client: bytes, id: bytes, reason: str) -> None:
        job = self._jobs.get((client, id))
        if job is not None and not job.ended:
            self._end(job, reason)
        elif reason == "cancelled":
            self._refuse(client, id, kinds.CANCEL, RequestError("invalid_request", "the run has already ended"))

    def _hear(self, client: bytes, kind: bytes, id: bytes, header_frame: bytes, body: bytes) -> None:
        """Take what a client says to its run, or refuse it."""
        job = self._jobs.get((client, id))
        header = unpack(header_frame, "the header")
        more = {"call_id": header["call_id"]} if kind == kinds.TOOL_RESULT else {}
        try:
            if job is None or job.ended:
                raise RequestError("invalid_request", "the run has already ended")
            if kind == kinds.STEER:
                job.steer(body)
            elif kind == kinds.CREDIT:
                job.grant(header["upto"])
            elif len(body) > LARGE_ANSWER:
                self._spawn(self._take_large(job, job.remote.reading(header["call_id"]), body))
            else:
                call = job.remote.expected(header["call_id"])
                job.remote.take(call, read_answer(call.tool, body))
        except AxonError as error:
            self._refuse(client, id, kind, error, **more)

    async def _take_large(self, job: Run, call: RemoteCall, body: bytes) -> None:
        try:
            job.remote.take(call, await asyncio.to_thread(read_answer, call.tool, body))
        except AxonError as error:
            job.remote.reopen(call)
            self._refuse(job.client, job.id, kinds.TOOL_RESULT, error, call_id=call.call_id)

    def _refuse(self, client: bytes, id: bytes, of: bytes, error: AxonError, **more: Any) -> None:
        self._link.send(client, kinds.REFUSED, id, refused_body(of, error, **more))

    def _end(self, job: Run, reason: str) -> None:
        """Ask a run's code to end, and answer for it where it does not."""
        if job.ended or job.reason is not None:
            return
        job.end(reason)
        job.loop.call_later(limits.END_GRACE, self._wait_for, job, time.monotonic() + limits.LONGEST_END_GRACE)

    def _wait_for(self, job: Run, give_up: float) -> None:
        """Answer for a run whose code does not, though the loop has come round to it often enough.

        Time alone does not tell: where hundreds of runs end at once, each waits for the others.
        """
        if not job.ended:
            self._turns.pass_before(partial(self._answer_for, job), give_up)

    def _answer_for(self, job: Run) -> None:
        if job.ended:
            return
        job.stuck = True
        self._stuck += 1
        self._tell_slots()  # before the terminal message frees the slot in the broker's eyes
        self._fail(job, AxonError.of("cancelled", ""))
        job.loop.call_later(limits.STUCK_GRACE, self._replace_if_stuck, job)

    def _replace_if_stuck(self, job: Run) -> None:
        if job.stuck:
            log.error("still holds its slot: this process leaves, to be replaced", extra={"run": job.name})
            self.leave()

    def _complete(self, job: Run, body: dict[str, Any]) -> None:
        if job.ended:
            return
        self._terminal(job, kinds.COMPLETE, body)
        self._log_end(job, "complete")

    def _fail(self, job: Run, error: BaseException) -> None:
        if job.ended:
            return
        if not isinstance(error, AxonError):
            error = errors.internal(error)
        if job.reason is not None:  # whatever its code made of being ended
            error_type, message = REASONS[job.reason]
            error = AxonError.of(error_type, message, error.details)
        if error.error_type in ("internal", "tool_failed"):
            self._log_trace(job, error)
        self._error(job, error)
        self._log_end(job, error.error_type)

    def _error(self, job: Run, error: AxonError) -> None:
        """Send a run's `error`; without its partial, or its text, where that cannot be packed."""
        for body in (error, AxonError.of(error.error_type, error.message), AxonError.of(error.error_type, "")):
            try:
                self._terminal(job, kinds.ERROR, body.to_body())
            except AxonError:
                continue
            return

    def _terminal(self, job: Run, kind: bytes, body: dict[str, Any]) -> None:
        run_logs.handler.forget(job)
        job.remote.drop_all()
        job.send(kind, body)
        job.ended = True
        if job.timer is not None:
            job.timer.cancel()
        self._replays.end(job.key)
        if all(other.ended for other in self._jobs.values()):
            self._idle.set()

    def _log_end(self, job: Run, how: str) -> None:
        took = (time.monotonic() - job.started) * 1000
        log.info(
            "%s %s after %.0f ms, %d messages", job.kind.decode(), how, took, job.outbox.seq, extra={"run": job.name}
        )

    def _log_trace(self, job: Run, error: AxonError) -> None:
        """Where the code failed, without the exception's text: that may hold a prompt."""
        cause = error.__cause__ or error
        trace = "".join(traceback.format_tb(cause.__traceback__))
        log.error("%s in\n%s", type(cause).__name__, trace, extra={"run": job.name})

    # --- messages ----------------------------------------------------------------------------------

    def _size(self, body: Any) -> int:
        return len(self._pack(body))

    async def _describe(self, client: bytes, id: bytes, body: bytes) -> None:
        try:
            request = checked(DescribeRequest, unpack(body, "the body"))
            kind, packed = kinds.CATALOG, self._pack(await self._registry.describe(request.agent))
        except AxonError as error:
            kind, packed = kinds.ERROR, error_body(error)
        self._link.send(client, kind, id, packed)


_FROM_ITS_CLIENT: Final = frozenset((kinds.CREDIT, kinds.TOOL_RESULT, kinds.STEER))
_ABOUT_A_RUN: Final = _FROM_ITS_CLIENT | {kinds.END, kinds.RESUME, kinds.GONE, kinds.BACK}


def _traced(header: Mapping[str, Any]) -> AbstractContextManager[None]:
    return tracing.continued(header) if "traceparent" in header else nullcontext()
