"""wire, queues, outbox, outboxes, schema: the small pure parts, each on its own."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.broker.core.fair_queue import FairQueue
from axon_zmq.broker.send_queues import SendQueues
from axon_zmq.client.messages import Failed, decode
from axon_zmq.errors import ERROR_TYPES, AxonError, RequestError
from axon_zmq.jsonschema import self_contained
from axon_zmq.jsonschema.compiler import MAX_NESTING
from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import HEADERS, open_envelope, parse, printable, single_frame
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from axon_zmq.worker.delivery.replay_store import ReplayStore
from axon_zmq.worker.registry import offline_models

# --- wire ------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), plain, max_size=5))
def test_what_is_packed_comes_back(value):
    assert unpack(pack(value), "it") == value


@given(st.binary(max_size=200))
def test_any_bytes_give_a_map_or_one_clear_error(data):
    try:
        assert isinstance(unpack(data, "it"), dict)
    except RequestError as error:
        assert error.error_type == "invalid_msgpack"
        assert error.message.startswith("it")


@given(st.lists(st.binary(max_size=80), max_size=7))
def test_any_frames_give_a_message_or_one_clear_error(frames):
    envelope = open_envelope(frames)
    try:
        message = parse(envelope.frames, 1000)
    except RequestError as error:
        assert ERROR_TYPES[error.error_type].mender == "caller"
    else:
        assert message.kind in HEADERS


@given(st.sampled_from([b"chunk", b"complete", b"alive"]), st.binary(max_size=64), st.dictionaries(st.text(), plain))
def test_a_single_frame_is_one_array_with_the_body_as_it_is(kind, id, body):
    import msgpack

    packed = pack(body)
    frame = single_frame(kind, id, packed)
    assert frame.endswith(packed)
    assert msgpack.unpackb(frame) == [kind.decode(), id, body]
    assert msgpack.unpackb(single_frame(kind, id, b""))[2] == {}


def test_every_error_type_has_a_family_and_survives_the_wire():
    for code in ERROR_TYPES:
        error = AxonError.of(code, "what", {"by": "broker"})
        message = decode(b"error", pack(error.to_body())).message
        assert isinstance(message, Failed)
        again = message.error
        assert type(again) is type(error) is not AxonError
        assert (again.error_type, again.details, again.retryable) == (code, {"by": "broker"}, error.retryable)
    assert type(AxonError.of("of_the_future", "?", retryable=True)) is AxonError


# --- queues ----------------------------------------------------------------------------------------


class Item:
    def __init__(self, client: bytes, number: int) -> None:
        self.client, self.number, self.size = client, number, number


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(0, 9)), max_size=60))
def test_fairness_while_clients_wait_none_is_served_twice_before_another(arrivals):
    queue: FairQueue[Item] = FairQueue()
    waiting: dict[bytes, deque[Item]] = {}
    for client, number in arrivals:
        item = Item(client, number)
        waiting.setdefault(client, deque()).append(item)
        queue.push(item)
    served_in_round: set[bytes] = set()
    while queue.count:
        item = queue.pop()
        assert waiting[item.client].popleft() is item  # each client's own order
        if item.client in served_in_round:
            assert not [c for c, items in waiting.items() if items and c not in served_in_round]
            served_in_round = set()
        served_in_round.add(item.client)
    assert queue.bytes == 0
    assert not any(waiting.values())


def test_removing_and_giving_back():
    queue: FairQueue[Item] = FairQueue()
    items = [Item(b"a", number) for number in (1, 2, 3)]
    for item in items:
        queue.push(item)
    queue.remove(items[1])
    assert (queue.count, queue.bytes, queue.of_client(b"a")) == (2, 4, 2)
    first = queue.pop()
    queue.push_front(first)
    assert [queue.pop(), queue.pop()] == [items[0], items[2]]
    with pytest.raises(KeyError):
        queue.remove(items[1])


# --- a run's outbox --------------------------------------------------------------------------------

WHO = RunInfo("run", b"digest", 1.0, keep=False)


def test_messages_are_numbered_and_replayed_from_where_it_is_asked():
    outbox = ReplayBuffer(pack, WHO)
    sent = [outbox.put(b"chunk", {"data": word}) for word in "abc"]
    assert [unpack(body, "it")["seq"] for body in sent] == [1, 2, 3]
    replay = outbox.replay(2)
    assert (replay.start, replay.gap, [m.body for m in replay.messages]) == (2, False, sent[1:])
    assert outbox.replay(4) == (4, False, [])


def test_what_is_over_the_bound_is_gone_and_a_replay_says_so():
    outbox = ReplayBuffer(pack, WHO, max_bytes=200)
    for _ in range(10):
        outbox.put(b"chunk", {"data": "x" * 50})
    replay = outbox.replay(1)
    assert replay.gap
    assert replay.start == 10 - len(replay.messages) + 1
    assert outbox.bytes <= 200


def test_a_message_that_cannot_be_packed_uses_no_number():
    outbox = ReplayBuffer(pack, WHO)
    with pytest.raises(TypeError):
        outbox.put(b"chunk", {"data": object()})
    assert unpack(outbox.put(b"chunk", {}), "it")["seq"] == 1


def test_ended_outboxes_are_kept_for_the_window_and_within_the_bytes():
    shelf = ReplayStore(max_bytes=1000)
    for number in range(5):
        outbox = ReplayBuffer(pack, WHO)
        outbox.put(b"chunk", {"data": "x" * 300})
        shelf.add((b"a", b"%d" % number), outbox)
    for number in range(4):
        shelf.end((b"a", b"%d" % number), float(number))
    shelf.tidy(4.0)
    assert [key[1] for key, _ in shelf] == [b"4", b"2", b"3"]  # the open one and the last that ended
    shelf.tidy(limits.RESUME_WINDOW + 2.5)
    assert [key[1] for key, _ in shelf] == [b"4", b"3"]


def test_open_runs_lose_their_oldest_messages_where_all_take_too_much():
    shelf = ReplayStore(max_bytes=10_000)
    for number in range(4):
        outbox = ReplayBuffer(pack, WHO)
        for _ in range(10):
            outbox.put(b"chunk", {"data": "x" * 500})
        shelf.add((b"a", b"%d" % number), outbox)
    shelf.tidy(0.0)
    assert sum(outbox.bytes for _, outbox in shelf) <= 11_000
    assert all(outbox.replay(10).messages for _, outbox in shelf)


def test_names_are_shown_in_one_printable_line():
    assert printable(b"caf\xc3\xa9-1") == "caf\N{LATIN SMALL LETTER E WITH ACUTE}-1"
    assert printable(b"a\n2026 forged\x1b[2J\xff") == "a\\n2026 forged\\x1b[2J\\\\xff"


# --- the broker's outboxes -------------------------------------------------------------------------


def test_a_blocked_client_loses_chunks_but_never_its_terminal():
    outboxes = SendQueues(per_client=2000)
    assert not outboxes.add(b"a", b"chunk", b"1", b"x" * 1500)
    assert outboxes.add(b"a", b"chunk", b"1", b"x" * 200)
    assert outboxes.add(b"a", b"chunk", b"2", b"x")  # dropped, and said each time: this run may be new
    assert outboxes.add(b"a", b"pong", b"3", b"x")
    outboxes.add(b"a", b"error", b"1", b"the end")
    sent: list[tuple[bytes, bytes, bytes, bytes]] = []
    outboxes.flush(b"a", lambda *message: not sent.append(message))
    assert [kind for _, kind, _, _ in sent] == [b"chunk", b"chunk", b"error"]
    assert not outboxes.waiting
    assert not outboxes.add(b"a", b"chunk", b"2", b"x")  # unblocked


def test_an_outbox_full_of_the_smallest_chunks_still_has_a_place_for_the_terminal():
    outboxes = SendQueues()
    while not outboxes.add(b"a", b"chunk", b"1", b""):
        pass
    outboxes.add(b"a", b"error", b"1", b"the end")
    assert outboxes.waiting[b"a"][-1] == (b"error", b"1", b"the end")


def test_answers_over_their_bound_become_slow_consumer():
    outboxes = SendQueues(answers=2000)
    for id in (b"1", b"2", b"3"):
        outboxes.add(b"a", b"complete", id, b"x" * 1500)
    kept = list(outboxes.waiting[b"a"])
    assert [kind for kind, _, _ in kept] == [b"complete", b"complete", b"error"]
    assert unpack(kept[-1][2], "it")["error_type"] == "slow_consumer"


def test_the_bound_over_all_clients_hits_the_one_that_passes_it():
    outboxes = SendQueues(per_client=1000, in_all=1500)
    assert not outboxes.add(b"a", b"chunk", b"1", b"x" * 700)
    assert outboxes.add(b"b", b"chunk", b"1", b"x" * 700)
    outboxes.forget(b"a")
    outboxes.forget(b"b")
    assert repr(outboxes) == "<SendQueues 0 clients, 0 blocked, 0 bytes>"


def test_flushing_stops_where_the_pipe_is_full_and_keeps_the_order():
    outboxes = SendQueues()
    for number in range(3):
        outboxes.add(b"a", b"chunk", b"%d" % number, b"x")
    took: list[bytes] = []

    def send(_client: bytes, _kind: bytes, id: bytes, _body: bytes) -> bool:
        if len(took) == 1:
            return False
        took.append(id)
        return True

    outboxes.flush(b"a", send)
    assert took == [b"0"]
    assert [id for _, id, _ in outboxes.waiting[b"a"]] == [b"1", b"2"]


# --- schemas and offline models --------------------------------------------------------------------


def test_references_are_written_out_and_names_and_data_are_left_alone():
    given_schema = {
        "$defs": {"n": {"type": "integer"}},
        "type": "object",
        "properties": {"$ref": {"$ref": "#/$defs/n"}, "definitions": {"const": {"$ref": "left alone"}}},
    }
    assert self_contained(given_schema, "/s") == {
        "type": "object",
        "properties": {"$ref": {"type": "integer"}, "definitions": {"const": {"$ref": "left alone"}}},
    }


def test_references_that_multiply_are_bounded():
    definitions = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 4} for n in range(12)}
    bomb = {"$ref": "#/$defs/d0", "$defs": {**definitions, "d12": {"type": "null"}}}
    with pytest.raises(RequestError, match="20000 values"):
        self_contained(bomb, "/s")


def test_a_schema_nested_too_deep_is_refused():
    deep: dict[str, object] = {}
    for _ in range(MAX_NESTING + 1):
        deep = {"items": deep}
    with pytest.raises(RequestError, match="nested more than 64 deep"):
        self_contained(deep, "/s")


def test_synthetic_specs():
    assert offline_models.pace_of("") == offline_models.Pace(50, 20, 5)
    assert offline_models.pace_of("tokens=3,delay_ms=0,size=1") == offline_models.Pace(3, 0, 1)
    for wrong in ("tokens=x", "tokens=-1", "tokens=1000001", "tokens", "size=0", "temperature=1"):
        with pytest.raises(RequestError, match="unknown_model"):
            offline_models.pace_of(wrong)
