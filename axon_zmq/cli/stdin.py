"""Standard input as lines, read without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from axon_zmq.protocol import limits

LONGEST_LINE_BYTES: Final = limits.BrokerLimits().max_body
"""Bytes of the longest accepted line of standard input; a longer answer could not be sent."""


class Lines:
    """Standard input, line by line, without blocking the loop and without a thread that outlives it."""

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._ended = fd == 0 and sys.stdin is None  # closed: the number may be another file's by now
        self._turn = asyncio.Lock()

    async def next(self) -> str | None:
        """The next line without its end; None when there is no more.

        Raises:
            ValueError: It is too long; nothing is read after it.
        """
        async with self._turn:
            end = await self._end_of_line()
        if end > LONGEST_LINE_BYTES:
            self._buffer.clear()
            self._ended = True
            raise ValueError(f"a line of standard input has over {LONGEST_LINE_BYTES} bytes")
        if not self._buffer:
            return None
        line = self._buffer[:end].decode(errors="replace").removesuffix("\r")
        del self._buffer[: end + 1]
        return line

    async def _end_of_line(self) -> int:
        """Read until the buffer holds a whole line, or more bytes than a line may have; the index of its end."""
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            if self._ended or seen > LONGEST_LINE_BYTES:
                return seen
            await self._readable()
            self._read()
        return end

    def _read(self) -> None:
        try:
            piece = os.read(self._fd, 65_536)
        except OSError:  # a terminal that was closed
            piece = b""
        self._ended = not piece
        self._buffer += piece

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except OSError:  # a file: epoll does not take it, and it never blocks
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)
