"""The benchmark's drivers."""

from __future__ import annotations

import socket

import pytest

from bench.peers.sockets import Line, Nats, Posts, WebSockets


@pytest.mark.parametrize(
    ("crowd", "stream", "texts"),
    [
        (WebSockets, b"\x81\x7e\x00\xc8" + b"x" * 200 + b"\x81\x01y\x81\x00", ["x" * 200, "y", ""]),
        (Nats, b"MSG _INBOX.a.0 1 3\r\nx\r\n\r\nMSG _INBOX.a.0 1 0\r\n\r\n+OK\r\n", ["x\r\n", ""]),
        (Posts, b'HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 12\r\n\r\n{"text":"x"}', ["x"]),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_drivers_read_messages_however_the_bytes_are_split(crowd, stream, texts, size):
    here, there = socket.socketpair()
    with here, there:
        line = Line(here, number=0)
        came = []
        for at in range(0, len(stream), size):
            there.sendall(stream[at : at + size])
            line.read()
            came += crowd.taken(crowd, line)
    assert came == [(0, text) for text in texts]
