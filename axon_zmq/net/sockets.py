"""pyzmq's `send` and `recv` as the paths need them that every message takes.

`zmq.Socket` puts Python around each call, its flags are enums, of which or-ing two costs more than sending a frame,
and `getsockopt(RCVMORE)` costs more than receiving one. So these are the calls below it, with numbers for flags, and
whether more follows is asked of the frame (microseconds, pyzmq 27.3: a frame sent 0.23 for 0.48, two flags or-ed
0.6, four frames received 2.9 for 5.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import zmq

NOBLOCK: Final = int(zmq.NOBLOCK)
MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
EVENTS: Final = int(zmq.EVENTS)
POLLIN: Final = int(zmq.POLLIN)

Send = Callable[..., Any]
"""`data, flags`; raises `zmq.Again` if there is no room."""
Recv = Callable[..., Any]
"""`flags`; a frame's bytes, or a `zmq.Frame` with `copy=False`. Raises `zmq.Again` if no message has arrived."""


def sender(socket: zmq.Socket[bytes]) -> Send:
    """Its `send`."""
    return super(zmq.Socket, socket).send


def receiver(socket: zmq.Socket[bytes]) -> Recv:
    """Its `recv`."""
    return super(zmq.Socket, socket).recv


def send_message(send: Send, frames: Sequence[bytes]) -> None:
    """Send a message without waiting.

    Raises:
        zmq.Again: There is no room; nothing of it went, since of a message only the first frame is ever refused.
        zmq.ZMQError: Of a ROUTER with `ROUTER_MANDATORY`: there is no such peer.
    """
    for frame in frames[:-1]:
        send(frame, MORE)
    send(frames[-1], NOBLOCK)


def send_large_message(send: Send, frames: Sequence[bytes], large: int) -> None:
    """As `send_message`; frames of so many bytes or more are not copied, but held until ZeroMQ has let go of them.

    Raises:
        zmq.Again: As `send_message`.
        zmq.ZMQError: As `send_message`.
    """
    for frame in frames[:-1]:
        send(frame, MORE, copy=len(frame) < large)
    send(frames[-1], NOBLOCK, copy=len(frames[-1]) < large)


def recv_message(recv: Recv, most: int | None = None, large: int | None = None) -> list[bytes]:
    """Receive a message without waiting; of its frames the first `most`, where it has more.

    Args:
        recv: The socket's.
        most: Frames.
        large: Bytes from which a body is taken without a copy.

    Raises:
        zmq.Again: Nothing has come.
    """
    frame = recv(NOBLOCK, copy=False)
    frames: list[bytes] = [frame.bytes]
    while frame.more:
        frame = recv(NOBLOCK, copy=False)
        if most is None or len(frames) < most:
            frames.append(frame.bytes if large is None or len(frames) < _FIRST_BODY else frame_data(frame, large))
    return frames


_FIRST_BODY: Final = 4
"""Frames before it: identity, kind, id and header. Behind a delimiter it is the header, which may not be that large."""


def frame_data(frame: zmq.Frame, large: int) -> bytes:
    """What a frame holds; where that is so many bytes or more, a view of ZeroMQ's own memory.

    To copy 10 MB takes 1 to 2 ms. A view is no `bytes`, but with a body that is only passed on nothing is done that
    it cannot: `len`, a digest, `frames.single_frame`, `send` with `copy=False`.
    """
    return frame.bytes if len(frame) < large else cast("bytes", frame.buffer.toreadonly())
