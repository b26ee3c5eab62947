"""Records of the frontend's connections, and the decisions about whole connections, without I/O.

libzmq routes by routing id and hides connections. The broker needs them for three decisions:

- **How many** connections there may be, in total and from one address of another machine. If there are too many in
  total, the oldest connection that has not delivered a message makes room for a new one. Otherwise a client could use
  all places with connections that never finish their handshake.
- **Reserved routing ids.** libzmq's ROUTER assigns an id to each peer that has chosen none: a zero byte and a 32-bit
  counter. It also accepts a *chosen* id of this form, and when the counter reaches it, libzmq aborts the process. All
  assigned ids are consecutive. Therefore an id that begins with a zero byte and is not among those assigned so far was
  chosen, and its connection is cut.
- **Takeovers.** The newest connection with a routing id receives all messages for it. Before keys exist, the broker
  cannot prevent that, but it reports it.

`connection_guard` supplies the events and cuts the connections; `unfinished` decides about their unfinished messages.

Internal: may change in any release.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from axon_zmq.net.endpoints import is_loopback

SHORT_ID: Final = 16
"""Bytes from which a routing id counts as hard to guess, if it is random."""
CLIENTS_KEPT: Final = 100_000
"""Maximum number of routing ids whose last connection, or whose warning, is remembered."""
FIRST_MESSAGE_S: Final = 1.0
"""Seconds for which a connection without a message keeps its place, so that a client can complete its handshake and
send its first message although another one opens connections as fast as it can."""
MAX_ROUTING_ID: Final = 255
"""Bytes that a routing id may have, as in ZMTP; libzmq accepts longer ones from a peer. The broker remembers routing
ids after the end of their connections."""
HANDSHAKE_FACTOR: Final = 3
"""Bytes that ZeroMQ keeps for each byte of a handshake: the command, its properties, and the peer's metadata."""
MESSAGE_CREDIT: Final = 4096
"""Bytes that each delivered message adds to the number of delivered bytes, beyond its frames. They cover ZeroMQ's
commands, such as the PINGs of clients with heartbeats, which no message shows."""


@dataclass(slots=True, eq=False, kw_only=True)
class Connection:
    """One connection of the frontend."""

    fd: int
    """File descriptor, which ZeroMQ owns. After the end of the connection, another one may have the same number."""
    address: str
    """IP address of the other side; empty for a Unix socket."""
    opened: int
    """Number of ZeroMQ handshakes that the frontend had completed when the connection was accepted."""
    opened_at: float = 0.0
    """Time at which the connection was accepted."""
    closed: int | None = None
    """The same number when the connection ended; None while it is open."""
    cut: bool = False
    """Whether the broker has shut it down, and its end has not been reported yet."""
    client: bytes = b""
    """Routing id of the last message; empty before the first one."""
    taken_from: Connection | None = None
    """The connection whose routing id this one took over, until it is cut."""
    delivered: int = 0
    """Bytes of delivered messages, with `credit` for each; lowered to `read` by each measurement."""
    credit: int = 0
    """`MESSAGE_CREDIT` once a measurement has shown that the handshake was small; 0 before. Otherwise many small
    messages could hide a handshake whose properties ZeroMQ keeps as long as the connection."""

    # --- measurements of `unfinished`
    arrived: int = 0
    """Bytes that had arrived in the kernel at the last measurement."""
    read: int = 0
    """Bytes that ZeroMQ had read from the kernel at the last measurement."""
    delivered_before: int = 0
    """`delivered` after the last measurement, which shows whether a message was delivered since."""
    progress_at: float = 0.0
    """Time of the last measurement at which new bytes had arrived."""
    since: float = 0.0
    """Since when the current message has been unfinished."""
    memory_before: int = 0
    """Bytes of memory that the process used when the current message began; 0 before the first measurement."""
    small_frames: int = 0
    """How often the bytes of the current message looked like a sequence of very small frames."""
    small_properties: bool = False
    """Whether the bytes before the first message looked like a sequence of very small properties of a handshake."""
    waits: bool = False
    """Whether ZeroMQ waits for more bytes to gather in the kernel."""

    @property
    def held(self) -> int:
        """Bytes that ZeroMQ had read and not delivered at the last measurement: unfinished or unread messages."""
        return max(0, self.read - self.delivered)

    @property
    def cost(self) -> int:
        """Bytes of memory that the held bytes take: after the first message, they may belong to a handshake."""
        return self.held * (HANDSHAKE_FACTOR if self.client and not self.credit else 1)

    @property
    def undelivered(self) -> int:
        """The same, including bytes in the kernel."""
        return max(0, self.arrived - self.delivered)


class Added(NamedTuple):
    """The result of adding a connection."""

    connection: Connection
    refusal: str
    """Why the new connection must be cut; empty if it may stay."""
    evicted: Connection | None
    """A silent connection that must be cut, so that the new one may stay."""


class AssignedIds:
    """The routing ids that libzmq has assigned: consecutive numbers of 32 bits behind a zero byte.

    Args:
        first: The first id that was assigned, to a connection of the broker's own.
    """

    def __init__(self, first: bytes) -> None:
        self._first = int.from_bytes(first[1:], "big")

    def __repr__(self) -> str:
        return "<AssignedIds>"  # without the number: an attacker who knows it can choose the next id

    def contains(self, routing_id: bytes, accepted: int) -> bool:
        """Whether an id can have been assigned.

        Args:
            routing_id: An id that begins with a zero byte.
            accepted: How many connections were accepted so far. libzmq assigns at most one id for each: to a peer
                without an id, or to the older one of two connections with the same id.
        """
        number = int.from_bytes(routing_id[1:], "big")
        # The counter wraps around.
        return len(routing_id) == 5 and (number - self._first) % 2**32 <= accepted


