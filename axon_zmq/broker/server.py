"""The broker's sockets: poll once, drain without waiting, apply what the core decided.

The reply path is `_drain_backend`: a worker's message `[worker, client, kind, id, body]` goes to the
client as `[kind, id, body]`, each frame received and sent once, nothing unpacked. The core hears of it
only when the kind is terminal.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from types import FrameType

import zmq

from axon_zmq.broker.core.broker import Broker
from axon_zmq.broker.core.clients import DELIMITER, SINGLE
from axon_zmq.broker.core.effects import (
    Dequeued,
    Effect,
    Enqueued,
    Kill,
    Note,
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
    Event,
    FromClient,
    FromWorker,
    Stop,
    Tick,
    WorkerGone,
)
from axon_zmq.broker.dead_peers import DeadPeerDetector
from axon_zmq.broker.hashing import SLICE, BodyHasher, size
from axon_zmq.broker.journal import Journal
from axon_zmq.broker.send_queues import InFlight, SendQueues
from axon_zmq.errors import ConfigurationError
from axon_zmq.net.sockets import MORE, NOBLOCK, receiver, recv_message, send_large_message, sender, taken
from axon_zmq.protocol import kinds, limits
from axon_zmq.protocol.frames import RunKey, printable, single_frame
from axon_zmq.protocol.kinds import CONTROL, TERMINAL_KINDS

log = logging.getLogger("axon_zmq.broker")

BATCH = 256
"""Messages taken from one socket before the other has its turn."""
PROBE_INTERVAL = 2.0
"""Seconds between two looks whether each worker's link is still there."""
SUSPECT_INTERVAL = 0.02
SUSPECT_TIME = 1.0
"""After a link went down: seconds between looks, and for how long. ZeroMQ tells of it before a send finds out."""
LAST_WORDS = 64
"""Batches read of a lost worker's, at most, before it is declared so."""
REMEMBERED_LOST = 1000
"""Lost workers whose late messages are still recognised; they can only come within milliseconds."""
LONGEST_POLL = 0.5
"""Seconds of the longest poll: a bound on how late anything unforeseen is noticed."""


