"""A ZeroMQ socket on an event loop: messages that may wait are sent together, and the order is kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
import zmq

from axon_zmq.net.loop_socket import COALESCE_S, COALESCED_MESSAGES, LATENESS_MEMORY_S, LoopSocket


@pytest.fixture
def pair() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context = zmq.Context()
    ours, theirs = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    for socket in (ours, theirs):
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
    theirs.bind("inproc://theirs")
    ours.connect("inproc://theirs")
    yield ours, theirs
    context.destroy(linger=0)


def came(socket: zmq.Socket[bytes], count: int) -> list[bytes]:
    """Receive exactly this many messages."""
    messages = [socket.recv_multipart()[0] for _ in range(count)]
    assert not socket.poll(0)
    return messages


def test_messages_sent_now_and_soon_keep_their_order(pair):
    ours, theirs = pair
    dice = random.Random(1)

    async def send() -> None:
        socket = LoopSocket(ours, lambda frames: None)
        for number in range(2000):
            (socket.send if dice.random() < 0.1 else socket.send_soon)((b"%d" % number, b"more"))
            if dice.random() < 0.05:
                await asyncio.sleep(0)
        socket.close()

    asyncio.run(send())
    assert came(theirs, 2000) == [b"%d" % number for number in range(2000)]


def test_the_first_message_is_sent_at_once_and_others_together_soon_after(pair):
    ours, theirs = pair

    async def send() -> None:
        socket = LoopSocket(ours, lambda frames: None)
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(5):
            socket.send_soon((b"%d" % number,))
        assert came(theirs, 1) == [b"0"]
        while not theirs.poll(0):  # noqa: ASYNC110 -- a socket cannot set an event here
            await asyncio.sleep(0)
        assert loop.time() - start >= COALESCE_S / 2
        assert came(theirs, 4) == [b"1", b"2", b"3", b"4"]
        socket.close()

    asyncio.run(send())


def test_a_sender_that_never_yields_is_told_that_the_peer_is_slow():
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.SNDHWM, 5)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.connect("tcp://127.0.0.1:9")  # nothing listens there

    async def send() -> None:
        socket = LoopSocket(dealer, lambda frames: None)
        sent = 0
        while not socket.congested():
            socket.send_soon((b"x",))
            sent += 1
            assert sent <= 2 * COALESCED_MESSAGES
        socket.close()

    asyncio.run(send())
    context.destroy(linger=0)


def test_a_loop_that_is_late_repeatedly_is_noticed_and_then_forgotten(pair):
    ours, _ = pair

    async def be_late() -> None:
        socket = LoopSocket(ours, lambda frames: None)
        loop = asyncio.get_running_loop()
        assert socket.late() == 0.0
        lateness = []
        for _ in range(12):
            called = asyncio.Event()
            socket.call_at(loop.time() - 0.05, called.set)
            await called.wait()
            lateness.append(socket.late())
        assert lateness[0] < 0.03 < lateness[-1]
        assert lateness == sorted(lateness)
        await asyncio.sleep(2 * LATENESS_MEMORY_S)
        assert socket.late() == 0.0
        socket.close()

    asyncio.run(be_late())
