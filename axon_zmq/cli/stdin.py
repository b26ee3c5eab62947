"""Standard input, read line by line without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from axon_zmq.protocol import limits

LONGEST_LINE_BYTES: Final = limits.BrokerLimits().max_body
"""Longest accepted line of standard input, in bytes: the broker refuses a longer answer."""


class Lines:
    """Lines of standard input.

    The event loop watches the file descriptor. A thread that reads would block in `read` after the command has ended.

    Args:
        fd: The file descriptor to read from.
    """

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._buffer = bytearray()
        # Python sets sys.stdin to None if descriptor 0 was closed at start; the number may then belong to another file.
        self._ended = fd == 0 and sys.stdin is None
        self._turn = asyncio.Lock()

    async def next(self) -> str | None:
        """Return the next line without its line end; None at the end of input.

        Raises:
            ValueError: The line is longer than `LONGEST_LINE_BYTES`; nothing is read after it.
        """
        async with self._turn:
            end = await self._end_of_line()
        if end > LONGEST_LINE_BYTES:
            self._buffer.clear()
            self._ended = True
            raise ValueError(f"a line of standard input is longer than {LONGEST_LINE_BYTES} bytes")
        if not self._buffer:
            return None
        line = self._buffer[:end].decode(errors="replace").removesuffix("\r")
        del self._buffer[: end + 1]
        return line

    async def _end_of_line(self) -> int:
        """Read until the buffer holds a whole line or exceeds the longest line; return the index of the line end."""
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
        except OSError:  # Linux reports EIO for a terminal that was closed
            piece = b""
        self._ended = not piece
        self._buffer += piece

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except OSError:  # epoll refuses regular files, and reading from them never blocks
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)
