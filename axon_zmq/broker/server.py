"""The broker's shell: polls its sockets, reads them without waiting, and applies the effects that the core returns.

The relay path is `Server._drain_backend`. It receives a worker's message as `[worker, client, kind, id, body]` and
sends it to the client as `[kind, id, body]`. Each frame is received and sent once, and nothing is unpacked. The core
receives an event only for a terminal message.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final

import zmq

from axon_zmq.broker.connection_guard import EVENTS, ConnectionGuard, assigned_ids, seed_routing_ids
from axon_zmq.broker.core.broker import Broker
from axon_zmq.broker.core.effects import (
    Dequeued,
    Effect,
    Enqueued,
    Kill,
    Note,
    ProbeWorkers,
    Registered,
    ToClient,
    ToWorker,
    Unregistered,
)
from axon_zmq.broker.core.events import (
    ClientBack,
    ClientBlocked,
    ClientGone,
    Ended,
    FromClient,
    FromWorker,
    Stop,
    TakenOver,
    Tick,
    WorkerGone,
)
from axon_zmq.broker.core.relay import GONE, Verdict, framed
from axon_zmq.broker.hashing import SLICE_BYTES, BodyHasher, size
from axon_zmq.broker.journal import Journal
from axon_zmq.broker.send_queues import PipeBytes, SendQueues
from axon_zmq.broker.unfinished import OVERSIZE_FACTOR
from axon_zmq.errors import ConfigurationError
from axon_zmq.net.sockets import MORE, NOBLOCK, frame_data, receiver, recv_from_peer, send_large_message, sender
from axon_zmq.process.event_queue import EventQueue
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import printable
from axon_zmq.protocol.kinds import CONTROL

log = logging.getLogger("axon_zmq.broker")

PASS, END = Verdict.PASS, Verdict.END

CLIENT_PIPE: Final = 250
"""Maximum number of messages in ZeroMQ's pipe to one client (ZMQ_SNDHWM). A full pipe is retried every millisecond, so
this allows 250,000 messages per second."""
LARGE_MESSAGE: Final = 64 * limits.KIB
"""Size in bytes from which a body is sent without a copy, and counted in `PipeBytes` until ZeroMQ has released it."""
RECEIVE_BATCH: Final = 256
"""Maximum number of messages read from one socket before the other one gets its turn."""
PROBE_INTERVAL_S: Final = 2.0
"""Seconds between two probes of all workers' links while the socket monitor reports nothing."""
SUSPECT_PROBE_INTERVAL_S: Final = 0.02
"""Seconds between two probes after a link went down: the socket monitor reports the loss before a send fails."""
SUSPECT_PROBES_S: Final = 1.0
"""Seconds after a link went down during which probes are that frequent."""
LAST_MESSAGE_BATCHES: Final = 64
"""Maximum number of batches read from the backend before a worker is declared lost."""
WAKEUP_BYTES: Final = 4096
"""Maximum number of bytes of one read from the wakeup descriptor, to which Python writes one byte for each signal."""
CLEANING_INTERVAL_S: Final = 5.0
"""Seconds between two deletions of old handover files."""
LONGEST_POLL_S: Final = 0.5
"""Maximum seconds of one poll, which bounds the delay of anything that does not wake up the poll."""


