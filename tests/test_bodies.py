"""Large bodies are read through bit by bit: nobody waits for that but who sent one, whose order is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from axon_zmq import limits, wire
from axon_zmq.broker.bodies import MOST_BYTES, SLICE, Bodies, size
from axon_zmq.broker.events import FromClient
from tests.broker_helpers import Bench
from tests.conftest import Dealer, running

MAX_BODY = 2**24


def message(client: bytes, id: bytes, size: int, kind: bytes = b"run", delimiter: bool = False) -> FromClient:
    return FromClient(client, [*([b""] if delimiter else []), kind, id, b"", id * (size // len(id))])


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"a", b"b", b"c"]),
            st.sampled_from([1, SLICE, SLICE + 1, 2 * SLICE, 5 * SLICE + 7, MAX_BODY + 1]),
            st.sampled_from([b"run", b"run_stream", b"describe", b"cancel", b"tool_result", b"nonsense"]),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_each_clients_order_is_kept_and_each_digest_is_right(sent, steps_between, most):
    bodies, judged = Bodies(MAX_BODY), []
    messages = [
        message(client, bytes([number + 1]), size, kind, delimiter)
        for number, (client, size, kind, delimiter) in enumerate(sent)
    ]
    for each in messages:
        if not bodies.keep(each, 0.0):
            judged.append(each)
        for _ in range(steps_between):
            judged += bodies.step(most)
    while bodies.waiting:
        judged += bodies.step(most)
    for client in (b"a", b"b", b"c"):
        of_client = [each.frames for each in judged if each.client == client]
        assert of_client == [each.frames for each in messages if each.client == client]
    for each in judged:
        assert each.digest in (b"", wire.digest(each.frames[-1]))
        kind, _, _, body = each.frames[-4:]
        assert bool(each.digest) == (kind in (b"run", b"run_stream", b"describe") and SLICE < len(body) <= MAX_BODY)
    assert repr(bodies) == "<Bodies <FairQueue 0 requests of 0 clients, 0 bytes>, None bytes under way>"


def test_a_turn_reads_one_slice_and_others_are_judged_meanwhile():
    bodies = Bodies(MAX_BODY)
    large, small, other = message(b"a", b"1", 4 * SLICE), message(b"a", b"2", 1), message(b"b", b"3", 1)
    assert bodies.keep(large, 7.0)
    assert bodies.keep(small, 8.0)
    assert not bodies.keep(other, 9.0)
    assert [list(bodies.step(9)) for _ in range(3)] == [[], [], []]
    assert [(each.frames, each.arrived) for each in bodies.step(9)] == [(large.frames, 7.0)]
    assert list(bodies.step(9)) == [small._replace(arrived=8.0)]
    assert not bodies.keep(small, 10.0)


def test_clients_with_large_bodies_take_turns():
    bodies, judged = Bodies(MAX_BODY), []
    for client, ids in ((b"a", b"123"), (b"b", b"4"), (b"c", b"5")):
        for id in ids:
            bodies.keep(message(client, bytes([id]), 2 * SLICE), 0.0)
    while bodies.waiting:
        judged += [each.frames[1] for each in bodies.step(9)]
    assert judged == [b"1", b"4", b"5", b"2", b"3"]


def test_where_much_waits_no_more_is_received():
    bodies, count = Bodies(MAX_BODY), 0
    while not bodies.full:
        bodies.keep(message(b"a", b"1", MAX_BODY), 0.0)
        count += 1
    assert count == MOST_BYTES // MAX_BODY
    while bodies.full:
        list(bodies.step(9))
    kept = 0
    while not bodies.full:  # behind the others, and not without end: what is no body is counted, too
        assert bodies.keep(FromClient(b"a", [b"run", b"2", b"h" * limits.MIB, b""]), 0.0)
        kept += 1
    assert kept == MAX_BODY // limits.MIB


def test_small_messages_behind_a_large_one_are_not_all_judged_in_one_turn():
    bodies = Bodies(MAX_BODY)
    bodies.keep(message(b"a", b"1", 2 * SLICE), 0.0)
    for _ in range(20):
        bodies.keep(message(b"a", b"2", 1), 0.0)
    assert [len(list(bodies.step(8))) for _ in range(5)] == [0, 1, 8, 8, 4]
    assert size(message(b"a", b"2", 1)) == limits.KIB + 5


def test_time_that_a_large_body_waits_counts_as_the_requests_own():
    bench = Bench()
    bench.add_worker(b"w")
    frames = [b"run", b"1", wire.pack({"timeout_ms": 5000}), b"body"]
    bench.feed(FromClient(b"a", frames, b"digest", bench.now - 4.0))
    [(_, _, lease)] = bench.dispatched
    assert lease == {"deadline": bench.now + 1.0, "attempt": 1, "digest": b"digest"}


def test_what_is_said_behind_a_large_request_is_heard_behind_it_and_others_are_answered_first():
    large = wire.pack({"agent": "echo", "prompt": "x" * 12_000_000})
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
            ended += kind in wire.TERMINAL_KINDS
            if kind == b"accepted" and id.startswith(b"large"):
                assert body["duplicate"] == (seen[id].count(b"accepted") == 2)
        for number in range(5):
            assert seen[b"large%d" % number].count(b"accepted") == 2
            assert seen[b"small%d" % number] == [b"accepted", b"complete"]
