"""Low-overhead send and receive functions for the data path, bypassing pyzmq's Python wrappers.

`zmq.Socket` wraps each call in Python. Its flags are enums, and combining two of them with `|` costs more than sending
a frame; `getsockopt(RCVMORE)` costs more than receiving one. This module therefore calls the Cython base class
directly, uses integers as flags, and reads `more` from the received frame. Measured with pyzmq 27.3: sending a frame
takes 0.23 µs instead of 0.48, combining two flags 0.6 µs, receiving four frames 2.9 µs instead of 5.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, cast

import zmq

NOBLOCK: Final = int(zmq.NOBLOCK)
MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
EVENTS: Final = int(zmq.EVENTS)
POLLIN: Final = int(zmq.POLLIN)
_SOURCE: Final = int(zmq.SRCFD)

Send = Callable[..., Any]
"""Takes `data, flags`. Raises `zmq.Again` if the pipe to the peer is full."""
Recv = Callable[..., Any]
"""Takes `flags`; returns a frame's bytes, or a `zmq.Frame` with `copy=False`. Raises `zmq.Again` if no message has
arrived."""
_FIRST_BODY: Final = 4
"""Index of the first frame that can be a body: routing id, kind, id and header precede it. In a REQ socket's message,
whose delimiter shifts the frames by one, this is the header: a valid header is too small to be received without a copy,
and a larger one is refused because of its length."""


def sender(socket: zmq.Socket[bytes]) -> Send:
    """The `send` method of a socket, without pyzmq's Python wrapper."""
    # `super(zmq.Socket, …)` is the Cython class below the wrapper, whose methods have the same signatures.
    return super(zmq.Socket, socket).send


def receiver(socket: zmq.Socket[bytes]) -> Recv:
    """The `recv` method of a socket, without pyzmq's Python wrapper."""
    return super(zmq.Socket, socket).recv


def send_message(send: Send, frames: Sequence[bytes]) -> None:
    """Send a message without waiting.

    Raises:
        zmq.Again: The pipe to the peer is full; nothing was sent.
        zmq.ZMQError: The socket is a ROUTER with `ROUTER_MANDATORY`, and no peer has this routing id.
    """
    # libzmq refuses a message only at its first frame, so a message is never sent in part.
    for frame in frames[:-1]:
        send(frame, MORE)
    send(frames[-1], NOBLOCK)


def send_large_message(send: Send, frames: Sequence[bytes], large: int) -> None:
    """Send a message without waiting and without copying its large frames.

    ZeroMQ keeps a reference to each frame of `large` bytes or more until it has sent it.

    Raises:
        zmq.Again: The pipe to the peer is full; nothing was sent.
        zmq.ZMQError: The socket is a ROUTER with `ROUTER_MANDATORY`, and no peer has this routing id.
    """
    for frame in frames[:-1]:
        send(frame, MORE, copy=len(frame) < large)
    send(frames[-1], NOBLOCK, copy=len(frames[-1]) < large)


def recv_message(recv: Recv) -> list[bytes]:
    """Receive a message without waiting; `recv` is that of `receiver`.

    Raises:
        zmq.Again: No message has arrived.
    """
    frame = recv(NOBLOCK, copy=False)
    frames: list[bytes] = [frame.bytes]
    # A message must be read to its last frame, or the next `recv` would return the rest of it.
    while frame.more:
        frame = recv(NOBLOCK, copy=False)
        frames.append(frame.bytes)
    return frames


class Delivered(NamedTuple):
    """A message that a ROUTER has received from a peer."""

    fd: int
    """Descriptor of the peer's connection; -1 if there is none, as for `inproc` endpoints."""
    size: int
    """Bytes on the wire of all frames behind the routing id, including those that were dropped."""
    frames: list[bytes]
    """Routing id, then the other frames."""


def recv_from_peer(recv: Recv, max_frames: int, large: int, *, has_source: bool = True) -> Delivered:
    """Receive a message from a ROUTER without waiting, with the connection from which it came.

    Args:
        recv: The socket's `recv`, from `receiver`.
        max_frames: How many frames to return; further frames are read and dropped.
        large: Size in bytes from which a body is received without a copy, see `frame_data`.
        has_source: Whether peers have connections; False for an `inproc` endpoint.

    Raises:
        zmq.Again: No message has arrived.
    """
    frame = recv(NOBLOCK, copy=False)
    frames: list[bytes] = [frame.bytes]
    try:
        fd = frame.get(_SOURCE) if has_source else -1  # 0.4 µs; the exception costs much more
    except zmq.ZMQError:
        fd = -1
    size = 0
    # A message must be read to its last frame, or the next `recv` would return the rest of it.
    while frame.more:
        frame = recv(NOBLOCK, copy=False)
        length = len(frame)
        size += length + (2 if length < 256 else 9)  # flags and length
        if len(frames) < max_frames:
            frames.append(frame.bytes if len(frames) < _FIRST_BODY else frame_data(frame, large))
    return Delivered(fd, size, frames)


def frame_data(frame: zmq.Frame, large: int) -> bytes:
    """The content of a frame: a read-only view of ZeroMQ's memory if it has `large` bytes or more, otherwise a copy.

    Copying 10 MB takes 1 to 2 ms. A memoryview is not `bytes`, but it supports everything that is done with a body that
    is only relayed: `len`, a digest, `frames.single_frame`, and `send` with `copy=False`.
    """
    return frame.bytes if len(frame) < large else cast("bytes", frame.buffer.toreadonly())
