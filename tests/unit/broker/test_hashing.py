"""Large bodies are digested in slices, so that one client's body does not delay other clients."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.broker.core.events import FromClient
from axon_zmq.broker.hashing import MAX_WAITING_BYTES, SLICE_BYTES, BodyHasher, size
from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import body_digest
from axon_zmq.protocol.msgpack import pack
from tests.support.broker_helpers import Bench

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
def test_the_order_of_each_client_is_kept_and_each_digest_is_correct(sent, steps_between, most):
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


def test_one_turn_reads_one_slice_and_handles_other_clients():
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


def test_small_messages_do_not_wait_repeatedly_for_large_bodies_of_others():
    """One client sends large bodies all the time, another one large body and then small messages all the time."""
    bodies, sent, heard = BodyHasher(MAX_BODY), dict[bytes, int](), list[int]()
    waiting = Counter({b"a": bodies.defer(message(b"a", b"0", 2 * SLICE_BYTES))})
    for turn in range(2000):
        if waiting[b"b"] < 2:
            waiting[b"b"] += bodies.defer(message(b"b", b"large", 40 * SLICE_BYTES))
        if turn % 10 == 0:
            id = b"%d" % turn
            if bodies.defer(message(b"a", id, 1, b"cancel")):
                waiting[b"a"] += 1
                sent[id] = turn
        done = list(bodies.step(9))
        waiting.subtract(each.client for each in done)
        heard += [turn - sent[each.frames[1]] for each in done if each.frames[1] in sent]
    assert waiting[b"a"] == 0
    assert max(heard, default=0) <= 40


def test_no_more_messages_are_received_while_too_many_bytes_wait():
    bodies, count = BodyHasher(MAX_BODY), 0
    while not bodies.full:
        bodies.defer(message(b"a", b"1", MAX_BODY))
        count += 1
    assert count == MAX_WAITING_BYTES // MAX_BODY
    while bodies.full:
        list(bodies.step(9))
    kept = 0
    while not bodies.full:  # queued behind the others, within the limit: frames other than the body are counted, too
        assert bodies.defer(FromClient(b"a", [b"run", b"2", b"h" * limits.MIB, b""], 0.0))
        kept += 1
    assert kept == MAX_BODY // limits.MIB


def test_small_messages_behind_a_large_body_are_spread_over_turns():
    bodies = BodyHasher(MAX_BODY)
    bodies.defer(message(b"a", b"1", 2 * SLICE_BYTES))
    for _ in range(20):
        bodies.defer(message(b"a", b"2", 1))
    assert [len(list(bodies.step(8))) for _ in range(5)] == [0, 8, 8, 5, 0]


def test_a_client_that_floods_small_messages_does_not_keep_its_turn():
    bodies, judged = BodyHasher(MAX_BODY), list[bytes]()
    bodies.defer(message(b"a", b"0", 2 * SLICE_BYTES))
    bodies.defer(message(b"b", b"large", 2 * SLICE_BYTES))
    for _ in range(20):
        for _ in range(9):
            assert bodies.defer(message(b"a", b"x", 1))
        judged += [each.frames[1] for each in bodies.step(8)]
    assert b"large" in judged[:30]


def test_the_size_of_a_message_includes_all_its_frames():
    assert size(message(b"a", b"2", 1)) == limits.KIB + 5


def test_time_in_which_a_large_body_waits_counts_toward_its_own_timeout():
    bench = Bench()
    bench.add_worker(b"w")
    frames = [b"run", b"1", pack({"timeout_ms": 5000}), b"body"]
    bench.feed(FromClient(b"a", frames, bench.now - 4.0, b"digest"))
    [(_, _, lease)] = bench.dispatched
    assert lease == {"deadline": bench.now + 1.0, "attempt": 1, "digest": b"digest"}
