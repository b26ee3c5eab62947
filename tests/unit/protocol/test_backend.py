"""Typed messages between broker and worker: round trips, and errors for malformed input."""

from __future__ import annotations

import types
from contextlib import suppress
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.protocol import kinds
from axon_zmq.protocol.backend import (
    TO_BROKER,
    TO_WORKER,
    Body,
    EndReason,
    Held,
    Holds,
    Lease,
    MalformedMessageError,
    Message,
    Ready,
    RunClient,
    RunEnd,
    RunResume,
    RunStart,
    Slots,
    Status,
    Take,
    ToRun,
    decode,
    decode_at_worker,
)
from axon_zmq.protocol.msgpack import pack, unpack
from tests.support.broker_helpers import Bench

MESSAGES = [*TO_BROKER.values(), *TO_WORKER.values(), Status]


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of(*(values(each) for each in arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is not None:
        return st.dictionaries(st.text(max_size=5), values(arguments[1]), max_size=3)
    if issubclass(hint, Body):
        return bodies(hint)
    scalars: dict[type, st.SearchStrategy[Any]] = {
        bytes: st.binary(max_size=20),
        str: st.text(max_size=20),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        EndReason: st.sampled_from(EndReason),
        types.NoneType: st.none(),
    }
    return scalars[hint]


def bodies(kind: type[Body]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    fields = {name: values(hint) for name, hint in hints.items() if get_origin(hint) is not ClassVar}
    if kind is Ready:
        fields["v"] = st.just(1)
    return st.builds(kind, **fields)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_packed_message_can_be_read_again(kind: type[Message], data: st.DataObject):
    message = data.draw(bodies(kind))
    assert kind.unpack(message.pack()) == message


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_unknown_keys_are_ignored(kind: type[Message], data: st.DataObject):
    message = data.draw(bodies(kind))
    assert kind.unpack(pack({**message.to_wire(), "of a later version": 1})) == message


READY = {"v": 1, "mode": "run", "slots": 1, "name": "run-1", "holds": []}
RUN = {"client": b"c", "id": b"1", "kind": "run", "digest": b"", "deadline": 1, "keep": False, "seq": 1}
HELD = {**RUN, "ended": True, "waiting": False, "size": 0}


@pytest.mark.parametrize(
    ("kind", "body", "fault"),
    [
        (Ready, {**READY, "slots": "many"}, "/slots must be an integer, not str"),
        (Ready, {**READY, "slots": True}, "/slots must be an integer, not bool"),
        (Ready, {key: value for key, value in READY.items() if key != "name"}, "/name is missing"),
        (Ready, {**READY, "holds": {}}, "/holds must be a list, not dict"),
        (Ready, {**READY, "v": 2}, "/v is 2, but this broker supports 1"),
        (Ready, {"v": 2}, "/v is 2, but this broker supports 1"),
        (Holds, {"holds": [HELD, {**HELD, "id": "1"}]}, "/holds/1/id must be binary, not str"),
        (Holds, {"holds": [{**HELD, "keep": 1}]}, "/holds/0/keep must be true or false, not int"),
        (Slots, [], "must be a map"),
        (Take, {"file": b"x"}, "/file must be a string, not bytes"),
        (TO_BROKER[kinds.PROCESSES], {"programs": {"run-1": {"pid": 1}}}, "/programs/run-1/state is missing"),
        (TO_BROKER[kinds.PROCESSES], {"programs": []}, "/programs must be a map, not list"),
    ],
)
def test_a_malformed_body_is_rejected_and_the_key_is_named(kind: type[Message], body: Any, fault: str):
    with pytest.raises(MalformedMessageError) as caught:
        kind.unpack(pack(body))
    assert fault in str(caught.value)
    assert caught.value.kind == kind.kind


@given(body=st.binary(min_size=1))
def test_arbitrary_bytes_are_read_or_rejected_as_malformed(body: bytes):
    for kind in MESSAGES:
        with suppress(MalformedMessageError):
            kind.unpack(body)


def test_integers_are_accepted_as_numbers_and_missing_optional_keys_have_defaults():
    lease = Lease.from_wire({"deadline": 5, "attempt": 1})
    assert (lease.deadline, lease.digest) == (5, b"")
    assert Held.from_wire(HELD).deadline == 1


def test_unknown_message_kinds_are_ignored():
    assert decode(TO_BROKER, b"later", b"\xc1") is None
    assert decode_at_worker([b"client", b"later", b"1"]) is None
    assert decode_at_worker([b"", b"later", b"", b"\xc1"]) is None


LEASED = Lease(1.0, 1, b"d")
HEADER, LEASE = pack({"a": 1}), LEASED.pack()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            [b"c", b"run", b"1", HEADER, b"body", LEASE],
            RunStart(b"c", b"run", b"1", {"a": 1}, b"body", LEASED),
        ),
        ([b"c", b"steer", b"1", HEADER, b"body"], ToRun(b"c", b"steer", b"1", {"a": 1}, b"body")),
        ([b"c", b"end", b"1", pack({"reason": "deadline"})], RunEnd(b"c", b"1", EndReason.DEADLINE)),
        ([b"c", b"resume", b"1", HEADER, b""], RunResume(b"c", b"1", {"a": 1})),
        ([b"c", b"gone", b"1"], RunClient(b"c", b"1", True)),
        ([b"c", b"back", b"1"], RunClient(b"c", b"1", False)),
        ([b"", b"take", b"", pack({"file": "f"})], Take("f")),
    ],
)
def test_a_worker_rejects_messages_with_a_wrong_number_of_frames(frames: list[bytes], message: object):
    assert decode_at_worker(frames) == message
    if frames[0] != kinds.CONTROL:
        for wrong in (frames[:-1], [*frames, b""]):
            with pytest.raises(MalformedMessageError, match=f"expected {len(frames)} frames, got {len(wrong)}"):
                decode_at_worker(wrong)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"c"],
        [b"c", b"run", b"1", b"\xc1", b"", LEASE],
        [b"c", b"run", b"1", b"", b"", b"\xc1"],
        [b"c", b"end", b"1", pack({"reason": "a whim"})],
        [b"", b"take", b"", b""],
    ],
)
def test_a_worker_rejects_unreadable_messages(frames: list[bytes]):
    with pytest.raises(MalformedMessageError):
        decode_at_worker(frames)


def test_malformed_messages_do_not_change_the_broker():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.feed_control(worker, b"slots", slots="many")
    assert "/slots must be an integer" in bench.notes[-1].text
    assert bench.pong()["modes"]["run"]["free"] == 1


def test_a_bug_in_a_handler_is_not_reported_as_malformed_input(monkeypatch: pytest.MonkeyPatch):
    def adopt(*_: object) -> None:
        raise KeyError("a fault of ours")

    bench = Bench()
    monkeypatch.setattr("axon_zmq.broker.core.runs.Runs.adopt", adopt)
    with pytest.raises(KeyError, match="a fault of ours"):
        bench.add_worker(b"w", holds=[HELD])


def test_bodies_on_the_wire_contain_plain_values_only():
    assert unpack(Holds((Held.from_wire(HELD),)).pack(), "holds") == {"holds": [HELD], "forgot_at": 0.0}
