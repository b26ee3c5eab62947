"""Sends requests on a schedule or at a fixed concurrency, and checks the replies.

A single thread reads raw DEALER sockets without blocking; each socket has a `ClientCore`. The core repairs gaps and
drops repeated messages. The driver counts them, because otherwise a faulty daemon would go unnoticed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from select import select
from typing import Final

import zmq

from axon_zmq.client.core import Item
from axon_zmq.client.options import RunOptions
from axon_zmq.errors import AxonError
from axon_zmq.events import Chunk, Complete, ToolCall
from axon_zmq.loadtest.connection import Connection, check_open_files
from axon_zmq.loadtest.figures import Figures, Tally
from axon_zmq.loadtest.plan import Plan
from axon_zmq.loadtest.runs import UNREAD, Run, broken_by
from axon_zmq.protocol import kinds

ROUND_MESSAGES: Final = 64
"""Maximum number of messages received from one connection, or requests sent, in one round."""
LAG_CHECK_INTERVAL_S: Final = 0.01
"""Seconds between two measurements of the driver's lag at a fixed concurrency, where no schedule shows it."""
TICK_INTERVAL_S: Final = 0.5
"""Seconds between two checks for overdue runs and lost connections."""
_TERMINAL: Final = (kinds.COMPLETE, kinds.ERROR)


