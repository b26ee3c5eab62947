"""A ZeroMQ socket on an asyncio event loop that needs no task, future or await for each message.

The file descriptor of a ZeroMQ socket is edge-triggered: it becomes readable once when the socket's state changes, and
any call on the socket, even a send, may consume that signal. Each method that uses the socket therefore reads
`ZMQ_EVENTS` afterwards and, if messages are left, schedules the next receive itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from axon_zmq.net.sockets import EVENTS, POLLIN, receiver, recv_message, send_message, sender

RECEIVE_BATCH: Final = 256
"""Maximum number of messages received in one callback, so that the loop's other callbacks get their turn."""
RECEIVE_S: Final = 0.001
"""Seconds after which a callback receives no more messages. The peer may answer so fast that the socket never becomes
empty: with the limit on messages alone, the parts of a replay kept a worker's loop busy for half a second."""
COALESCED_MESSAGES: Final = 256
"""Maximum number of messages in a batch; a full batch is sent at once."""
COALESCE_S: Final = 0.001
"""Seconds that a message may wait in a batch, so that the peer wakes up once for all messages of the batch. The timers
of uvloop have no finer resolution."""
LATENESS_MEMORY_S: Final = 0.1
"""Seconds after which a measured lateness of the loop no longer counts."""
LATENESS_SMOOTHING: Final = 0.3
"""Weight of the newest measurement in the moving average: a single delay does not make the loop count as late."""


class LoopSocket:
    """A socket that passes received messages to a callback and sends without waiting.

    All methods must be called on the thread of the event loop.

    Args:
        socket: A socket of a plain `zmq.Context`; it may be connected later.
        received: Called with the frames of each message.
    """

    def __init__(self, socket: zmq.Socket[bytes], received: Callable[[list[bytes]], None]) -> None:
        self._socket = socket
        self._recv, self._send_frame = receiver(socket), sender(socket)
        self._received = received
        self._waiting: deque[Sequence[bytes]] = deque()
        """Messages that wait because the pipe to the peer is full."""
        self._batch: list[Sequence[bytes]] = []
        """Messages that will be sent together, `COALESCE_S` after the previous batch. While it is not empty, a timer
        for it is set."""
        self._batch_sent_at = 0.0
        self._late, self._late_at = 0.0, 0.0
        self._room = asyncio.Event()
        self._room.set()
        self._scheduled = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(socket.fileno(), self._schedule)
        self._schedule()

    def __repr__(self) -> str:
        return f"<LoopSocket {'closed' if self._closed else 'open'}, {len(self._waiting)} waiting>"

    def send(self, frames: Sequence[bytes]) -> None:
        """Send now or, if the pipe to the peer is full, as soon as it has room; the order of messages is kept."""
        if self._batch:  # its messages are older, so they go first
            self._batch.append(frames)
            self._send_batch()
        else:
            self._send(frames)
            self._schedule_if_readable()

    def send_soon(self, frames: Sequence[bytes]) -> None:
        """Send now; if the previous batch was sent less than `COALESCE_S` ago, send with the next batch instead."""
        if self._batch:
            self._batch.append(frames)
            # The timer cannot fire while the caller does not yield to the loop, so a full batch is sent here. Only a
            # send shows whether the pipe to the peer is full; if it is, `congested` becomes true, and the caller waits.
            if len(self._batch) >= COALESCED_MESSAGES:
                self._send_batch()
            return
        now = self._loop.time()
        if now - self._batch_sent_at >= COALESCE_S:
            self._batch_sent_at = now
            self.send(frames)
        else:
            self._batch.append(frames)
            self.call_at(self._batch_sent_at + COALESCE_S, self._send_batch)

    def call_at(self, due: float, function: Callable[[], None]) -> None:
        """Call a function at a time of the loop's clock, and measure how late the loop is."""
        self._loop.call_at(due, self._called, due, function)

    def _called(self, due: float, function: Callable[[], None]) -> None:
        before, self._late_at = self.late(), self._loop.time()
        self._late = before + (self._late_at - due - before) * LATENESS_SMOOTHING
        function()

    def late(self) -> float:
        """Recent lateness of the loop's timers in seconds, smoothed; 0.0 if no timer was due recently."""
        return self._late if self._loop.time() - self._late_at < LATENESS_MEMORY_S else 0.0

    def _send_batch(self) -> None:
        if self._batch and not self._closed:
            gathered, self._batch = self._batch, []
            self._batch_sent_at = self._loop.time()
            for frames in gathered:
                self._send(frames)
            self._schedule_if_readable()

    def _send(self, frames: Sequence[bytes]) -> None:
        if self._waiting:
            self._flush()
        if self._waiting or not self._try_send(frames):
            self._waiting.append(frames)
            self._room.clear()

    def congested(self) -> bool:
        """Whether messages wait here because the pipe to the peer is full: the peer is disconnected or slow."""
        return bool(self._waiting)

    async def room(self) -> None:
        """Wait until no message waits for the pipe to the peer."""
        await self._room.wait()

    def drain(self) -> None:
        """Receive all messages that have arrived, now."""
        try:
            while not self._closed:
                self._received(recv_message(self._recv))
        except zmq.Again:
            self._schedule_if_readable()

    def close(self) -> None:
        """Send the batch and close the socket.

        ZeroMQ still sends the messages in its pipe, within LINGER; messages that wait here are lost.
        """
        self._send_batch()
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._round)

    def _round(self) -> None:
        """Send the waiting messages, and receive messages for `RECEIVE_S` or up to `RECEIVE_BATCH` of them."""
        self._scheduled = False
        if self._closed:
            return
        end = time.monotonic() + RECEIVE_S  # not the clock of the loop: uvloop reads it only once in a turn
        try:
            self._flush()
            for _ in range(RECEIVE_BATCH):
                self._received(recv_message(self._recv))
                if self._closed:  # the callback may close this socket
                    return
                if time.monotonic() > end:
                    return
        except zmq.Again:
            pass
        finally:
            self._schedule_if_readable()

    def _flush(self) -> None:
        while self._waiting and self._try_send(self._waiting[0]):
            self._waiting.popleft()
        if not self._waiting:
            self._room.set()

    def _try_send(self, frames: Sequence[bytes]) -> bool:
        try:
            send_message(self._send_frame, frames)
        except zmq.Again:
            return False
        return True

    def _schedule_if_readable(self) -> None:
        if not self._scheduled and not self._closed and int(self._socket.getsockopt(EVENTS)) & POLLIN:
            self._schedule()
