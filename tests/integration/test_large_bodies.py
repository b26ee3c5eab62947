"""Large bodies at a real broker: order is kept, and other clients are answered meanwhile."""

from __future__ import annotations

import time

import zmq

from axon_zmq.broker.core.broker import Broker
from axon_zmq.broker.hashing import SLICE
from axon_zmq.broker.journal import Journal
from axon_zmq.broker.server import LARGE_MESSAGE, Server
from axon_zmq.net.sockets import receiver, recv_message
from axon_zmq.protocol import limits
from tests.support.daemon import Dealer, wait_until

MAX_BODY = 2**24


def test_large_bodies_are_received_without_a_copy_and_nothing_else_is():
    large = b"x" * LARGE_MESSAGE
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://one")
        other.connect("inproc://one")
        for frames in ([large] * 4, [b"a", b"run", b"1", b"", large[1:]], [b"a", b"run", b"1", b"", large]):
            other.send_multipart(frames)
            taken = recv_message(receiver(one), large=LARGE_MESSAGE)
            assert taken == frames
            views = [isinstance(frame, memoryview) for frame in taken]
            assert views == [False] * (len(frames) - 1) + [len(frames) == 5 and frames[4] == large]
    assert limits.MAX_HEADER < LARGE_MESSAGE  # so a header that is a view is refused before it is read


def test_a_broker_that_is_stopped_answers_what_waits_to_be_digested(tmp_path):
    core = Broker(boot="boot", bounds=limits.BrokerLimits(), version="0", expected_workers=0, now=time.monotonic())
    frontend, backend = (f"ipc://{tmp_path / name}" for name in ("front", "back"))
    journal = Journal(tmp_path / "journal", (), time.monotonic())
    loop = Server(core=core, journal=journal, frontend=frontend, backend=backend, max_body=MAX_BODY)
    with Dealer(frontend) as dealer:
        for number in range(5):
            dealer.send(b"run", b"%d" % number, None, b"x" * 8 * SLICE)
        wait_until(lambda: loop._drain_frontend() or loop._hasher._bytes > 5 * 8 * SLICE, "all of them")
        loop._asked_to_stop = True
        wait_until(lambda: loop._turn({loop._front}) or core.stopped, "its end")
        loop._close()
        answers = [dealer.recv() for _ in range(5)]
    assert [(kind, id, body["error_type"]) for kind, id, body in answers] == [
        (b"error", b"%d" % number, "shutting_down") for number in range(5)
    ]