class Identified(Enum):
    """What the first message with a routing id on a connection shows."""

    NEW = "new"
    RESERVED = "reserved"
    """The client chose an id that only ZeroMQ may assign. The connection must be cut."""
    TOO_LONG = "too long"
    """The id has more than `MAX_ROUTING_ID` bytes. The connection must be cut."""
    TAKEOVER = "takeover"
    """Another connection used this id last, and was still open when this one was established."""


class Connections:
    """All open connections of the frontend.

    Args:
        max_connections: Maximum number of open connections.
        max_per_address: Maximum number of open connections from one address that is not a loopback address.
    """

    def __init__(self, max_connections: int, max_per_address: int) -> None:
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self.open: dict[int, Connection] = {}
        """Open connections by file descriptor."""
        self._silent: dict[Connection, None] = {}
        """Open connections that have not delivered a message and are not cut, the oldest first."""
        self.accepted = 0
        """Number of connections accepted so far."""
        self.handshakes = 0
        """Number of handshakes completed so far."""
        self._remote: Counter[str] = Counter()
        """Number of connections from each address that is not a loopback address."""
        self._last: OrderedDict[bytes, Connection] = OrderedDict()
        """The connection that used each routing id last, the longest unused id first."""
        self._warned: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.open)

    def __repr__(self) -> str:
        return f"<Connections {len(self.open)} open, {self.accepted} accepted>"

    def add(self, fd: int, address: str, now: float) -> Added:
        """Add a connection that was accepted.

        Returns:
            The connection, and which connection must be cut.
        """
        self.accepted += 1
        if fd in self.open:  # its end was not reported
            self.remove(fd)
        connection = Connection(fd=fd, address=address, opened=self.handshakes, opened_at=now)
        refusal, evicted = self._refusal(address), None
        if not refusal and len(self.open) >= self._max_connections:
            evicted = self._oldest_silent(now)
            if evicted is None:
                refusal = (
                    f"{len(self.open)} connections are open, the limit is {self._max_connections} "
                    "(AXON_MAX_CONNECTIONS)"
                )
        self.open[fd] = connection
        if not refusal:
            self._silent[connection] = None
        if _is_remote(address):
            self._remote[address] += 1
        return Added(connection, refusal, evicted)

    def _refusal(self, address: str) -> str:
        if _is_remote(address) and self._remote[address] >= self._max_per_address:
            return (
                f"{self._remote[address]} connections from {address} are open, the limit is {self._max_per_address} "
                "(AXON_MAX_CONNECTIONS_PER_ADDRESS)"
            )
        return ""

    def _oldest_silent(self, now: float) -> Connection | None:
        """Return the oldest connection without a message, and forget that it is silent: it is evicted only once."""
        while self._silent:
            oldest = next(iter(self._silent))
            if not oldest.cut and now - oldest.opened_at < FIRST_MESSAGE_S:
                return None
            del self._silent[oldest]
            if not oldest.cut:
                return oldest
        return None

    def remove(self, fd: int) -> None:
        """Remove a connection that has ended."""
        connection = self.open.pop(fd, None)
        if connection is None:
            return
        connection.closed = self.handshakes
        self._silent.pop(connection, None)
        if _is_remote(connection.address):
            self._remote[connection.address] -= 1
            if not self._remote[connection.address]:
                del self._remote[connection.address]

    def identify(self, connection: Connection, routing_id: bytes, assigned: AssignedIds) -> Identified:
        """Record that a message with a routing id came from a connection whose last message had another one.

        All reported ends of connections must have been passed to `remove` before. After a takeover, `taken_from` is the
        other connection.
        """
        if len(routing_id) > MAX_ROUTING_ID:
            return Identified.TOO_LONG
        is_assigned = routing_id[:1] == b"\0"
        if is_assigned and not assigned.contains(routing_id, self.accepted):
            return Identified.RESERVED
        self._silent.pop(connection, None)
        if self._last.get(connection.client) is connection and connection.client != routing_id:
            # A connection has one routing id. If two are seen, one message came from an earlier connection with the
            # same descriptor, which ended before its message was read. Without this, the next message of that client
            # would count as a takeover, and this connection would be cut.
            del self._last[connection.client]
        if is_assigned:
            # ZeroMQ gives an assigned id to no other connection, so nobody asks who used it last.
            connection.client = routing_id
            return Identified.NEW
        earlier = self._last.pop(routing_id, None)
        self._last[routing_id] = connection
        connection.client = routing_id
        if len(self._last) > CLIENTS_KEPT:
            self._last.popitem(last=False)
        if earlier is None or earlier is connection or not _overlap(earlier, connection):
            return Identified.NEW
        connection.taken_from = earlier
        return Identified.TAKEOVER

    def is_short(self, routing_id: bytes) -> bool:
        """Whether to warn about a routing id that others can guess: once for each id, as far as they are remembered."""
        if len(routing_id) >= SHORT_ID or routing_id[:1] == b"\0" or routing_id in self._warned:
            return False
        self._warned[routing_id] = None
        if len(self._warned) > CLIENTS_KEPT:
            self._warned.popitem(last=False)
        return True


def _is_remote(address: str) -> bool:
    return address != "" and not is_loopback(address.removeprefix("::ffff:"))


def _overlap(earlier: Connection, later: Connection) -> bool:
    """Whether an earlier connection was still open when a later one had completed its handshake.

    libzmq itself closes the earlier connection as soon as the later one has completed its handshake, so the earlier one
    may be closed by now. It then ended after at least one handshake that followed the acceptance of the later one. A
    client that has closed its connection and reconnects is different: the earlier end is reported before the later
    handshake, although not always before the later connection is accepted.
    """
    return earlier.closed is None or earlier.closed > later.opened
