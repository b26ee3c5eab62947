"""Large bodies at a real broker: order is kept, and other clients are answered meanwhile."""

from __future__ import annotations

import time

import zmq

from axon_zmq.broker.core.broker import Broker
from axon_zmq.broker.hashing import SLICE_BYTES
from axon_zmq.broker.journal import Journal
from axon_zmq.broker.server import LARGE_MESSAGE
from axon_zmq.net.sockets import receiver, recv_from_peer
from axon_zmq.protocol import limits
from axon_zmq.protocol.kinds import TERMINAL_KINDS
from axon_zmq.protocol.msgpack import pack
from tests.support.daemon import Dealer, running, wait_until
from tests.support.stepped_server import SteppedServer


def test_only_large_bodies_are_received_without_a_copy():
    large = b"x" * LARGE_MESSAGE
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://one")
        other.connect("inproc://one")
        for frames in ([large] * 4, [b"a", b"run", b"1", b"", large[1:]], [b"a", b"run", b"1", b"", large]):
            other.send_multipart(frames)
            taken = recv_from_peer(receiver(one), len(frames), LARGE_MESSAGE, has_source=False).frames
            assert taken == frames
            views = [isinstance(frame, memoryview) for frame in taken]
            assert views == [False] * (len(frames) - 1) + [len(frames) == 5 and frames[4] == large]
    assert limits.MAX_HEADER < LARGE_MESSAGE  # so a header in a memoryview is rejected before it is unpacked


def test_a_stopped_broker_answers_requests_whose_bodies_wait_for_their_digest(tmp_path):
    core = Broker(boot="boot", bounds=limits.BrokerLimits(), version="0", expected_workers=0, now=time.monotonic())
    frontend, backend = (f"ipc://{tmp_path / name}" for name in ("front", "back"))
    journal = Journal(tmp_path / "journal", (), time.monotonic())
    server = SteppedServer(core=core, journal=journal, frontend=frontend, backend=backend)
    with Dealer(frontend) as dealer:
        for number in range(5):
            dealer.send(b"run", b"%d" % number, None, b"x" * 8 * SLICE_BYTES)
        wait_until(lambda: server.read_clients() or server.hasher.size > 5 * 8 * SLICE_BYTES, "all of them")
        server.stop()
        wait_until(lambda: server.turn() or core.stopped, "its end")
        server.close()
        answers = [dealer.recv() for _ in range(5)]
    assert [(kind, id, body["error_type"]) for kind, id, body in answers] == [
        (b"error", b"%d" % number, "shutting_down") for number in range(5)
    ]


def test_messages_behind_a_large_request_keep_their_order_and_other_clients_are_answered_first():
    large = pack({"agent": "echo", "prompt": "x" * 12_000_000})
    with running("run") as own, Dealer(own.endpoint) as one, Dealer(own.endpoint) as other:
        one.ask(b"ping", b"p")
        other.ask(b"ping", b"p")
        for number in range(5):
            one.send(b"run", b"large%d" % number, {"ack": True}, large)
            one.send(b"run", b"large%d" % number, None, large)
            one.send(b"cancel", b"large%d" % number)
            one.send(b"run", b"small%d" % number, {"ack": True}, {"agent": "echo", "prompt": "y"})
            assert other.ask(b"run", b"%d" % number, None, {"agent": "echo", "prompt": "z"})[1]["result"] == "z"
        seen: dict[bytes, list[bytes]] = {}
        ended = 0
        while ended < 10:
            kind, id, body = one.recv()
            seen.setdefault(id, []).append(kind)
            ended += kind in TERMINAL_KINDS
            if kind == b"accepted" and id.startswith(b"large"):
                assert body["duplicate"] == (seen[id].count(b"accepted") == 2)
        for number in range(5):
            assert seen[b"large%d" % number].count(b"accepted") == 2
            assert seen[b"small%d" % number] == [b"accepted", b"complete"]
