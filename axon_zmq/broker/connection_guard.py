"""Watches the frontend's connections and cuts those that break a rule.

`connections` and `unfinished` contain the rules. This module is their shell: it reads the frontend's socket monitor and
the kernel's counters, and shuts connections down. It never closes a descriptor, because ZeroMQ owns them all.

ZeroMQ reads from the kernel in its own thread, at up to 1 GiB/s over loopback, so a fixed interval of measurements
would be too long or would keep an idle broker busy. Instead, the kernel reports connections on which data has arrived
(edge-triggered epoll). A connection that has not delivered a message yet is measured each time. The others are measured
at once after a pause, and every `CHECK_INTERVAL_S` while data keeps arriving. An idle broker measures nothing.

Internal: may change in any release.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import struct
import sys
from collections import deque
from collections.abc import Callable, Container
from typing import Final

import zmq

from axon_zmq.broker import tcp, unfinished
from axon_zmq.broker.connections import MAX_ROUTING_ID, AssignedIds, Connection, Connections, Identified
from axon_zmq.broker.dead_peers import DeadPeerDetector
from axon_zmq.process.memory import ProcessMemory
from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import printable

log = logging.getLogger("axon_zmq.broker")

EVENTS: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_ACCEPT_FAILED
"""Events of the socket monitor that the guard needs."""
CHECK_INTERVAL_S: Final = 0.01
"""Seconds between two measurements of busy connections."""
CHECK_SHARE: Final = 20
"""Measurements take at most one part in this number of the broker's time: with very many busy connections, the interval
becomes longer."""
MEASUREMENT_S: Final = 5e-6
"""Seconds that a measurement takes."""
SWEEP_INTERVAL_S: Final = 1.0
"""Seconds between two checks for stalled messages."""
LOW_WATER: Final = 512
"""Bytes for which ZeroMQ must wait, for one interval, if a connection with an unfinished message leaves nothing in the
kernel to look at."""
TRIM_DELAY_S: Final = 0.25
"""Seconds after which memory is returned to the system, once a connection was cut; ZeroMQ frees it by then."""
TRIM_FROM: Final = limits.MIB
"""Held bytes from which the end of a connection has the same effect."""
EVICTION_DELAY_S: Final = 1.0
"""Seconds after a takeover after which the earlier connection is shut down."""
LOG_INTERVAL_S: Final = 10.0
"""Minimum seconds between two log lines of the same kind."""
_MONITORED: Final = struct.Struct("=Hi")
"""Layout of the first frame of a socket monitor's message: event, and file descriptor of the connection."""


def seed_routing_ids() -> None:
    """Make the routing ids that ZeroMQ assigns unpredictable. Call this before the first ROUTER is created.

    libzmq starts its counter at a value of libc's `rand`, which it never seeds: without this, the counter starts at the
    same value in every process.
    """
    ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4), "little")))


def assigned_ids(context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes]) -> AssignedIds:
    """Return the ids that a ROUTER assigns; a connection of the broker's own shows the first one.

    The ROUTER must not be bound yet.
    """
    endpoint = f"inproc://first-{os.urandom(8).hex()}"
    router.bind(endpoint)
    with context.socket(zmq.DEALER) as own:
        own.setsockopt(zmq.LINGER, 0)
        own.connect(endpoint)
        own.send(b"")
        first, _ = router.recv_multipart()
    router.unbind(endpoint)
    return AssignedIds(first)


