"""Decides which connections to cut because of messages that they do not finish, without I/O.

ZeroMQ delivers whole messages. It keeps the frames of an unfinished message in memory, without a bound on their number
(ZMQ_MAXMSGSIZE bounds one frame). The broker sees nothing of it, but it can compare two numbers: the bytes that ZeroMQ
has read from the kernel, and the bytes of the messages that it has delivered. The difference is *held*. These rules use
it:

- **Size**: the held bytes of one connection exceed the largest message that is answered at all.
- **Total**: the held bytes of all connections exceed a bound. The connection with the most held bytes multiplied by
  time is cut first: an honest client finishes its upload, an attack must hold its bytes.
- **Large handshakes**: ZeroMQ keeps the properties of a handshake as long as the connection. Their bytes stay held,
  whatever messages follow, and count three times in the total.
- **Stalled**: nothing has arrived of an unfinished message for as long as a dead host is waited for.
- **Small frames**: an empty frame has two bytes on the wire and occupies 64 bytes in ZeroMQ, so a bound on bytes alone
  would allow 30 times as much memory. The kernel shows the bytes that ZeroMQ has not read yet. If they form a long
  sequence of tiny frames, *and* the memory of the process has grown by several times the held bytes, the connection is
  cut. Neither sign would suffice: a body may contain such bytes, and memory grows for other reasons, too.
- **Small properties**: a handshake may contain properties of 7 bytes, each of which costs 6 µs and over 100 bytes. A
  long sequence of them with different names, before the first message, cannot be anything else.

A difference does not show whether the held messages are unfinished or whether the broker has not read them yet. The
rules for size and stalled messages are therefore applied only after the socket was read until it was empty since the
measurement.

Internal: may change in any release.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from axon_zmq.broker.connections import MESSAGE_CREDIT, Connection
from axon_zmq.protocol import limits

OVERSIZE_FACTOR: Final = 2
"""ZeroMQ closes a connection on which a frame exceeds `max_body` times this factor (ZMQ_MAXMSGSIZE). Smaller frames
over `max_body` are received, so that the client gets the error `too_large`."""
ROOM: Final = limits.MIB
"""Bytes of an unfinished message that may be held in addition to a body: its other frames, and messages behind it."""
TOTAL_MESSAGES: Final = 8
"""Number of largest messages that all connections together may hold."""
TOTAL_LEAST: Final = 256 * limits.MIB
"""Bytes that all connections together may hold at least, whatever `max_body` is."""
STALLED_LEAST: Final = 64 * limits.KIB
"""Held bytes from which a connection that sends nothing more counts as stalled. Heartbeats add a few bytes each and are
never delivered, so a lower number would cut idle clients."""
STALLED_S: Final = limits.DEAD_HOST
"""Seconds without a new byte after which an unfinished message is given up."""
SMALL_HANDSHAKE: Final = 64 * limits.KIB
"""Held bytes up to which, after the first message, the handshake counts as small. ZeroMQ keeps its properties as long
as the connection."""
LOOK_FROM: Final = 2 * limits.KIB
"""Undelivered bytes from which the bytes in the kernel are looked at."""
LOOK_BYTES: Final = 4 * limits.KIB
"""How many of them are looked at."""
SMALL: Final = 64
"""Bytes up to which a frame, or a property with its value, counts as small."""
SMALL_COUNT: Final = 48
"""Number of consecutive small frames or properties that count as a long sequence. A request has at most 5 frames."""
EXCESS_LEAST: Final = 16 * limits.MIB
"""Growth of memory from which it is a sign of an attack with small frames, together with `EXCESS_FACTOR`."""
EXCESS_FACTOR: Final = 4
"""Growth of memory divided by held bytes from which it is a sign of such an attack. Empty frames reach 32."""
EXCESS_LARGE: Final = 64 * limits.MIB
"""Growth of memory from which a single look at small frames suffices; otherwise `LOOKS` are needed."""
LOOKS: Final = 3
"""Number of looks at one unfinished message that must have shown small frames."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on held bytes."""

    one: int
    """For one connection."""
    total: int
    """For all connections."""

    @staticmethod
    def of(max_body: int) -> Bounds:
        """The bounds for a largest accepted body, in bytes."""
        one = OVERSIZE_FACTOR * max_body + ROOM
        return Bounds(one, max(TOTAL_LEAST, TOTAL_MESSAGES * one))


