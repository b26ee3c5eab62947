"""Standard input, read line by line without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from axon_zmq.errors import ConfigurationError
from axon_zmq.protocol import limits

LONGEST_LINE_BYTES: Final = limits.BrokerLimits().max_body
"""Longest accepted line of standard input, in bytes: the broker refuses a longer answer."""


def read_all(what: str) -> str:
    """Return all of standard input.

    Args:
        what: Name of the text in error messages, such as `the prompt`.

    Raises:
        ConfigurationError: Standard input is closed, cannot be read, or is not valid UTF-8.
    """
    if sys.stdin is None:  # Python sets it to None if descriptor 0 was closed at start
        raise ConfigurationError(f"cannot read {what}: standard input is closed; redirect it, or use an argument")
    try:
        return sys.stdin.buffer.read().decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as fault:
        reason = f"{fault.reason} in byte {fault.start}"
        raise ConfigurationError(f"{what} from standard input is not valid UTF-8: {reason}") from None
    except OSError as fault:
        reason = fault.strerror or str(fault)
        raise ConfigurationError(f"cannot read {what} from standard input: {reason}") from None


class InvalidUTF8Error(ValueError):
    """A line of standard input is not valid UTF-8; the lines after it can still be read."""


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
            InvalidUTF8Error: The line is not valid UTF-8; the next call returns the line after it.
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
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return line.decode().removesuffix("\r")
        except UnicodeDecodeError as fault:
            raise InvalidUTF8Error(
                f"invalid line of standard input: not valid UTF-8: {fault.reason} in byte {fault.start}"
            ) from None

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
