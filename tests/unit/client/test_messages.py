"""Decoding of received messages: malformed input ends its own request; bugs in handlers are raised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.client import core as client_core
from axon_zmq.client.core import ClientCore, Run
from axon_zmq.client.messages import Alive, Failed, Pong, Received, Resumed, decode
from axon_zmq.client.tool_calls import ToolCalls
from axon_zmq.errors import RequestError, RunEndedError
from axon_zmq.events import Chunk, ToolCall
from axon_zmq.protocol import kinds
from axon_zmq.protocol.msgpack import pack

CALL = {"seq": 1, "call_id": "a", "name": "add", "args": {}}
ERROR = {"error_type": "internal", "message": "no", "details": {}, "retryable": False}
VALID = {
    b"accepted": {"duplicate": False},
    b"chunk": {"seq": 1, "type": "text", "data": "x", "step": 1, "part": 0},
    b"complete": {"seq": 1, "result": "x", "usage": {}, "messages": [], "finish_reason": "stop", "model": "m"},
    b"tool_call": CALL,
    b"tool_cancelled": {"seq": 1, "call_id": "a"},
    b"log": {"seq": 1, "level": "info", "message": "x", "logger": "a", "fields": {}},
    b"refused": {"of": "steer", "error_type": "unknown_request", "message": "x", "call_id": "a"},
    b"error": ERROR,
    b"resumed": {"from": 1, "gap": False, "open_calls": [CALL], "last": 1},
    b"catalog": {"agents": {}, "toolsets": {}},
    b"pong": {"boot": "one", "limits": {"max_body": 5}},
    b"alive": {"boot": "one", "open": 1},
}
"""A correct body of each kind of message to a client."""
REQUIRED = {
    b"accepted": [],
    b"chunk": ["seq", "type"],
    b"complete": [],
    b"tool_call": ["seq", "call_id", "name"],
    b"tool_cancelled": ["seq", "call_id"],
    b"log": ["seq", "level", "message"],
    b"refused": ["of", "error_type", "message"],
    b"error": ["error_type", "message"],
    b"resumed": ["from"],
    b"catalog": ["agents"],
    b"pong": [],
    b"alive": ["boot", "open"],
}
ANYTHING = {("chunk", "data"), ("complete", "result")}
"""Keys that may hold any value."""
MISSING = [(kind, {k: v for k, v in VALID[kind].items() if k != key}) for kind in VALID for key in REQUIRED[kind]]
WRONG = [
    (kind, {**body, key: 1.5}) for kind, body in VALID.items() for key in body if (kind.decode(), key) not in ANYTHING
]
NESTED = [
    (b"complete", {"deferred": {"calls": [1]}}),
    (b"complete", {"deferred": {"approvals": [{"call_id": "a"}]}}),
    (b"complete", {"deferred": {"calls": {"a": 1}}}),
    (b"error", ERROR | {"details": {"never_ran_within_ms": "soon"}}),
    (b"error", ERROR | {"details": {"may_have_run": 0}}),
    (b"resumed", {"from": 1, "open_calls": [{"call_id": 1}]}),
    (b"resumed", {"from": 1, "open_calls": ["a"]}),
    (b"pong", {"limits": {"max_body": "large"}}),
    (b"chunk", VALID[b"chunk"] | {"seq": 0}),
    (b"chunk", VALID[b"chunk"] | {"seq": True}),
    (b"of_the_future", {"seq": "1"}),
]
MALFORMED = [(kind, pack(body)) for kind, body in MISSING + WRONG + NESTED] + [
    (kind, packed) for kind in VALID for packed in (b"\xc1", pack([]), pack("x"))
]


def started(core: ClientCore, id: str = "1") -> Run:
    run = core.run("run_stream", "echo", "x", {"id": id}, 0.0)
    core.outgoing.clear()
    return run


def test_the_samples_cover_every_kind_of_message_to_a_client():
    to_client = "ACCEPTED CHUNK LOG TOOL_CALL TOOL_CANCELLED COMPLETE ERROR CATALOG RESUMED REFUSED PONG ALIVE"
    assert VALID.keys() == {getattr(kinds, name) for name in to_client.split()} == REQUIRED.keys()


@pytest.mark.parametrize(("kind", "body"), VALID.items(), ids=lambda value: None)
def test_a_valid_message_is_decoded_with_unknown_keys_and_nils(kind, body):
    seq, message = decode(kind, pack(body))
    assert seq == body.get("seq")
    assert message is not None
    optional = {key: None for key in body if key not in REQUIRED[kind]}
    assert decode(kind, pack(body | {"of_the_future": {"a": 1}})) == (seq, message) or kind in (b"pong", b"error")
    assert decode(kind, pack(body | optional)).message is not None


def test_messages_are_decoded_into_typed_values():
    assert decode(b"chunk", pack(VALID[b"chunk"])) == Received(1, Chunk(1, "text", "x", 1, 0))
    assert decode(b"tool_call", pack(CALL)) == Received(1, ToolCall(1, "a", "add", {}))
    assert decode(b"resumed", pack(VALID[b"resumed"])) == Received(
        None, Resumed(start=1, gap=False, open_calls=("a",), last=1)
    )
    assert decode(b"alive", pack(VALID[b"alive"])) == Received(None, Alive("one", 1))
    assert decode(b"pong", pack(VALID[b"pong"])).message == Pong(
        boot="one", max_body=5, shared=False, body=VALID[b"pong"]
    )
    failed = decode(b"error", pack(ERROR | {"seq": 4, "details": {"may_have_run": False, "never_ran_within_ms": 7}}))
    assert failed.seq == 4
    assert isinstance(failed.message, Failed)
    assert (failed.message.never_ran, failed.message.never_ran_within_ms) == (True, 7)
    assert isinstance(failed.message.error, RunEndedError)
    assert decode(b"of_the_future", pack({"seq": 5, "a": 1})) == (5, None)


@pytest.mark.parametrize(("kind", "packed"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_message_ends_only_its_own_request(kind, packed):
    with pytest.raises(RequestError, match=r"must be|not valid msgpack") as caught:
        decode(kind, packed)
    assert caught.value.error_type in ("invalid_msgpack", "invalid_request")

    core = ClientCore()
    run, other = started(core), started(core, "2")
    received = core.receive([kind, b"1", packed], 0.0)
    if kind == b"alive":
        assert received is None
        assert not run.ended
    else:
        assert received is run
        [error] = run.inbox
        assert isinstance(error, RunEndedError)
        assert (error.error_type, error.details) == ("internal", {"by": "client"})
        assert error.message.startswith(f"malformed `{kind.decode()}` message from the daemon: ")
        assert [frames[0] for frames in core.outgoing] == [b"cancel"]
    assert core.receive([b"chunk", b"2", pack(VALID[b"chunk"])], 0.0) is other
    assert not other.ended


@given(st.sampled_from(sorted(VALID)), st.binary(max_size=200))
def test_arbitrary_bytes_never_raise_from_the_core(kind, packed):
    core = ClientCore()
    started(core)
    core.receive([kind, b"1", packed], 0.0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted({key for body in VALID.values() for key in body} | {"details", "deferred", "never_ran_within_ms"})


@given(st.sampled_from(sorted(VALID)), st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6))
def test_arbitrary_values_of_known_keys_never_raise_from_the_core(kind, changes):
    core = ClientCore()
    started(core)
    core.receive([kind, b"1", pack(VALID[kind] | changes)], 0.0)
    core.tick(1.0)


@pytest.mark.parametrize("fault", [TypeError, KeyError, AttributeError, IndexError])
@pytest.mark.parametrize(
    ("owner", "name", "kind"),
    [
        (ClientCore, "_in_order", b"chunk"),
        (ClientCore, "_deliver", b"tool_call"),
        (ClientCore, "_end", b"complete"),
        (ClientCore, "_refused", b"refused"),
        (ClientCore, "_process_pong", b"pong"),
        (ClientCore, "_resumed", b"resumed"),
        (ClientCore, "_compare_open_count", b"alive"),
        (ToolCalls, "take", b"tool_call"),
        (client_core, "_never_ran", b"error"),
    ],
)
def test_a_bug_in_a_handler_is_raised_and_does_not_end_the_run(monkeypatch, owner, name, kind, fault):
    def bug(*_):
        raise fault("a bug of ours")

    core = ClientCore()
    run = started(core)
    monkeypatch.setattr(owner, name, bug)
    with pytest.raises(fault, match="a bug of ours"):
        core.receive([kind, b"1", pack(VALID[kind])], 0.0)
    assert not run.ended
    assert not core.outgoing


def test_a_message_of_an_unknown_kind_keeps_its_place_in_the_sequence():
    core = ClientCore()
    run = started(core)
    assert core.receive([b"of_the_future", b"1", pack({"seq": 1})], 0.0) is None
    assert core.receive([b"chunk", b"1", pack(VALID[b"chunk"] | {"seq": 2})], 0.0) is run
    assert run.last_seq == 2
