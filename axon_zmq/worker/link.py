"""The worker's DEALER to the broker: `ready`, `progress`, `leaving`, and what runs send.

A broker that restarts is noticed by the socket's monitor: the worker registers again with what it holds.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq
from zmq.utils.monitor import parse_monitor_message

from axon_zmq.net.loop_socket import LoopSocket
from axon_zmq.protocol.backend import Message
from axon_zmq.protocol.kinds import CONTROL


class Link:
    """One connection to the broker; made and used on the loop's own thread.

    Args:
        endpoint: The broker's backend.
        routing_id: This process's own, never used before.
        received: Takes each message's frames.
        connected: Called whenever a broker is there that may not know this worker.
        disconnected: Called when the broker is away.
    """

    def __init__(
        self,
        endpoint: str,
        routing_id: bytes,
        *,
        received: Callable[[list[bytes]], None],
        connected: Callable[[], None],
        disconnected: Callable[[], None],
    ) -> None:
        self._context = zmq.Context()
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, routing_id)
        dealer.setsockopt(zmq.RECONNECT_IVL, 50)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        dealer.setsockopt(zmq.LINGER, 1000)
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._dealer = dealer
        self._news: dict[int, Callable[[], None]] = {
            zmq.EVENT_HANDSHAKE_SUCCEEDED: self._connected,
            zmq.EVENT_DISCONNECTED: disconnected,
        }
        self._tell_connected = connected
        self._monitor = LoopSocket(monitor, lambda frames: self._news[parse_monitor_message(frames)["event"]]())
        self._socket = LoopSocket(dealer, received)
        self.congested = self._socket.congested
        """Whether messages wait here, because the broker is away or slower than the runs."""
        self.room = self._socket.room
        """Waits until no message waits here."""
        self.late = self._socket.late
        """Seconds that the loop was late a moment ago."""
        self.call_at = self._socket.call_at
        """Calls a function at a time of the loop's."""
        dealer.connect(endpoint)

    def _connected(self) -> None:
        self._socket.drain()  # runs that an earlier broker had sent are held, too, when this one is told what is
        self._tell_connected()

    def send(self, *frames: bytes) -> None:
        """Send now, or as soon as the broker takes it; in order."""
        self._socket.send(frames)

    def send_soon(self, *frames: bytes) -> None:
        """Send within a millisecond, with others that come meanwhile; in order with all that is sent."""
        self._socket.send_soon(frames)

    def control(self, message: Message) -> None:
        """Send a control message to the broker."""
        self._socket.send((CONTROL, message.kind, message.pack()))

    def close(self) -> None:
        """Close, giving what was sent a second to leave."""
        self._dealer.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()
