"""The broker's sockets: poll once, drain without waiting, apply what the core decided.

The relay path is `_drain_backend`: a worker's message `[worker, client, kind, id, body]` goes to the client as
`[kind, id, body]`, each frame received and sent once, nothing unpacked. The core takes an event only if the kind is
terminal.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from types import FrameType
from typing import Final

import zmq

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
    Tick,
    WorkerGone,
)
from axon_zmq.broker.core.relay import GONE, Verdict, framed
from axon_zmq.broker.dead_peers import DeadPeerDetector
from axon_zmq.broker.hashing import SLICE_BYTES, BodyHasher, size
from axon_zmq.broker.journal import Journal
from axon_zmq.broker.send_queues import InFlight, SendQueues
from axon_zmq.errors import ConfigurationError
from axon_zmq.net.sockets import MORE, NOBLOCK, frame_data, receiver, recv_message, send_large_message, sender
from axon_zmq.process.event_queue import EventQueue
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import printable
from axon_zmq.protocol.kinds import CONTROL

log = logging.getLogger("axon_zmq.broker")

PASS, END = Verdict.PASS, Verdict.END

OVERSIZE_FACTOR: Final = 4
"""A frame over this many times `max_body` cuts the connection (ZMQ_MAXMSGSIZE): it is never read."""
CLIENT_PIPE: Final = 250
"""Messages in ZeroMQ's own pipe to one client (ZMQ_SNDHWM): enough for 250,000 a second between two looks."""
LARGE_MESSAGE: Final = 64 * limits.KIB
"""Bytes from which a message to a client is sent without a copy, and counted until ZeroMQ has released it."""
RECEIVE_BATCH: Final = 256
"""Messages taken from one socket before the other one has its turn."""
PROBE_INTERVAL_S: Final = 2.0
"""Seconds between two probes of all workers' links."""
SUSPECT_PROBE_INTERVAL_S: Final = 0.02
"""The same after a link went down: the socket monitor reports that before a send finds out."""
SUSPECT_PROBES_S: Final = 1.0
"""For how long, after a link went down."""
LAST_MESSAGE_BATCHES: Final = 64
"""Batches of messages read of a lost worker, at most, before it is declared lost."""
LONGEST_POLL_S: Final = 0.5
"""Seconds of the longest poll: a bound on how late anything unforeseen is noticed."""