class Server:
    """The shell of one broker process: the core, two ROUTER sockets, the clients' send queues and the journal.

    It owns the sockets and transports messages; the core makes all decisions.

    Args:
        core: The broker core.
        journal: The file for the next broker.
        frontend: The endpoint for clients.
        backend: The endpoint for workers.
        delete_old_files: Deletes handover files that no worker has read in time; called every `CLEANING_INTERVAL_S`.
    """

    def __init__(
        self,
        *,
        core: Broker,
        journal: Journal,
        frontend: str,
        backend: str,
        delete_old_files: Callable[[], None] = lambda: None,
    ) -> None:
        self._core = core
        self._relay = core.relay
        self._journal = journal
        self._send_queues = SendQueues()
        self._pipe_bytes = PipeBytes()
        self._hasher = BodyHasher(core.bounds.max_body)
        self._events = EventQueue(core.receive, time.monotonic, self._apply)
        self._receive = self._events.put
        self._probe_at = 0.0
        self._delete_old_files = delete_old_files
        self._clean_at = 0.0
        self._suspect_until = 0.0
        self._stop_requested = False
        self._has_source = not frontend.startswith("inproc:")  # as tests use it
        seed_routing_ids()
        self._context = zmq.Context()  # with one I/O thread: a second one gains nothing here
        self._front = self._context.socket(zmq.ROUTER)
        self._back = self._context.socket(zmq.ROUTER)
        self._send_front, self._recv_front = sender(self._front), receiver(self._front)
        self._send_back, self._recv_back = sender(self._back), receiver(self._back)
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_end.setblocking(False)
        # The monitor starts before the endpoint is bound, so that it reports the first connection, too.
        front_monitor = self._front.get_monitor_socket(EVENTS)
        self._poller = zmq.Poller()
        self._set_options(frontend, core.bounds.max_body)
        self._guard = ConnectionGuard(
            monitor=front_monitor,
            poller=self._poller,
            assigned=assigned_ids(self._context, self._front),
            bounds=core.bounds,
            on_takeover=lambda client: self._receive(TakenOver(client)),
        )
        self._bind(frontend, backend)
        self._monitor = self._back.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    def __repr__(self) -> str:
        return f"<Server {self._core!r} {self._send_queues!r}>"

    def _set_options(self, frontend: str, max_body: int) -> None:
        for router in (self._front, self._back):
            # Without MANDATORY, a ROUTER silently drops messages to peers that are full or unknown.
            router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            # Without HANDOVER, a client that reconnects before its old connection is found dead would be ignored, even
            # after the old connection has ended.
            router.setsockopt(zmq.ROUTER_HANDOVER, 1)
            # libzmq's default LINGER is infinite: a client that does not read would prevent the broker's exit.
            router.setsockopt(zmq.LINGER, 1000)
        # Two options must stay unset because of bugs in chumak, the Erlang library of some clients: a ZMTP PING
        # (ZMQ_HEARTBEAT_*) kills its peer process for good, and a long routing id of this ROUTER breaks its handshake.
        # Dead hosts are found by TCP keepalive on idle connections, and by the dead-peer detection on all others.
        self._front.setsockopt(zmq.IPV6, int("[" in frontend))
        self._front.setsockopt(zmq.SNDHWM, CLIENT_PIPE)
        self._front.setsockopt(zmq.MAXMSGSIZE, OVERSIZE_FACTOR * max_body)
        # These find a dead host on an idle connection within 30 s: TCP sends the first keepalive after 15 s without
        # data, and gives up after three keepalives without an answer, 5 s apart.
        self._front.setsockopt(zmq.TCP_KEEPALIVE, 1)
        self._front.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 15)
        self._front.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        self._front.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        # Unbounded, so that a send to a worker never fails with EAGAIN. Little can queue up: a worker has at most as
        # many runs as it has slots, and gets few other messages.
        self._back.setsockopt(zmq.SNDHWM, 0)

    def _bind(self, frontend: str, backend: str) -> None:
        for router, endpoint in ((self._back, backend), (self._front, frontend)):
            try:
                router.bind(endpoint)
            except zmq.ZMQError as fault:
                self._context.destroy(linger=0)
                raise ConfigurationError(
                    f"cannot listen on {endpoint}: {fault.strerror}; stop the process that uses this endpoint, "
                    "or set another AXON_FRONTEND or AXON_RUN_DIR"
                ) from None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # pyzmq resumes a poll that a signal has interrupted. The wakeup descriptor makes the poll return, so that the
        # stop request is noticed at once.
        signal.set_wakeup_fd(self._wakeup_end.fileno())
        for readable in (self._front, self._back, self._monitor, self._wakeup):
            self._poller.register(readable, zmq.POLLIN)
        log.info("broker %s is ready", self._core.boot)
        try:
            while not self._core.stopped:
                self._turn(dict(self._poller.poll(self._poll_ms())))
        finally:
            self._close()

    def _turn(self, ready: Container[object]) -> None:
        """Read the sockets that are ready, then perform everything that is due."""
        if self._back in ready:
            self._drain_backend(RECEIVE_BATCH)
        # Measurements of earlier turns show unfinished messages once all whole messages were read.
        is_drained = self._front not in ready or self._drain_frontend()
        for message in self._hasher.step(RECEIVE_BATCH):
            self._receive(message)
        now = time.monotonic()
        if self._monitor in ready:
            self._on_link_down(now)
        self._guard.turn(ready, is_drained, now)
        if now >= self._probe_at:
            self._probe_workers(now)
            self._clean(now)
        if self._send_queues.waiting:
            self._send_queues.flush_due(self._send, now)
        if now >= self._core.next_timer():
            self._receive(Tick())
        if self._stop_requested:
            self._stop()

    def _stop(self) -> None:
        # An unread byte would end each poll at once, and a broker that completes recovery before it stops would use a
        # whole core meanwhile.
        with suppress(BlockingIOError):
            self._wakeup.recv(WAKEUP_BYTES)
        # The core stops only after the requests in the hasher were processed, so that each gets an answer.
        if not self._core.stopping and not self._hasher.waiting:
            self._receive(Stop())

    def _clean(self, now: float) -> None:
        if now >= self._clean_at:
            self._clean_at = now + CLEANING_INTERVAL_S
            self._delete_old_files()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        log.info("received %s, stopping", signal.Signals(number).name)
        self._stop_requested = True

    def _poll_ms(self) -> int:
        if self._hasher.waiting:
            return 0
        due = min(self._core.next_timer(), self._probe_at, self._guard.next_timer())
        if self._send_queues.waiting:
            due = min(due, self._send_queues.next_retry())
        wait = min(LONGEST_POLL_S, due - time.monotonic())
        # Rounded up: a poll that returns just before a timer is due would be repeated with a timeout of 0.
        return max(0, int(wait * 1000) + 1)

    def _close(self) -> None:
        for client in list(self._send_queues.waiting):
            self._send_queues.flush(client, self._send)
        signal.set_wakeup_fd(-1)
        self._back.disable_monitor()
        self._front.disable_monitor()
        self._monitor.close()
        self._guard.close()
        self._front.close()
        self._back.close()
        self._context.term()
        self._wakeup.close()
        self._wakeup_end.close()
        self._journal.close()

    # --- workers to clients: the relay path --------------------------------------------------------

    def _drain_backend(self, max_messages: int) -> bool:
        """Relay up to `max_messages` messages; return whether the socket was read until it was empty.

        This is the relay path, which handles every chunk. Each frame is received and sent once, and nothing is
        unpacked. `test_relay_cost.py` bounds the number of its instructions.
        """
        # Local names, so that the attributes are looked up once for each batch and not for each message.
        recv, accept, waiting, send = self._recv_back, self._relay.accept, self._send_queues.waiting, self._send
        for _ in range(max_messages):
            try:
                worker = recv(NOBLOCK)
            except zmq.Again:
                return True
            # ZeroMQ delivers whole messages, so the other frames are there: no NOBLOCK, and no check of RCVMORE.
            # Workers are trusted to send exactly these frames, because only our own processes can open the backend.
            client = recv()
            if client == CONTROL:
                self._receive(FromWorker(worker, recv(), recv()))
                continue
            kind, id = recv(), recv()
            verdict = accept(worker, client, kind, id)
            if verdict is PASS:
                body = recv()
                # While older messages are in the client's send queue, newer ones must queue behind them.
                if client in waiting or not send(client, kind, id, body):
                    self._enqueue(client, kind, id, body)
            elif verdict is END:
                # Results can be large, so the body is not copied. The core receives `Ended` only after the message was
                # sent, so none of its effects reaches the client before the terminal message.
                self._relay_message(client, kind, id, frame_data(recv(0, copy=False), LARGE_MESSAGE))
                self._receive(Ended(worker, client, id, kind))
            else:
                recv()  # the body of a dropped message
        return False

    def _relay_message(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> None:
        """Send a message to a client, or append it to the client's send queue if its pipe is full."""
        if client in self._send_queues.waiting or not self._send(client, kind, id, body):
            self._enqueue(client, kind, id, body)

    def _enqueue(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> None:
        if self._send_queues.add(client, kind, id, body):
            self._receive(ClientBlocked(client))

    def _send(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> bool:
        """Send a message to a client now.

        With ROUTER_MANDATORY, the first frame fails with EAGAIN if the client's pipe is full, and with EHOSTUNREACH if
        the client is not connected. The frames after it never fail.

        Returns:
            False if the pipe is full; True if the message was sent, or dropped because the client is gone.
        """
        is_large = len(body) >= LARGE_MESSAGE
        # Checked before the first frame is sent, because the rest of the message must follow it.
        if is_large and not self._pipe_bytes.has_room(client):
            return False
        send = self._send_front
        try:
            send(client, MORE)
        except zmq.Again:
            return False
        except zmq.ZMQError as fault:
            if fault.errno != zmq.EHOSTUNREACH:
                raise
            self._on_client_gone(client)
            return True
        if flags := self._relay.flags_of(client):
            *first, body = framed(flags, kind, id, body)
            for frame in first:
                send(frame, MORE)
        else:
            send(kind, MORE)
            send(id, MORE)
        if is_large:
            # The tracker shows when ZeroMQ has released the body, which is then no longer in the client's pipe.
            self._pipe_bytes.add(client, self._front.send(body, NOBLOCK, copy=False, track=True), len(body))
        else:
            send(body, NOBLOCK)
        if flags and flags & GONE:
            self._receive(ClientBack(client))
        return True

    def _on_client_gone(self, client: bytes) -> None:
        self._send_queues.forget(client)
        self._pipe_bytes.forget(client)
        # One event is enough: workers still send messages for this client, and the send of each fails in the same way.
        if not (self._relay.flags_of(client) or 0) & GONE:
            self._receive(ClientGone(client))

    # --- clients to workers ------------------------------------------------------------------------

    def _drain_frontend(self) -> bool:
        """Process a batch of clients' messages; return whether the socket was read until it was empty."""
        now = time.monotonic()
        for _ in range(RECEIVE_BATCH):
            # After a stop signal, messages stay in ZeroMQ until the hasher is empty; otherwise new large bodies could
            # delay the stop without end.
            if self._hasher.full or (self._stop_requested and self._hasher.waiting):
                return False
            try:
                # Receive the routing id, all allowed frames and one more, which shows the core that there were too
                # many. ZeroMQ itself bounds the size of a frame but not the number of frames.
                fd, wire, (client, *frames) = recv_from_peer(
                    self._recv_front, limits.MAX_FRAMES + 2, LARGE_MESSAGE, has_source=self._has_source
                )
            except zmq.Again:
                return True
            if not self._guard.admit(fd, client, wire, now):
                continue
            message = FromClient(client, frames, now)
            if not self._hasher.defer(message):
                self._receive(message)
            elif size(message) > SLICE_BYTES:
                return False  # receiving a large message takes about a millisecond itself, so it ends this turn
        return False

    # --- workers -----------------------------------------------------------------------------------

    def _on_link_down(self, now: float) -> None:
        while self._monitor.poll(0):
            self._monitor.recv_multipart()
        self._probe_soon(now)

    def _probe_soon(self, now: float) -> None:
        """Probe the workers' links now, and frequently for a while.

        The socket monitor has reported that a link is down, but a send to that worker may still succeed for a moment.
        """
        self._suspect_until = now + SUSPECT_PROBES_S
        self._probe_at = now

    def _probe_workers(self, now: float) -> None:
        """Find the workers whose links are down, read all messages that they had sent, and declare them lost.

        The order matters: messages of a dead worker can still be unread when its link is down (2,002 frames in a
        measurement). If the worker were declared lost first, these messages would be dropped, and runs that had already
        completed would end as `worker_lost`.
        """
        is_suspicious = now < self._suspect_until
        self._probe_at = now + (SUSPECT_PROBE_INTERVAL_S if is_suspicious else PROBE_INTERVAL_S)
        # The socket monitor does not report which peer was disconnected, so each worker is probed.
        gone = [worker for worker in self._core.workers.routing_ids() if not self._is_linked(worker)]
        if gone:
            # All workers share the socket, so reading it until it is empty includes the messages of the lost ones. The
            # number of batches is bounded, because the other workers keep sending.
            for _ in range(LAST_MESSAGE_BATCHES):
                if self._drain_backend(RECEIVE_BATCH):
                    break
        for worker in gone:
            self._receive(WorkerGone(worker))

    def _is_linked(self, worker: bytes) -> bool:
        """Whether a worker's link is up, found out by sending it a message that it ignores."""
        return self._send_to_worker(worker, (CONTROL, kinds.THERE))

    def _kill(self, effect: Kill) -> None:
        """Send SIGKILL to a worker that hangs, unless its pid now belongs to another process."""
        worker, name, pid, is_linked = effect
        if is_linked and not self._is_linked(worker):
            return  # the process has ended, and the kernel may have reused its pid
        if not _is_worker(pid, name):
            log.error("cannot kill worker %s: pid %d is another process; is the worker in a container?", name, pid)
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError as fault:
            log.error("cannot kill worker %s, pid %d: %s", name, pid, fault.strerror)

    def _send_to_worker(self, worker: bytes, frames: Iterable[bytes]) -> bool:
        """Send a message to a worker; return False if its link is down."""
        try:
            send_large_message(self._send_back, (worker, *frames), LARGE_MESSAGE)
        except zmq.ZMQError as fault:
            if fault.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    # --- effects -----------------------------------------------------------------------------------

    def _apply(self, effect: Effect) -> None:
        match effect:
            case ToClient(client, kind, id, body):
                self._relay_message(client, kind, id, body)
            case ToWorker(worker, client, kind, id, rest):
                if not self._send_to_worker(worker, (client, kind, id, *rest)):
                    self._probe_at = 0.0  # the probe in the next turn will declare the worker lost
                    log.warning(
                        "cannot send %s: the run's worker is disconnected", kind.decode(), extra=_log_fields(id)
                    )
            case Kill():
                self._kill(effect)
            case ProbeWorkers():
                self._probe_soon(time.monotonic())
            case Enqueued() | Dequeued() | Registered() | Unregistered():
                self._journal.remember(effect)
            case Note(level, text, id):
                log.log(level, text, extra=_log_fields(id))


def _log_fields(id: bytes) -> dict[str, str]:
    """The fields of a log record about a run; see `process.logs`."""
    return {"run": printable(id) or "-"}


def _is_worker(pid: int, name: str) -> bool:
    """Whether a pid belongs to the worker with this name, as far as the system shows command lines.

    A worker in another container reports the pid that it has there. Here, that pid belongs to another process.
    """
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        # On a system without /proc, nothing can be checked, and the pid is taken to be right.
        return not Path("/proc/self/cmdline").exists()
    return f"--name={name}".encode() in command


def serve(
    *,
    make_core: Callable[[float], Broker],
    journal: Journal,
    frontend: str,
    backend: str,
    delete_old_files: Callable[[], None],
) -> None:
    """Bind both endpoints and serve until SIGTERM or SIGINT.

    Args:
        make_core: Creates the core, given the time in seconds of the monotonic clock.
        journal: The file for the next broker.
        frontend: The endpoint for clients.
        backend: The endpoint for workers.
        delete_old_files: Deletes handover files that no worker has read in time; called repeatedly.

    Raises:
        ConfigurationError: An endpoint cannot be bound.
    """
    Server(
        core=make_core(time.monotonic()),
        journal=journal,
        frontend=frontend,
        backend=backend,
        delete_old_files=delete_old_files,
    ).run()
