"""The worker's DEALER connection to the broker.

The socket's monitor reports each handshake with a broker, so that the worker registers again after the broker has
restarted. libzmq reconnects by itself and says nothing about it on the socket.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq
from zmq.utils.monitor import parse_monitor_message

from axon_zmq.net.loop_socket import LoopSocket
from axon_zmq.protocol.backend import Message
from axon_zmq.protocol.kinds import CONTROL


class Link:
    """The connection to the broker; all calls must be made on the thread of the event loop.

    Args:
        endpoint: The broker's backend.
        routing_id: The routing id of this process, which no other process has ever used.
        received: Called with the frames of each message.
        connected: Called after each handshake with a broker, which may be a new one.
        disconnected: Called when the connection is lost.
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
        # Short and bounded: a restarted broker waits at most 2 s for the workers of its predecessor to register.
        dealer.setsockopt(zmq.RECONNECT_IVL, 50)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        dealer.setsockopt(zmq.LINGER, 1000)  # libzmq's default is to wait for ever if no broker is there
        monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._dealer = dealer
        self._handlers: dict[int, Callable[[], None]] = {
            zmq.EVENT_HANDSHAKE_SUCCEEDED: self._connected,
            zmq.EVENT_DISCONNECTED: disconnected,
        }
        self._on_connected = connected
        self._monitor = LoopSocket(monitor, lambda frames: self._handlers[parse_monitor_message(frames)["event"]]())
        self._socket = LoopSocket(dealer, received)
        self.congested = self._socket.congested
        """Whether messages wait in this process, because the broker is down or slower than the runs."""
        self.room = self._socket.room
        """Waits until no message waits in this process."""
        self.late = self._socket.late
        """Recent lateness of the event loop in seconds."""
        self.call_at = self._socket.call_at
        """Calls a function at a time of the event loop's clock."""
        dealer.connect(endpoint)

    def _connected(self) -> None:
        # First receive everything that the previous broker had sent, because it may contain runs. `ready` must list
        # these runs: otherwise the new broker would neither adopt them nor count them against the worker's concurrency.
        self._socket.drain()
        self._on_connected()

    def send(self, *frames: bytes) -> None:
        """Send a message now, or as soon as the pipe to the broker has room; messages stay in order."""
        self._socket.send(frames)

    def send_soon(self, *frames: bytes) -> None:
        """Send a message within a millisecond, together with others; it stays in order with messages of `send`."""
        self._socket.send_soon(frames)

    def control(self, message: Message) -> None:
        """Send a control message to the broker."""
        self._socket.send((CONTROL, message.kind, message.pack()))

    def close(self) -> None:
        """Close the connection; messages that libzmq has not sent yet get one second (`LINGER`)."""
        self._dealer.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()