class Server:
    """One broker process: the core, its two ROUTER sockets, the clients' send queues and the journal.

    It owns sockets and moves messages; every decision is the core's.

    Args:
        core: The rules.
        journal: Where effects for the next broker go.
        frontend: The endpoint for clients.
        backend: The endpoint for workers.
        max_body: Bytes of the largest request body; frames over `OVERSIZE_FACTOR` times that cut the connection.
    """

    def __init__(self, *, core: Broker, journal: Journal, frontend: str, backend: str, max_body: int) -> None:
        self._core = core
        self._relay = core.relay
        self._journal = journal
        self._send_queues = SendQueues()
        self._in_flight = InFlight()
        self._hasher = BodyHasher(max_body)
        self._dead_peers = DeadPeerDetector()
        self._events = EventQueue(core.receive, time.monotonic, self._apply)
        self._receive = self._events.put
        self._probe_at = 0.0
        self._suspect_until = 0.0
        self._stop_requested = False
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._back = self._context.socket(zmq.ROUTER)
        self._send_front, self._recv_front = sender(self._front), receiver(self._front)
        self._send_back, self._recv_back = sender(self._back), receiver(self._back)
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._front_monitor = self._front.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._open(frontend, backend, max_body)
        self._monitor = self._back.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    def __repr__(self) -> str:
        return f"<Server {self._core!r} {self._send_queues!r}>"

    def _open(self, frontend: str, backend: str, max_body: int) -> None:
        for router in (self._front, self._back):
            router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            router.setsockopt(zmq.ROUTER_HANDOVER, 1)
            router.setsockopt(zmq.LINGER, 1000)
        # No ZMQ_HEARTBEAT_* in front: a PING kills chumak's peer process. TCP's keepalive finds dead hosts on idle
        # connections, `DeadPeerDetector` on those with data in flight.
        self._front.setsockopt(zmq.IPV6, int("[" in frontend))
        self._front.setsockopt(zmq.SNDHWM, CLIENT_PIPE)
        self._front.setsockopt(zmq.MAXMSGSIZE, OVERSIZE_FACTOR * max_body)
        self._front.setsockopt(zmq.TCP_KEEPALIVE, 1)
        self._front.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 15)
        self._front.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        self._front.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        # A worker gets at most one run for each of its slots, and few other messages: sends to it never wait.
        self._back.setsockopt(zmq.SNDHWM, 0)
        for router, endpoint in ((self._back, backend), (self._front, frontend)):
            try:
                router.bind(endpoint)
            except zmq.ZMQError as fault:
                self._context.destroy(linger=0)
                raise ConfigurationError(
                    f"cannot listen on {endpoint}: {fault.strerror}; stop the process that uses it, "
                    "or set another AXON_FRONTEND or AXON_RUN_DIR"
                ) from None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._wakeup.setblocking(False)
        self._wakeup_end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_end.fileno())
        poller = zmq.Poller()
        for readable in (self._front, self._back, self._monitor, self._front_monitor, self._wakeup):
            poller.register(readable, zmq.POLLIN)
        log.info("broker %s serves", self._core.boot)
        try:
            while not self._core.stopped:
                self._turn(dict(poller.poll(self._poll_ms())))
        finally:
            self._close()

    def _turn(self, ready: Container[object]) -> None:
        """Read what is there, and do what is due."""
        if self._back in ready:
            self._drain_backend(RECEIVE_BATCH)
        if self._front in ready:
            self._drain_frontend()
        for message in self._hasher.step(RECEIVE_BATCH):
            self._receive(message)
        now = time.monotonic()
        if self._monitor in ready:
            self._on_link_down(now)
        if self._front_monitor in ready:
            self._on_connections_changed()
        if now >= self._dead_peers.check_at:
            self._cut_dead_peers(now)
        if now >= self._probe_at:
            self._probe_workers(now)
        if self._send_queues.waiting:
            self._send_queues.flush_due(self._send, now)
        if now >= self._core.next_timer():
            self._receive(Tick())
        if self._stop_requested and not self._core.stopping and not self._hasher.waiting:
            self._receive(Stop())

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        log.info("stopping on %s", signal.Signals(number).name)
        self._stop_requested = True

    def _poll_ms(self) -> int:
        if self._hasher.waiting:
            return 0
        due = min(self._core.next_timer(), self._probe_at)
        if self._send_queues.waiting:
            due = min(due, self._send_queues.next_retry())
        wait = min(LONGEST_POLL_S, due - time.monotonic())
        return max(0, int(wait * 1000) + 1)

    def _close(self) -> None:
        for client in list(self._send_queues.waiting):
            self._send_queues.flush(client, self._send)
        signal.set_wakeup_fd(-1)
        self._back.disable_monitor()
        self._front.disable_monitor()
        self._monitor.close()
        self._front_monitor.close()
        self._front.close()
        self._back.close()
        self._context.term()
        self._wakeup.close()
        self._wakeup_end.close()
        self._journal.close()

    # --- workers to clients: the relay path --------------------------------------------------------

    def _drain_backend(self, most: int) -> bool:
        """Relay up to `most` messages; whether the socket was read empty.

        This is the path of every chunk. Each frame is received and sent once, and nothing is unpacked; terminal
        messages, which may be large, are not even copied. `tests/test_relay_cost.py` bounds its instructions.
        """
        recv, accept, waiting, send = self._recv_back, self._relay.accept, self._send_queues.waiting, self._send
        for _ in range(most):
            try:
                worker = recv(NOBLOCK)
            except zmq.Again:
                return True
            client = recv()
            if client == CONTROL:
                self._receive(FromWorker(worker, recv(), recv()))
                continue
            kind, id = recv(), recv()
            verdict = accept(worker, client, kind, id)
            if verdict is PASS:
                body = recv()
                # A client with a send queue gets its messages from there, in order.
                if client in waiting or not send(client, kind, id, body):
                    self._enqueue(client, kind, id, body)
            elif verdict is END:
                self._relay_message(client, kind, id, frame_data(recv(0, copy=False), LARGE_MESSAGE))
                self._receive(Ended(worker, client, id, kind))
            else:
                recv()
        return False

    def _relay_message(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> None:
        """Send one message to a client, or keep it in the client's send queue, or notice that the client is gone."""
        if client in self._send_queues.waiting or not self._send(client, kind, id, body):
            self._enqueue(client, kind, id, body)

    def _enqueue(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> None:
        if self._send_queues.add(client, kind, id, body):
            self._receive(ClientBlocked(client))

    def _send(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> bool:
        """Send now. False if the client's pipe is full; True if the message was sent or the client is gone.

        ROUTER_MANDATORY tells on the first frame: EAGAIN if the pipe is full, EHOSTUNREACH if there is no such peer.
        The frames after it never fail.
        """
        is_large = len(body) >= LARGE_MESSAGE
        if is_large and not self._in_flight.has_room(client):
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
            self._in_flight.add(client, self._front.send(body, NOBLOCK, copy=False, track=True), len(body))
        else:
            send(body, NOBLOCK)
        if flags and flags & GONE:
            self._receive(ClientBack(client))
        return True

    def _on_client_gone(self, client: bytes) -> None:
        self._send_queues.forget(client)
        self._in_flight.forget(client)
        if not (self._relay.flags_of(client) or 0) & GONE:
            self._receive(ClientGone(client))

    # --- clients to workers ------------------------------------------------------------------------

    def _drain_frontend(self) -> None:
        now = time.monotonic()
        for _ in range(RECEIVE_BATCH):
            if self._hasher.full or (self._stop_requested and self._hasher.waiting):
                return
            try:
                client, *frames = recv_message(self._recv_front, most=limits.MAX_FRAMES + 2, large=LARGE_MESSAGE)
            except zmq.Again:
                return
            message = FromClient(client, frames, now)
            if not self._hasher.defer(message):
                self._receive(message)
            elif size(message) > SLICE_BYTES:
                return  # to receive one takes some milliseconds, too

    def _on_connections_changed(self) -> None:
        while self._front_monitor.poll(0):
            event, fd = _MONITORED.unpack(self._front_monitor.recv_multipart()[0])
            (self._dead_peers.opened if event == zmq.EVENT_ACCEPTED else self._dead_peers.closed)(fd)

    def _cut_dead_peers(self, now: float) -> None:
        if cut := self._dead_peers.check(now):
            log.info("cut %d connections to hosts that no longer answer", cut)

    # --- workers -----------------------------------------------------------------------------------

    def _on_link_down(self, now: float) -> None:
        while self._monitor.poll(0):
            self._monitor.recv_multipart()
        self._probe_soon(now)

    def _probe_soon(self, now: float) -> None:
        """Probe the workers' links now and for a while: the report may precede what a send finds."""
        self._suspect_until = now + SUSPECT_PROBES_S
        self._probe_at = now

    def _probe_workers(self, now: float) -> None:
        """Find the workers whose links are down, read everything that they had sent, and declare them lost.

        In this order: a message that a dying worker still got out counts, so a run never has two ends.
        """
        is_suspicious = now < self._suspect_until
        self._probe_at = now + (SUSPECT_PROBE_INTERVAL_S if is_suspicious else PROBE_INTERVAL_S)
        gone = [worker for worker in self._core.workers.routing_ids() if not self._is_linked(worker)]
        if gone:
            for _ in range(LAST_MESSAGE_BATCHES):
                if self._drain_backend(RECEIVE_BATCH):
                    break
        for worker in gone:
            self._receive(WorkerGone(worker))

    def _is_linked(self, worker: bytes) -> bool:
        """Whether a worker's link is up: a MANDATORY send finds out."""
        return self._send_to_worker(worker, (CONTROL, kinds.THERE))

    def _kill(self, effect: Kill) -> None:
        """Kill a worker that hangs, if the pid is still its own: its link is up, or its command line names it."""
        worker, name, pid, is_linked = effect
        if is_linked and not self._is_linked(worker):
            return  # it has ended already
        if not _is_worker(pid, name):
            log.error("cannot kill worker %s: pid %d is another process", name, pid)
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError as fault:
            log.error("cannot kill worker %s, pid %d: %s", name, pid, fault.strerror)

    def _send_to_worker(self, worker: bytes, frames: Iterable[bytes]) -> bool:
        """Send a worker a message; False if its link is down."""
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
                    self._probe_at = 0.0
                    log.warning(
                        "the worker of a run is gone, %s could not be sent", kind.decode(), extra=_log_fields(id)
                    )
            case Kill():
                self._kill(effect)
            case ProbeWorkers():
                self._probe_soon(time.monotonic())
            case Enqueued() | Dequeued() | Registered() | Unregistered():
                self._journal.remember(effect)
            case Note(level, text, id):
                log.log(level, text, extra=_log_fields(id))


_MONITORED = struct.Struct("=Hi")
"""The first frame of a socket monitor's message: the event, and the connection's file descriptor."""


def _log_fields(id: bytes) -> dict[str, str]:
    """What names the run in a log line."""
    return {"run": printable(id) or "-"}


def _is_worker(pid: int, name: str) -> bool:
    """Whether a pid is a worker's of that name, where that can be seen: it may be another container's number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return not Path("/proc/self/cmdline").exists()
    return f"--name={name}".encode() in command


def serve(make_core: Callable[[float], Broker], journal: Journal, frontend: str, backend: str, max_body: int) -> None:
    """Bind and serve until a signal.

    Raises:
        ConfigurationError: An endpoint cannot be bound.
    """
    Server(
        core=make_core(time.monotonic()), journal=journal, frontend=frontend, backend=backend, max_body=max_body
    ).run()
