"""Large bodies are read through bit by bit: nobody waits for that but who sent one, whose order is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from axon_zmq import wire
from axon_zmq.broker.bodies import LARGE, MOST_BYTES, SLICE, Bodies
from axon_zmq.broker.events import FromClient
from tests.conftest import Dealer, running

MAX_BODY = 2**24


def message(client: bytes, id: bytes, size: int, kind: bytes = b"run", delimiter: bool = False) -> FromClient:
    return FromClient(client, [*([b""] if delimiter else []), kind, id, b"", id * (size // len(id))])


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"a", b"b", b"c"]),
            st.sampled_from([1, LARGE - 1, LARGE, LARGE + 1, 2 * SLICE, 5 * SLICE + 7, MAX_BODY + 1]),
            st.sampled_from([b"run", b"run_stream", b"cancel", b"tool_result", b"nonsense"]),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(0, 3),
)
def test_each_clients_order_is_kept_and_each_digest_is_right(sent, steps_between):
    bodies, judged = Bodies(MAX_BODY), []
    messages = [
        message(client, bytes([number + 1]), size, kind, delimiter)
        for number, (client, size, kind, delimiter) in enumerate(sent)
    ]
    for each in messages:
        if not bodies.keep(each):
            judged.append(each)
        for _ in range(steps_between):
            judged += bodies.step()
    while bodies.waiting:
        judged += bodies.step()
    for client in (b"a", b"b", b"c"):
        of_client = [each.frames for each in judged if each.client == client]
        assert of_client == [each.frames for each in messages if each.client == client]
    for each in judged:
        assert each.digest in (b"", wire.digest(each.frames[-1]))
        kind, _, _, body = each.frames[-4:]
        assert bool(each.digest) == (kind in (b"run", b"run_stream") and LARGE <= len(body) <= MAX_BODY)
    assert repr(bodies) == "<Bodies 0 messages wait, 0 bytes>"


def test_a_turn_reads_one_slice_and_others_are_judged_meanwhile():
    bodies = Bodies(MAX_BODY)
    large, small, other = message(b"a", b"1", 4 * SLICE), message(b"a", b"2", 1), message(b"b", b"3", 1)
    assert bodies.keep(large)
    assert bodies.keep(small)
    assert not bodies.keep(other)
    assert [list(bodies.step()) for _ in range(3)] == [[], [], []]
    assert [each.frames for each in bodies.step()] == [large.frames]
    assert list(bodies.step()) == [small]
    assert not bodies.keep(small)


def test_where_much_waits_no_more_is_received():
    bodies, count = Bodies(MAX_BODY), 0
    while not bodies.full:
        bodies.keep(message(b"a", b"1", MAX_BODY))
        count += 1
    assert count == MOST_BYTES // MAX_BODY
    while bodies.full:
        list(bodies.step())
    assert len(bodies.waiting) == count - 1
    while not bodies.full:
        assert bodies.keep(message(b"a", b"2", 0))  # behind the others, and not without end


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