class Driver:
    """Runs a load test.

    Args:
        plan: The requests to send, and how fast.
        on_progress: Called twice per second.

    Raises:
        ConfigurationError: The connections need more file descriptors than the limit allows.
    """

    def __init__(self, plan: Plan, on_progress: Callable[[Driver], None] = lambda _: None) -> None:
        self.plan = plan
        self.sent = 0
        self.stopped = False
        self._on_progress = on_progress
        self._kinds = plan.kinds()
        pools = {kind.stalls for kind in self._kinds}
        check_open_files(len(pools) * plan.clients)
        self.tally = Tally(kinds={kind.name: Figures() for kind in self._kinds})
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._pools = {
            stalls: [Connection(self._context, plan.endpoint, stalls) for _ in range(plan.clients)] for stalls in pools
        }
        self._connections = [connection for pool in self._pools.values() for connection in pool]
        self._runs: dict[bytes, Run] = {}
        self._ended: set[bytes] = set()
        """Ids of ended runs that must not receive another terminal message."""
        self._pending_reads: list[tuple[float, int, Run]] = []
        """Heap of the times at which slow readers read their next message."""
        self._order = count()
        self._start = self._now = time.monotonic()
        self._next_lag_check = self._next_tick = self._start
        self._next_drop = self._start + plan.warmup
        self._dropped = 0
        self._sending_ended: float | None = None

    def __repr__(self) -> str:
        return f"<Driver {self.sent} sent, {len(self._runs)} open>"

    @property
    def open(self) -> int:
        """Number of requests that have not ended."""
        return len(self._runs)

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the warm-up."""
        return self._now - self._start

    @property
    def window(self) -> float:
        """Measured seconds: from the end of the warm-up until the last request was sent."""
        until = self._now if self._sending_ended is None else self._sending_ended
        return max(0.0, until - self._start - self.plan.warmup)

    def stop(self) -> None:
        """Stop sending, and cancel open requests. May be called from a signal handler."""
        self.stopped = True

    def run(self) -> None:
        """Run the load test; return when each request has ended, or soon after `stop`."""
        try:
            while not self.stopped and (self._has_more_to_send() or self._runs):
                self._run_round()
        finally:
            self._close()

    def _has_more_to_send(self) -> bool:
        """Return whether there are requests left to send.

        Requests that were due before the end are still sent when the driver is late; otherwise a slow daemon would get
        less load and better figures.
        """
        if self._sending_ended is None:
            reached = self._now if self.plan.rate is None else min(self._now, self._due(self.plan.rate))
            if self.sent >= self.plan.most or reached - self._start >= self.plan.warmup + self.plan.duration:
                self._sending_ended = self._now
        return self._sending_ended is None

    def _run_round(self) -> None:
        """Do the work that is due, wait until more is due or a message arrives, and receive messages."""
        self._now = time.monotonic()
        self._send_due()
        self._read_due()
        self._tick()
        worked = time.monotonic()
        self._record_work(self._now, worked)
        ready = self._wait(self._next_due() - worked)
        woke = time.monotonic()
        for connection in ready:
            self._drain(connection)
        self._record_work(woke, time.monotonic())

    def _record_work(self, since: float, until: float) -> None:
        measured = self._start + self.plan.warmup
        if self._has_more_to_send() and until > measured:
            self.tally.busy += until - max(since, measured)

    def _next_due(self) -> float:
        """Return the time at which work is due next."""
        times = [self._next_tick]
        if self._has_more_to_send():
            times.append(self._next_lag_check if self.plan.rate is None else self._due(self.plan.rate))
        if self._pending_reads:
            times.append(self._pending_reads[0][0])
        return min(times)

    def _wait(self, seconds: float) -> list[Connection]:
        """Wait for messages; return the connections that have some.

        `select` is used because the timeout of ZeroMQ's poll is in whole milliseconds.
        """
        read = [connection for connection in self._connections if connection.is_read()]
        ready = [connection for connection in read if connection.has_message()]
        if not ready and seconds > 0:
            select([connection.fd for connection in read], (), (), seconds)
            ready = [connection for connection in read if connection.has_message()]
        return ready

    # --- requests ----------------------------------------------------------------------------------

    def _send_due(self) -> None:
        if self.plan.rate is None:
            self._fill_streams()
            return
        for _ in range(ROUND_MESSAGES):
            if (due := self._due(self.plan.rate)) > self._now or not self._has_more_to_send():
                return
            self._send(due)
            self._record_lag(due)

    def _fill_streams(self) -> None:
        while self._next_lag_check <= self._now:
            self._record_lag(self._next_lag_check)
            self._next_lag_check += LAG_CHECK_INTERVAL_S
        while len(self._runs) < self.plan.streams and self._has_more_to_send():
            self._send(time.monotonic())

    def _due(self, rate: float) -> float:
        """Return the time at which the next request is due by the schedule."""
        return self._start + self.sent / rate

    def _record_lag(self, due: float) -> None:
        if self._in_window(due):
            self.tally.lag.record(time.monotonic() - due)

    def _send(self, due: float) -> None:
        """Send a request of the next kind. The requests of each kind are spread over all its connections in turn."""
        # Interleaved, so that no kind of request runs only on some of the connections.
        turn, number = divmod(self.sent, len(self._kinds))
        kind = self._kinds[number]
        pool = self._pools[kind.stalls]
        connection = pool[turn % len(pool)]
        options: RunOptions = {**kind.options, "timeout_ms": int(self.plan.timeout * 1000)}
        client_run = connection.core.run(kind.mode, kind.agent, kind.prompt, options, time.monotonic())
        connection.flush()
        self.sent += 1
        figures = self.tally.kinds[kind.name] if self._in_window(due) else None
        self._runs[client_run.id] = Run(
            kind=kind, connection=connection, client_run=client_run, due=due, figures=figures
        )
        if figures is not None:
            figures.requests += 1
        self.tally.second(self.elapsed).requests += 1

    # --- replies -----------------------------------------------------------------------------------

    def _drain(self, connection: Connection) -> None:
        for _ in range(ROUND_MESSAGES):
            if not connection.is_read() or (frames := connection.receive()) is None:
                break
            self._receive(connection, frames, time.monotonic())
        connection.flush()

    def _receive(self, connection: Connection, frames: list[bytes], now: float) -> None:
        core = connection.core
        client_run = core.receive(frames, now)
        kind, id = frames[-3:-1] if len(frames) > 2 else (b"", b"")
        if client_run is None and kind in _TERMINAL and id in self._ended:
            self._broken("a second end")
        elif (run := self._runs.get(id)) is not None:
            self.tally.second(now - self._start).messages += 1
            if self._in_window(now):
                self.tally.kinds[run.kind.name].messages_within += 1
            # The core passed nothing to a reader: the message is a repetition or follows a gap. There is a gap if a
            # message was received whose predecessor has not arrived.
            if client_run is None:
                run.gap |= run.client_run.highest_seq > run.client_run.last_seq
            else:
                if client_run.ended and client_run.resumed_at < self._start:  # a resume may replay the terminal message
                    self._ended.add(id)
                self._deliver(run, now)
        while core.tool_events:
            run_of_call, event = core.tool_events.popleft()
            if isinstance(event, ToolCall):
                core.answer(run_of_call.id, event.call_id, {"result": event.args.get("a", 0) + event.args.get("b", 0)})

    def _deliver(self, run: Run, now: float) -> None:
        if not run.kind.reads_slowly:
            while run.client_run.inbox:
                self._read(run, run.client_run.inbox.popleft(), now)
            return
        run.connection.waiting += 1
        if not run.read_is_scheduled:
            run.read_is_scheduled = True
            heappush(self._pending_reads, (max(now, run.read_at), next(self._order), run))

    def _read_due(self) -> None:
        """Let slow readers read one message each, if it is time."""
        while self._pending_reads and self._pending_reads[0][0] <= self._now:
            _, _, run = heappop(self._pending_reads)
            item = run.client_run.inbox.popleft()
            run.read_at = self._now + self.plan.read_ms / 1000
            run.connection.waiting -= 1
            run.read_is_scheduled = bool(run.client_run.inbox)
            if run.read_is_scheduled:
                heappush(self._pending_reads, (run.read_at, next(self._order), run))
            self._read(run, item, self._now)
            if isinstance(item, Chunk):
                run.connection.core.acknowledge(run.client_run, item)
                run.connection.flush()

    def _read(self, run: Run, item: Item, now: float) -> None:
        """Process one message that the reader of a run has read."""
        match item:
            case Chunk():
                run.read_chunk(item, now)
            case Complete():
                broken = run.broken_by(item)
                self._end(run, now, broken and self._broken(broken))
            case AxonError() if run.timed_out_unread:
                self._end(run, now, UNREAD)
            case AxonError():
                broken = broken_by(item)
                self._end(run, now, self._broken(broken) if broken else item.error_type)
            case _:
                pass

    def _broken(self, promise: str) -> str:
        self.tally.broken[promise] += 1
        return promise

    def _end(self, run: Run, now: float, fault: str | None) -> None:
        del self._runs[run.client_run.id]
        second = self.tally.second(now - self._start)
        second.complete += fault is None
        second.failed += fault is not None
        if self._in_window(now):
            self.tally.kinds[run.kind.name].complete_within += fault is None
        if (figures := run.figures) is None:
            return
        if fault is None:
            figures.complete += 1
            figures.latency.record(now - run.due)
        else:
            figures.failures[fault] += 1

    def _in_window(self, moment: float) -> bool:
        """Return whether a time is in the measured part of the test."""
        return self._sending_ended is None and moment - self._start >= self.plan.warmup

    # --- periodic work -----------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._now < self._next_tick:
            return
        self._next_tick = self._now + TICK_INTERVAL_S
        for connection in self._connections:
            connection.check_connection()
            is_behind = connection.is_behind()
            for client_run in connection.core.tick(self._now):
                if (run := self._runs.get(client_run.id)) is not None:
                    run.timed_out_unread = is_behind
                    self._deliver(run, self._now)
            connection.flush()
        if self.plan.drops:
            self._drop_due()
        self._on_progress(self)

    def _drop_due(self) -> None:
        """Drop connections in turn, each only if it has open runs."""
        while self._next_drop <= self._now and self._has_more_to_send():
            connection = self._connections[self._dropped % len(self._connections)]
            self._dropped += 1
            self._next_drop += self.plan.drop_every / len(self._connections)
            if runs := sum(run.connection is connection for run in self._runs.values()):
                self.tally.drops += 1
                self.tally.resumes += runs
                connection.drop()

    def _close(self) -> None:
        self.tally.unfinished = len(self._runs)
        for connection in self._connections:
            connection.core.close()
            connection.flush()
            connection.close()
        self._context.term()