class ConnectionGuard:
    """Guards the connections of one ROUTER.

    Args:
        monitor: The ROUTER's socket monitor, for `EVENTS`.
        poller: The poller of the broker's loop. The guard registers what it waits for.
        assigned: The routing ids that the ROUTER assigns.
        bounds: `max_body`, `max_connections` and `max_connections_per_address` are used.
        on_takeover: Called with the routing id that another connection has taken over.
    """

    def __init__(
        self,
        *,
        monitor: zmq.Socket[bytes],
        poller: zmq.Poller,
        assigned: AssignedIds,
        bounds: limits.BrokerLimits,
        on_takeover: Callable[[bytes], None],
    ) -> None:
        self._monitor = monitor
        self._poller = poller
        self._assigned = assigned
        self._bounds = unfinished.Bounds.of(bounds.max_body)
        self._on_takeover = on_takeover
        self._connections = Connections(bounds.max_connections, bounds.max_connections_per_address)
        self._dead_peers = DeadPeerDetector()
        self._memory = ProcessMemory()
        self._holding: dict[Connection, None] = {}
        """Connections with undelivered bytes at their last measurement."""
        self._was_measured = False
        """Whether one of them was measured since their sum was last compared with the bound."""
        self._suspects: dict[Connection, int] = {}
        """Connections that held too many bytes at their last measurement, and the bytes that ZeroMQ had read then."""
        self._low_water: list[Connection] = []
        """Connections for which ZeroMQ waits for `LOW_WATER` bytes until the next check."""
        self._evictions: deque[tuple[float, Connection]] = deque()
        """Connections that took over a routing id, and when the earlier connection is shut down."""
        self._check_at = float("inf")
        """When the next measurement of busy connections is due; infinite while the kernel is waited for."""
        self._is_paced = False
        """Whether the clock decides about the next measurement, and data on busy connections is not waited for."""
        self._sweep_at = 0.0
        self._trim_at = float("inf")
        self._new: select.epoll | None = None
        """Reports data on connections that have not delivered a message."""
        self._busy: select.epoll | None = None
        """Reports data on the other connections."""
        if sys.platform == "linux":
            self._new, self._busy = select.epoll(), select.epoll()
            poller.register(self._new.fileno(), zmq.POLLIN)
            poller.register(self._busy.fileno(), zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        self._logs: dict[str, tuple[float, int]] = {}
        """For each kind of log line, when the last one was written, and how many were not written since."""

    def __repr__(self) -> str:
        return f"<ConnectionGuard {self._connections!r}, {len(self._holding)} with undelivered bytes>"

    def close(self) -> None:
        """Close everything that the guard has opened."""
        self._monitor.close()
        self._memory.close()
        if self._new and self._busy:
            self._new.close()
            self._busy.close()

    # --- messages ----------------------------------------------------------------------------------

    def admit(self, fd: int, routing_id: bytes, size: int, now: float) -> bool:
        """Count a message that the ROUTER has delivered.

        Args:
            fd: Descriptor of the connection from which it came (`zmq.SRCFD`); negative if ZeroMQ does not know it.
            routing_id: The client's routing id.
            size: Its bytes on the wire.
            now: The time.

        Returns:
            Whether the message may be processed.
        """
        connection = self._connections.open.get(fd)
        if connection is None or connection.client != routing_id:
            return self._identify(fd, routing_id, size, now)
        connection.delivered += size + connection.credit
        return True

    def _identify(self, fd: int, routing_id: bytes, size: int, now: float) -> bool:
        if fd < 0:
            return True
        # ZeroMQ's thread reports an event before it passes on a message that arrived later.
        self.read_events(now)
        connection = self._connections.open.get(fd)
        if connection is None:  # it has ended since it sent the message
            connection = Connection(fd=fd, address="", opened=self._connections.handshakes, closed=0)
        is_first = not connection.client
        connection.delivered += size + connection.credit
        match self._connections.identify(connection, routing_id, self._assigned):
            case Identified.RESERVED | Identified.TOO_LONG as fault:
                why = f"its routing id has more than {MAX_ROUTING_ID} bytes"
                if fault is Identified.RESERVED:
                    why = "its routing id begins with a zero byte, which only ZeroMQ may assign"
                # A descriptor may have been reused since the message was sent: if the connection has another routing
                # id already, the message is not its own.
                if is_first and connection.closed is None:
                    self._cut(connection, why, now)
                return False
            case Identified.TAKEOVER:
                self._warn(
                    "takeover",
                    f"routing id {printable(routing_id)} was taken over by another connection while the earlier one "
                    "was open: give each client process its own random routing id",
                    now,
                )
                # ZeroMQ passes nothing more to or from the earlier connection, but leaves it open. Only its end lets
                # its client reconnect and learn of the takeover. The pause keeps two clients from evicting each other
                # in quick succession.
                self._evictions.append((now + EVICTION_DELAY_S, connection))
                self._on_takeover(routing_id)
            case Identified.NEW:
                pass
        if self._connections.is_short(routing_id):
            self._warn(
                "short",
                f"routing id {printable(routing_id)} has {len(routing_id)} bytes: others can guess it and take it "
                "over; use a random one of at least 16 bytes",
                now,
            )
        if is_first and connection.closed is None:
            self._watch(connection, self._busy, self._new)
        return True

    # --- the socket monitor ------------------------------------------------------------------------

    def read_events(self, now: float) -> None:
        """Read all events of the socket monitor."""
        while True:
            try:
                event, value = _MONITORED.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(value, now)
            elif event == zmq.EVENT_DISCONNECTED:
                self._disconnected(value, now)
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connections.handshakes += 1
            elif event == zmq.EVENT_ACCEPT_FAILED:
                reason = os.strerror(value)
                self._warn("accept", f"cannot accept a connection: {reason}; lower AXON_MAX_CONNECTIONS", now)

    def _accepted(self, fd: int, now: float) -> None:
        connection, refusal, evicted = self._connections.add(fd, tcp.peer_address(fd), now)
        if refusal:
            connection.cut = True
            self._warn("refused", f"refused a connection: {refusal}", now)
            tcp.abort(fd)
            return
        if evicted is not None:
            evicted.cut = True
            self._holding.pop(evicted, None)
            text = "closed the oldest connection without a message: all AXON_MAX_CONNECTIONS connections are open"
            self._warn("evicted", text, now)
            tcp.abort(evicted.fd)
        if connection.address:
            self._dead_peers.opened(fd)
            self._watch(connection, self._new, None)

    def _disconnected(self, fd: int, now: float) -> None:
        if (connection := self._connections.open.get(fd)) is not None:
            if connection.held >= TRIM_FROM:
                self._trim_at = min(self._trim_at, now + TRIM_DELAY_S)
            self._holding.pop(connection, None)
            self._suspects.pop(connection, None)
        self._connections.remove(fd)
        self._dead_peers.closed(fd)

    def _watch(self, connection: Connection, new: select.epoll | None, old: select.epoll | None) -> None:
        """Let one epoll object report data on a connection, and no longer the other one."""
        if not connection.address or new is None:
            return
        try:
            if old is not None:
                old.unregister(connection.fd)
            new.register(connection.fd, select.EPOLLIN | select.EPOLLET)
        except OSError:
            pass  # it was closed, which the monitor will report

    # --- measurements ------------------------------------------------------------------------------

    def turn(self, ready: Container[object], is_drained: bool, now: float) -> None:
        """Do what is due in a turn of the broker's loop.

        Args:
            ready: What the poller has reported.
            is_drained: Whether the ROUTER was read until it was empty in this turn.
            now: The time.
        """
        if self._monitor in ready:
            self.read_events(now)
        if is_drained:
            self._settle(now)
        if self._new is not None and self._busy is not None:
            if self._new.fileno() in ready:
                for fd, _ in self._new.poll(0):
                    self._measure(fd, now)
            if self._busy.fileno() in ready or now >= self._check_at:
                self._check(self._busy, now)
        if now >= self._dead_peers.check_at and (closed := self._dead_peers.check(now)):
            log.info("closed %d client connections: their hosts did not answer for %.0f s", closed, limits.DEAD_HOST)
        if self._evictions and now >= self._evictions[0][0]:
            self._evict(self._evictions.popleft()[1])
        if now >= self._trim_at:
            self._trim_at = float("inf")
            self._memory.return_free()  # glibc keeps the memory of many small frames otherwise

    def next_timer(self) -> float:
        """When `turn` must be called at the latest, in seconds of the monotonic clock."""
        if self._suspects:
            return 0.0
        due = min(self._check_at, self._trim_at)
        return min(due, self._evictions[0][0]) if self._evictions else due

    def _evict(self, connection: Connection) -> None:
        """Shut down the connection whose routing id another one has taken over, if it is still open."""
        earlier, connection.taken_from = connection.taken_from, None
        if earlier is None or earlier.client != connection.client:
            return  # its descriptor was reused: by its latest message, it belongs to another client
        if self._connections.open.get(earlier.fd) is earlier:
            earlier.cut = True
            tcp.abort(earlier.fd)

    def _check(self, busy: select.epoll, now: float) -> None:
        """Measure the connections on which data has arrived."""
        if not self._is_paced:
            # From now on, the clock decides about the next measurement and not each arrival of data.
            self._is_paced = True
            self._poller.unregister(busy.fileno())
        low, self._low_water = self._low_water, []
        fds = {fd for fd, _ in busy.poll(0)} | {connection.fd for connection in low}
        for fd in fds:
            self._measure(fd, now)
        for connection in low:
            connection.waits = False
            _set_low_water(connection, 1)
        if fds or self._low_water:
            self._check_at = now + max(CHECK_INTERVAL_S, CHECK_SHARE * len(fds) * MEASUREMENT_S)
        else:
            self._check_at = float("inf")
            self._is_paced = False
            self._poller.register(busy.fileno(), zmq.POLLIN)
        # While the socket is not read until it is empty, unread messages and unfinished ones look the same. Beyond this
        # bound they are cut nevertheless.
        self._cut_total(2 * self._bounds.total, now)

    def _measure(self, fd: int, now: float) -> None:
        connection = self._connections.open.get(fd)
        if connection is None or connection.cut:
            return
        try:
            arrived = tcp.info(fd).received
            waiting = tcp.unread(fd)
        except OSError:
            return
        memory = self._memory.private()
        unfinished.measured(connection, arrived, waiting, memory, now)
        if connection.undelivered < unfinished.LOOK_FROM:
            self._holding.pop(connection, None)
            return
        self._holding[connection] = None
        self._was_measured = True
        self._look(connection, waiting, now)
        if unfinished.has_small_frames(connection, memory):
            self._cut(connection, "it sends very many small frames in one message", now)
        elif connection.small_properties:
            self._cut(connection, "it sends very many properties in its handshake", now)
        elif connection.held > self._bounds.one:
            self._suspects[connection] = connection.read

    def _look(self, connection: Connection, waiting: int, now: float) -> None:
        """Look at the bytes that wait in the kernel, or let some gather there until the next check."""
        if waiting < LOW_WATER:
            if not connection.waits and _set_low_water(connection, LOW_WATER):
                connection.waits = True
                self._low_water.append(connection)
                self._check_at = min(self._check_at, now + CHECK_INTERVAL_S)
            return
        try:
            data = tcp.peek(connection.fd, unfinished.LOOK_BYTES)
        except OSError:
            return
        connection.small_frames += unfinished.is_small_frames(data)
        connection.small_properties = not connection.client and unfinished.is_small_properties(data)

    def _settle(self, now: float) -> None:
        """Cut connections because of their earlier measurements, after the ROUTER was read until it was empty."""
        suspects, self._suspects = self._suspects, {}
        for connection, read in suspects.items():
            if unfinished.is_too_large(connection, read, self._bounds):
                text = f"its unfinished message has more than {self._bounds.one} bytes, twice AXON_MAX_BODY and 1 MiB"
                self._cut(connection, text, now)
        if self._was_measured:
            self._was_measured = False
            self._cut_total(self._bounds.total, now)
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_INTERVAL_S
        for connection in list(self._holding):
            if unfinished.is_stalled(connection, now):
                text = f"nothing arrived of its unfinished message for {unfinished.STALLED_S:.0f} s"
                self._cut(connection, text, now)
            else:
                self._measure(connection.fd, now)

    def _cut_total(self, total: int, now: float) -> None:
        for connection in unfinished.over_total(self._holding, total, now):
            self._cut(connection, f"unfinished messages of all connections have more than {total} bytes", now)

    def _cut(self, connection: Connection, why: str, now: float) -> None:
        connection.cut = True
        self._holding.pop(connection, None)
        self._trim_at = now + TRIM_DELAY_S
        place = connection.address or "a Unix socket"
        client = f" of client {printable(connection.client)}" if connection.client else ""
        self._warn(why, f"closed a connection from {place}{client}: {why}", now)
        tcp.abort(connection.fd)

    def _warn(self, kind: str, text: str, now: float) -> None:
        """Log why a connection is closed, before it is closed, at most once in `LOG_INTERVAL_S` for each reason."""
        written_at, missing = self._logs.get(kind, (-LOG_INTERVAL_S, 0))
        if now - written_at < LOG_INTERVAL_S:
            self._logs[kind] = written_at, missing + 1
            return
        more = f" ({missing} earlier lines of this kind were not logged)" if missing else ""
        log.warning("%s%s", text, more)
        self._logs[kind] = now, 0


def _set_low_water(connection: Connection, size: int) -> bool:
    try:
        tcp.set_low_water(connection.fd, size)
    except OSError:
        return False
    return True
