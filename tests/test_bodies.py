"""Large bodies are read through bit by bit: nobody waits for that but who sent one, whose order is kept."""

from __future__ import annotations

import time

import zmq
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.broker.core.broker import Broker
from axon_zmq.broker.core.events import FromClient
from axon_zmq.broker.hashing import MAX_WAITING_BYTES, SLICE_BYTES, BodyHasher, size
from axon_zmq.broker.journal import Journal
from axon_zmq.broker.server import LARGE_MESSAGE, Server
from axon_zmq.net.sockets import receiver, recv_message
from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import body_digest
from axon_zmq.protocol.kinds import TERMINAL_KINDS
from axon_zmq.protocol.msgpack import pack
from tests.broker_helpers import Bench
from tests.conftest import Dealer, running, wait_until

MAX_BODY = 2**24


def message(
    client: bytes, id: bytes, size: int, kind: bytes = b"run", delimiter: bool = False, arrived: float = 0.0
) -> FromClient:
    return FromClient(client, [*([b""] if delimiter else []), kind, id, b"", id * (size // len(id))], arrived)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"a", b"b", b"c"]),
            st.sampled_from([1, SLICE_BYTES, SLICE_BYTES + 1, 2 * SLICE_BYTES, 5 * SLICE_BYTES + 7, MAX_BODY + 1]),
            st.sampled_from([b"run", b"run_stream", b"describe", b"cancel", b"tool_result", b"nonsense"]),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_each_clients_order_is_kept_and_each_digest_is_right(sent, steps_between, most):
    bodies, judged = BodyHasher(MAX_BODY), []
    messages = [
        message(client, bytes([number + 1]), size, kind, delimiter)
        for number, (client, size, kind, delimiter) in enumerate(sent)
    ]
    for each in messages:
        if not bodies.defer(each):
            judged.append(each)
        for _ in range(steps_between):
            judged += bodies.step(most)
    while bodies.waiting:
        judged += bodies.step(most)
    for client in (b"a", b"b", b"c"):
        of_client = [each.frames for each in judged if each.client == client]
        assert of_client == [each.frames for each in messages if each.client == client]
    for each in judged:
        assert each.digest in (b"", body_digest(each.frames[-1]))
        kind, _, _, body = each.frames[-4:]
        is_request = kind in (b"run", b"run_stream", b"describe")
        assert bool(each.digest) == (is_request and SLICE_BYTES < len(body) <= MAX_BODY)
    assert repr(bodies) == "<BodyHasher of 0 clients, 0 bytes>"


def test_a_turn_reads_one_slice_and_others_are_judged_meanwhile():
    bodies = BodyHasher(MAX_BODY)
    large, small = message(b"a", b"1", 4 * SLICE_BYTES, arrived=7.0), message(b"a", b"2", 1, arrived=8.0)
    other = message(b"b", b"3", 1)
    assert bodies.defer(large)
    assert bodies.defer(small)
    assert not bodies.defer(other)
    assert [list(bodies.step(9)) for _ in range(3)] == [[], [], []]
    assert [(each.frames, each.arrived) for each in bodies.step(9)] == [(large.frames, 7.0), (small.frames, 8.0)]
    assert not bodies.defer(small)


def test_clients_with_large_bodies_take_turns():
    bodies, judged = BodyHasher(MAX_BODY), []
    for client, ids in ((b"a", b"123"), (b"b", b"4"), (b"c", b"5")):
        for id in ids:
            bodies.defer(message(client, bytes([id]), 2 * SLICE_BYTES))
    while bodies.waiting:
        judged += [each.frames[1] for each in bodies.step(9)]
    assert judged == [b"1", b"4", b"5", b"2", b"3"]


def test_small_messages_do_not_wait_for_others_large_ones_again_and_again():
    """One client has large bodies all the time, another sent one, and then says small things all the time."""
    bodies, sent, heard = BodyHasher(MAX_BODY), dict[bytes, int](), list[int]()
    bodies.defer(message(b"a", b"0", 2 * SLICE_BYTES))
    for turn in range(2000):
        if len(bodies._clients.get(b"b", ())) < 2:
            bodies.defer(message(b"b", b"large", 40 * SLICE_BYTES))
        if turn % 10 == 0:
            id = b"%d" % turn
            if bodies.defer(message(b"a", id, 1, b"cancel")):
                sent[id] = turn
        heard += [turn - sent[each.frames[1]] for each in bodies.step(9) if each.frames[1] in sent]
    assert not bodies._clients.get(b"a")
    assert max(heard, default=0) <= 40


def test_where_much_waits_no_more_is_received():
    bodies, count = BodyHasher(MAX_BODY), 0
    while not bodies.full:
        bodies.defer(message(b"a", b"1", MAX_BODY))
        count += 1
    assert count == MAX_WAITING_BYTES // MAX_BODY
    while bodies.full:
        list(bodies.step(9))
    kept = 0
    while not bodies.full:  # behind the others, and not without end: what is no body is counted, too
        assert bodies.defer(FromClient(b"a", [b"run", b"2", b"h" * limits.MIB, b""], 0.0))
        kept += 1
    assert kept == MAX_BODY // limits.MIB


def test_small_messages_behind_a_large_one_are_not_all_judged_in_one_turn():
    bodies = BodyHasher(MAX_BODY)
    bodies.defer(message(b"a", b"1", 2 * SLICE_BYTES))
    for _ in range(20):
        bodies.defer(message(b"a", b"2", 1))
    assert [len(list(bodies.step(8))) for _ in range(5)] == [0, 8, 8, 5, 0]


def test_who_sends_small_messages_without_end_does_not_keep_its_turn():
    bodies, judged = BodyHasher(MAX_BODY), list[bytes]()
    bodies.defer(message(b"a", b"0", 2 * SLICE_BYTES))
    bodies.defer(message(b"b", b"large", 2 * SLICE_BYTES))
    for _ in range(20):
        for _ in range(9):
            assert bodies.defer(message(b"a", b"x", 1))
        judged += [each.frames[1] for each in bodies.step(8)]
    assert b"large" in judged[:30]


def test_a_message_takes_what_all_its_frames_take():
    assert size(message(b"a", b"2", 1)) == limits.KIB + 5


def test_time_that_a_large_body_waits_counts_as_the_requests_own():
    bench = Bench()
    bench.add_worker(b"w")
    frames = [b"run", b"1", pack({"timeout_ms": 5000}), b"body"]
    bench.feed(FromClient(b"a", frames, bench.now - 4.0, b"digest"))
    [(_, _, lease)] = bench.dispatched
    assert lease == {"deadline": bench.now + 1.0, "attempt": 1, "digest": b"digest"}


def test_what_is_said_behind_a_large_request_is_heard_behind_it_and_others_are_answered_first():
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
            dealer.send(b"run", b"%d" % number, None, b"x" * 8 * SLICE_BYTES)
        wait_until(lambda: loop._drain_frontend() or loop._hasher._bytes > 5 * 8 * SLICE_BYTES, "all of them")
        loop._stop_requested = True
        wait_until(lambda: loop._turn({loop._front}) or core.stopped, "its end")
        loop._close()
        answers = [dealer.recv() for _ in range(5)]
    assert [(kind, id, body["error_type"]) for kind, id, body in answers] == [
        (b"error", b"%d" % number, "shutting_down") for number in range(5)
    ]
