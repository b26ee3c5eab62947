"""The worker's DEALER to the broker: `ready`, `progress`, `leaving`, and what runs send.

A broker that restarts is noticed by the socket's monitor: the worker registers again with what it holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from axon_zmq import wire
from axon_zmq.broker.events import CONTROL

log = logging.getLogger(__name__)

BATCH = 256
"""Messages taken before the loop's other tasks have their turn."""


class Link:
    """One connection to the broker; all calls from the loop's own thread.

    Args:
        endpoint: The broker's backend.
        identity: This process's own, never used before.
        received: Takes each message's frames.
        connected: Called whenever a broker is there that may not know this worker.
    """

    def __init__(
        self,
        endpoint: str,
        identity: bytes,
        received: Callable[[list[bytes]], None],
        connected: Callable[[], None],
    ) -> None:
        self._context = zmq.asyncio.Context()
        self._polled = self._context.socket(zmq.DEALER)
        self._polled.setsockopt(zmq.IDENTITY, identity)
        self._polled.setsockopt(zmq.RECONNECT_IVL, 50)
        self._polled.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._polled.setsockopt(zmq.LINGER, 1000)
        # Awaited for readiness only: messages are taken and sent without waiting, on the same socket.
        self._socket: zmq.Socket[bytes] = zmq.Socket.shadow(self._polled.underlying)
        self._monitor = self._polled.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._received = received
        self._connected = connected
        self._waiting: deque[tuple[bytes, ...]] = deque()
        self._room = asyncio.Event()
        self._room.set()
        self._flusher: asyncio.Task[None] | None = None
        self._polled.connect(endpoint)

    async def serve(self) -> None:
        """Receive until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive())
            tasks.create_task(self._watch())

    async def _receive(self) -> None:
        recv_multipart = self._socket.recv_multipart
        while True:
            await self._polled.poll(zmq.POLLIN)
            try:
                for _ in range(BATCH):
                    self._received(recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                continue
            await asyncio.sleep(0)

    async def _watch(self) -> None:
        while True:
            parse_monitor_message(await self._monitor.recv_multipart())
            self._connected()

    def send(self, *frames: bytes) -> None:
        """Send now, or as soon as the broker takes it; in order."""
        if self._waiting or not self._try(frames):
            self._waiting.append(frames)
            self._room.clear()
            if self._flusher is None or self._flusher.done():
                self._flusher = asyncio.get_running_loop().create_task(self._flush())

    def control(self, kind: bytes, body: dict[str, Any]) -> None:
        """Send a message to the broker itself."""
        self.send(CONTROL, kind, wire.pack(body))

    def congested(self) -> bool:
        """Whether messages wait here, because the broker is away or slower than the runs."""
        return bool(self._waiting)

    async def room(self) -> None:
        """Wait until no message waits here."""
        await self._room.wait()

    def _try(self, frames: Sequence[bytes]) -> bool:
        send = self._socket.send
        last = len(frames) - 1
        try:
            for index, frame in enumerate(frames):
                send(frame, zmq.NOBLOCK | (zmq.SNDMORE if index < last else 0))
        except zmq.Again:
            return False  # of a multipart message only the first frame is ever refused
        return True

    async def _flush(self) -> None:
        while self._waiting:
            await self._polled.poll(zmq.POLLOUT)
            while self._waiting and self._try(self._waiting[0]):
                self._waiting.popleft()
        self._room.set()

    def close(self) -> None:
        """Close, giving what was sent a second to leave."""
        self._polled.disable_monitor()
        self._monitor.close()
        self._polled.close()
        self._context.term()