class Server:
    """One broker process: the core, its two ROUTER sockets, the clients' outboxes and the journal."""

    def __init__(self, core: Broker, journal: Journal, frontend: str, backend: str, max_body: int) -> None:
        self._core = core
        self._journal = journal
        self._outboxes = SendQueues()
        self._in_flight = InFlight()
        self._bodies = BodyHasher(max_body)
        self._cables = DeadPeerDetector()
        self._relayed: set[RunKey] = set()
        """Runs of which something went to the client: they may not be started again."""
        self._lost_workers: set[bytes] = set()
        """Workers declared lost lately, whose late messages are dropped."""
        self._workers: set[bytes] = set()
        self._events: deque[Event] = deque()
        """What the core has not judged yet; the first of them it is just judging."""
        self._probe_at = 0.0
        self._suspect_until = 0.0
        self._asked_to_stop = False
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._back = self._context.socket(zmq.ROUTER)
        self._send_front, self._recv_front = sender(self._front), receiver(self._front)
        self._send_back, self._recv_back = sender(self._back), receiver(self._back)
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._front_monitor = self._front.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._open(frontend, backend, max_body)
        self._monitor = self._back.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    def _open(self, frontend: str, backend: str, max_body: int) -> None:
        for router in (self._front, self._back):
            router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            router.setsockopt(zmq.ROUTER_HANDOVER, 1)
            router.setsockopt(zmq.LINGER, 1000)
        # No ZMQ_HEARTBEAT_* in front: a PING kills chumak's peer process. TCP's keepalive finds dead hosts where
        # nothing is under way, `DeadPeerDetector` where something is.
        self._front.setsockopt(zmq.IPV6, int("[" in frontend))
        self._front.setsockopt(zmq.SNDHWM, limits.CLIENT_PIPE)
        self._front.setsockopt(zmq.MAXMSGSIZE, limits.OVERSIZE_FACTOR * max_body)
        self._front.setsockopt(zmq.TCP_KEEPALIVE, 1)
        self._front.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 15)
        self._front.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        self._front.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        # To a worker goes at most one message a slot, and what steers it; never wait for one.
        self._back.setsockopt(zmq.SNDHWM, 0)
        for router, endpoint in ((self._back, backend), (self._front, frontend)):
            try:
                router.bind(endpoint)
            except zmq.ZMQError as fault:
                self._context.destroy(linger=0)
                raise ConfigurationError(
                    f"cannot listen on {endpoint}: {fault.strerror}; stop who holds it or set another AXON_FRONTEND"
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
            self._drain_backend(BATCH)
        if self._front in ready:
            self._drain_frontend()
        for message in self._bodies.step(BATCH):
            self._receive(message)
        now = time.monotonic()
        if self._monitor in ready:
            self._link_went_down(now)
        if self._front_monitor in ready:
            self._connections_changed()
        if now >= self._cables.look_at:
            self._look_at_cables(now)
        if now >= self._probe_at:
            self._probe_workers(now)
        if self._outboxes.waiting:
            self._outboxes.flush_due(self._send, now)
        if now >= self._core.next_timer():
            self._receive(Tick())
        if self._asked_to_stop and not self._core.stopping and not self._bodies.waiting:
            self._receive(Stop())

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        log.info("stopping on %s", signal.Signals(number).name)
        self._asked_to_stop = True

    def _poll_ms(self) -> int:
        if self._bodies.waiting:
            return 0
        due = min(self._core.next_timer(), self._probe_at)
        if self._outboxes.waiting:
            due = min(due, self._outboxes.next_retry())
        wait = min(LONGEST_POLL, due - time.monotonic())
        return max(0, int(wait * 1000) + 1)

    def _close(self) -> None:
        for client in list(self._outboxes.waiting):
            self._outboxes.flush(client, self._send)
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

    # --- workers to clients: the fast path ---------------------------------------------------------

    def _drain_backend(self, most: int) -> bool:
        """Relay up to `most` messages; whether the socket was read empty."""
        recv = self._recv_back
        disowned = self._core.disowned
        for _ in range(most):
            try:
                worker = recv(NOBLOCK)
            except zmq.Again:
                return True
            client = recv()
            if client == CONTROL:
                self._control(worker, recv(), recv())
                continue
            kind, id = recv(), recv()
            body = taken(recv(0, copy=False), limits.LARGE_MESSAGE) if kind in TERMINAL_KINDS else recv()
            if worker in self._lost_workers or (disowned and self._is_disowned((worker, client, id), kind)):
                continue
            self._relay(client, kind, id, body)
            if kind in TERMINAL_KINDS:
                self._relayed.discard((client, id))
                self._receive(Ended(worker, client, id, kind))
            elif kind not in _ABOUT_ENDED_RUNS:
                self._relayed.add((client, id))
        return False

    def _is_disowned(self, holder: tuple[bytes, bytes, bytes], kind: bytes) -> bool:
        """Whether a worker speaks of a run that went on elsewhere."""
        is_disowned = holder in self._core.disowned
        if is_disowned and kind in TERMINAL_KINDS:
            self._core.disowned.discard(holder)
        return is_disowned

    def _relay(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> None:
        """Send one message to a client, or keep it in the client's outbox, or notice that it is gone."""
        if client not in self._outboxes.waiting and self._send(client, kind, id, body):
            return
        if self._outboxes.add(client, kind, id, body):
            self._receive(ClientBlocked(client))

    def _send(self, client: bytes, kind: bytes, id: bytes, body: bytes) -> bool:
        """Send now. False where the client's pipe is full; True where it was sent or the client is gone."""
        is_large = len(body) >= limits.LARGE_MESSAGE
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
            self._client_is_gone(client)
            return True
        if client in self._core.gone:
            self._receive(ClientBack(client))
        framing = self._core.framing.get(client)
        if framing and framing & DELIMITER:
            send(b"", MORE)
        if framing and framing & SINGLE:
            body = single_frame(kind, id, body)
        else:
            send(kind, MORE)
            send(id, MORE)
        if is_large:
            self._in_flight.add(client, self._front.send(body, NOBLOCK, copy=False, track=True), len(body))
        else:
            send(body, NOBLOCK)
        return True

    def _client_is_gone(self, client: bytes) -> None:
        self._outboxes.forget(client)
        self._in_flight.forget(client)
        if client not in self._core.gone:
            self._receive(ClientGone(client))

    # --- clients to workers ------------------------------------------------------------------------

    def _drain_frontend(self) -> None:
        now = time.monotonic()
        for _ in range(BATCH):
            if self._bodies.full or (self._asked_to_stop and self._bodies.waiting):
                return
            try:
                client, *frames = recv_message(self._recv_front, most=limits.MAX_FRAMES + 2, large=limits.LARGE_MESSAGE)
            except zmq.Again:
                return
            if len(frames) > limits.MAX_FRAMES:
                self._core.dropped += 1
                log.warning("dropped a message of over %d frames", limits.MAX_FRAMES)
                continue
            message = FromClient(client, frames, now)
            if not self._bodies.keep(message):
                self._receive(message)
            elif size(message) > SLICE:
                return  # to receive one takes some milliseconds, too

    def _connections_changed(self) -> None:
        while self._front_monitor.poll(0):
            event, fd = _MONITORED.unpack(self._front_monitor.recv_multipart()[0])
            (self._cables.opened if event == zmq.EVENT_ACCEPTED else self._cables.closed)(fd)

    def _look_at_cables(self, now: float) -> None:
        if cut := self._cables.look(now):
            log.info("cut %d connections to hosts that no longer answer", cut)

    # --- workers -----------------------------------------------------------------------------------

    def _control(self, worker: bytes, kind: bytes, body: bytes) -> None:
        if kind == kinds.READY:
            self._workers.add(worker)
            self._lost_workers.discard(worker)
        elif kind == kinds.EXITED:
            self._look_for_the_dead(time.monotonic())
        self._receive(FromWorker(worker, kind, body))

    def _link_went_down(self, now: float) -> None:
        while self._monitor.poll(0):
            self._monitor.recv_multipart()
        self._look_for_the_dead(now)

    def _look_for_the_dead(self, now: float) -> None:
        """Look for whose link went down, now and for a while: the word of it may be early."""
        self._suspect_until = now + SUSPECT_TIME
        self._probe_at = now

    def _probe_workers(self, now: float) -> None:
        """Ask which workers' links are there; of one that is gone, read all that it had sent first."""
        self._probe_at = now + (SUSPECT_INTERVAL if now < self._suspect_until else PROBE_INTERVAL)
        gone = [worker for worker in self._workers if not self._tell(worker, (CONTROL, kinds.THERE))]
        if gone:
            for _ in range(LAST_WORDS):
                if self._drain_backend(BATCH):
                    break
        for worker in gone:
            self._worker_is_gone(worker)

    def _worker_is_gone(self, worker: bytes) -> None:
        self._workers.discard(worker)
        if len(self._lost_workers) >= REMEMBERED_LOST:
            self._lost_workers.clear()
        self._lost_workers.add(worker)
        self._receive(WorkerGone(worker, self._relayed))

    def _kill(self, worker: bytes, name: str, pid: int) -> None:
        """End a worker that hangs. While its link is up its pid is its own; it must be our own name for it, too."""
        if worker in self._workers and not self._tell(worker, (CONTROL, kinds.THERE)):
            return  # it has ended already
        if not _is_worker(pid, name):
            log.error("cannot kill worker %s: pid %d is another process", name, pid)
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError as fault:
            log.error("cannot kill worker %s, pid %d: %s", name, pid, fault.strerror)

    def _tell(self, worker: bytes, frames: Iterable[bytes]) -> bool:
        try:
            send_large_message(self._send_back, (worker, *frames), limits.LARGE_MESSAGE)
        except zmq.ZMQError as fault:
            if fault.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    # --- the core ----------------------------------------------------------------------------------

    def _receive(self, event: Event) -> None:
        """Have the core judge an event; one that comes of an effect waits until the others were applied."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            for effect in self._core.receive(self._events[0], time.monotonic()):
                self._apply(effect)
            self._events.popleft()

    def _apply(self, effect: Effect) -> None:
        match effect:
            case ToClient(client, kind, id, body):
                self._relay(client, kind, id, body)
                if kind == kinds.ERROR:
                    self._relayed.discard((client, id))
            case ToWorker(worker, client, kind, id, rest):
                if not self._tell(worker, (client, kind, id, *rest)):
                    self._probe_at = 0.0
                    log.warning("its worker went before it could be told %s", kind.decode(), extra=_about(id))
            case Kill(worker, name, pid):
                self._kill(worker, name, pid)
            case Enqueued() | Dequeued() | Registered() | Unregistered():
                self._journal.remember(effect)
            case Note(level, text, id):
                log.log(level, text, extra=_about(id))


_MONITORED = struct.Struct("=Hi")
"""The first frame of a monitor's message: the event, and the connection's file descriptor."""
_ABOUT_ENDED_RUNS = frozenset((kinds.RESUMED, kinds.REFUSED))
"""Kinds that may follow a run's terminal message."""


def _about(id: bytes) -> dict[str, str]:
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
    Server(make_core(time.monotonic()), journal, frontend, backend, max_body).run()