def measured(connection: Connection, arrived: int, unread: int, memory: int, now: float) -> None:
    """Record a measurement.

    Args:
        connection: The connection; the measurement is stored in it.
        arrived: Bytes that have arrived in the kernel.
        unread: Bytes that wait in the kernel, measured after `arrived`, so that `held` is never too high.
        memory: Bytes of memory that the process uses.
        now: The time.
    """
    read = max(connection.read, arrived - unread)
    if arrived != connection.arrived:
        connection.progress_at = now
    connection.arrived, connection.read = arrived, read
    if connection.client and read - connection.delivered <= SMALL_HANDSHAKE:
        connection.credit = MESSAGE_CREDIT
    # While the held bytes may be a large handshake, messages are no progress of it.
    has_delivered = connection.delivered != connection.delivered_before and connection.credit > 0
    # Without this, the credit of many small messages would hide the bytes of a later large one.
    connection.delivered = min(connection.delivered, read)
    connection.delivered_before = connection.delivered
    if has_delivered or not connection.memory_before or connection.undelivered < LOOK_FROM:
        connection.since = now
        connection.memory_before = memory
        connection.small_frames = 0
    else:
        # Memory that was freed meanwhile must not hide later growth.
        connection.memory_before = min(connection.memory_before, memory)


def has_small_frames(connection: Connection, memory: int) -> bool:
    """Whether a connection sends very many small frames in one message.

    Args:
        connection: A measured connection, with the number of looks that showed small frames.
        memory: Bytes of memory that the process uses.
    """
    excess = memory - connection.memory_before
    if not connection.small_frames or excess < max(EXCESS_LEAST, EXCESS_FACTOR * connection.held):
        return False
    return connection.small_frames >= LOOKS or excess >= EXCESS_LARGE


def is_too_large(connection: Connection, read: int, bounds: Bounds) -> bool:
    """Whether a connection's unfinished message is too large.

    Args:
        connection: The connection.
        read: Bytes that ZeroMQ had read from it before the socket was last read until it was empty.
        bounds: The bounds.
    """
    return read - connection.delivered > bounds.one


def is_stalled(connection: Connection, now: float) -> bool:
    """Whether nothing has arrived of a connection's unfinished message for too long."""
    return connection.held >= STALLED_LEAST and now - connection.progress_at >= STALLED_S


def over_total(connections: Iterable[Connection], total: int, now: float) -> list[Connection]:
    """The connections to cut so that the others together hold at most `total` bytes."""
    holding = [each for each in connections if each.held >= LOOK_FROM and not each.cut]
    excess = sum(each.cost for each in holding) - total
    if excess <= 0:
        return []
    # One second is added, so that a large message counts more than a small one of the same moment.
    holding.sort(key=lambda each: each.cost * (now - each.since + 1.0))
    chosen: list[Connection] = []
    while excess > 0:
        chosen.append(holding.pop())
        excess -= chosen[-1].cost
    return chosen


def is_small_frames(data: bytes) -> bool:
    """Whether bytes of a connection form a long sequence of small frames with the MORE flag, from any offset."""
    return any(_count_frames(data, start) >= SMALL_COUNT for start in range(min(len(data), SMALL)))


def _count_frames(data: bytes, at: int) -> int:
    """The number of consecutive small frames with the MORE flag from an offset to the end of the data; 0 if others
    follow."""
    count = 0
    while at + 9 <= len(data):
        flags = data[at]
        if flags == 1:
            size, header = data[at + 1], 2
        elif flags == 3:
            size, header = int.from_bytes(data[at + 1 : at + 9], "big"), 9
        else:
            return 0
        if size > SMALL:
            return 0
        count += 1
        at += header + size
    return count


def is_small_properties(data: bytes) -> bool:
    """Whether bytes form a long sequence of small properties of a handshake with different names, from any offset."""
    return any(_count_names(data, start) >= SMALL_COUNT for start in range(min(len(data), SMALL)))


def _count_names(data: bytes, at: int) -> int:
    names: set[bytes] = set()
    while at < len(data):
        value_at = at + 1 + data[at]
        if value_at + 4 > len(data):
            break
        size = int.from_bytes(data[value_at : value_at + 4], "big")
        if not data[at] or data[at] + size > SMALL:
            return 0
        names.add(data[at + 1 : value_at])
        at = value_at + 4 + size
    return len(names)
