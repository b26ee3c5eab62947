"""The client core, in memory."""

from __future__ import annotations

import pytest

from axon_zmq import AxonError
from axon_zmq.client.core import ANSWER_GRACE_S, RESUME_INTERVAL_S, SILENCE_TIMEOUT_S, ClientCore
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack, unpack
from tests.support.client_messages import chunk, message


def started(core: ClientCore, now: float = 0.0, **options):
    run = core.run("run_stream", "echo", "x", {"id": "1", **options}, now)
    core.outgoing.clear()
    return run


def sent(core: ClientCore) -> list[tuple[bytes, dict]]:
    kinds = [(frames[0], unpack(frames[2], "header") if len(frames) > 2 else {}) for frames in core.outgoing]
    core.outgoing.clear()
    return kinds


def ping_id(core: ClientCore) -> bytes:
    """The id of the last `ping` that the core has sent."""
    return next(frames[1] for frames in reversed(core.outgoing) if frames[0] == b"ping")


def test_messages_are_accepted_in_order_only():
    core = ClientCore()
    run = started(core)
    assert chunk(core, 1) is run
    assert chunk(core, 1) is None  # a duplicate
    assert chunk(core, 3) is None  # after a gap: dropped, and requested once
    assert chunk(core, 4) is None
    assert sent(core) == [(b"resume", {"from": 2})]
    assert chunk(core, 2, 0.1) is run
    assert [event.seq for event in run.inbox] == [1, 2]
    chunk(core, 5, 1 + RESUME_INTERVAL_S)
    assert sent(core) == [(b"resume", {"from": 3})]


def test_a_terminal_message_behind_a_gap_waits_for_the_missing_messages():
    core = ClientCore()
    run = started(core)
    assert message(core, b"complete", seq=2, result="x") is None
    assert not run.ended
    assert sent(core) == [(b"resume", {"from": 1})]


def test_a_gap_that_cannot_be_filled_ends_the_run_with_an_error():
    core = ClientCore()
    run = started(core)
    message(core, b"resumed", **{"from": 7, "gap": True, "open_calls": []})
    [error] = run.inbox
    assert isinstance(error, AxonError)
    assert "messages 1 to 6" in error.message
    assert (b"cancel", {}) in sent(core)


def test_a_new_broker_makes_the_client_resume_its_open_runs():
    core = ClientCore()
    started(core)
    core.receive([b"alive", b"", pack({"boot": "one", "open": 1})], 0.0)
    assert sent(core) == []
    core.receive([b"alive", b"", pack({"boot": "two", "open": 1})], 2.0)
    assert sent(core) == [(b"resume", {"from": 1})]


NEVER_RAN = {"error_type": "unknown_request", "message": "", "details": {"may_have_run": False}}


def test_a_run_that_never_started_is_sent_again_with_the_remaining_time_and_its_messages():
    core = ClientCore()
    run = started(core, timeout_ms=60_000)
    core.steer(b"1", "more", "asap")
    core.outgoing.clear()
    assert message(core, b"error", 20.0, **NEVER_RAN) is None
    assert [frames[0] for frames in core.outgoing] == [b"run_stream", b"steer"]
    assert sent(core)[0] == (b"run_stream", {"timeout_ms": 40_000})
    chunk(core, 1)
    message(core, b"error", 21.0, **NEVER_RAN)
    assert sent(core) == []
    assert run.ended


def test_each_message_of_a_run_that_never_started_is_answered_and_it_is_sent_again_once():
    core = ClientCore()
    run = started(core)
    core.steer(b"1", "more", "asap")
    core.receive([b"alive", b"", pack({"boot": "one", "open": 1})], 0.0)
    core.receive([b"alive", b"", pack({"boot": "two", "open": 1})], 2.0)
    core.outgoing.clear()
    for _ in ("to the resume", "to the steer"):
        message(core, b"error", 2.0, **NEVER_RAN)
        core.receive([b"alive", b"", pack({"boot": "two", "open": 1})], 2.0)
    assert [kind for kind, _ in sent(core)] == [b"run_stream", b"steer"]
    core.receive([b"alive", b"", pack({"boot": "three", "open": 1})], 5.0)
    message(core, b"error", 5.0, **NEVER_RAN)
    assert [kind for kind, _ in sent(core)] == [b"resume", b"run_stream", b"steer"]
    assert not run.ended


def test_a_resume_within_the_interval_is_delayed():
    core = ClientCore()
    started(core)
    for boot, now in (("one", 0.0), ("two", 1.0), ("three", 2.0)):
        core.receive([b"alive", b"", pack({"boot": boot, "open": 1})], now)
    assert [kind for kind, _ in sent(core)] == [b"resume"]
    core.tick(3.0)
    assert sent(core) == [(b"resume", {"from": 1})]
    core.tick(4.0)
    assert sent(core) == []


def test_a_cancelled_run_that_never_started_is_not_sent_again():
    core = ClientCore()
    run = started(core)
    core.cancel(b"1")
    core.outgoing.clear()
    assert message(core, b"error", **NEVER_RAN) is run
    assert sent(core) == []
    assert run.inbox[-1].error_type == "cancelled"


def test_a_cancel_that_may_be_lost_is_sent_again():
    core = ClientCore()
    started(core)
    core.cancel(b"1")
    core.receive([b"alive", b"", pack({"boot": "one", "open": 1})], 0.0)
    core.outgoing.clear()
    core.receive([b"alive", b"", pack({"boot": "two", "open": 1})], 2.0)
    assert sent(core) == [(b"resume", {"from": 1}), (b"cancel", {})]


@pytest.mark.parametrize("of", ["resume", "tool_result"])
def test_a_request_rejected_by_a_starting_broker_is_sent_again(of):
    core = ClientCore()
    started(core)
    assert message(core, b"refused", of=of, error_type="overloaded", message="", call_id="c") is None
    core.tick(1.0)
    assert sent(core) == [(b"resume", {"from": 1})]
    core.tick(1.5)
    assert sent(core) == []


def test_a_different_count_of_open_requests_makes_the_client_resume():
    core = ClientCore()
    started(core)
    for now in (0.0, 2.0):
        core.receive([b"alive", b"", pack({"boot": "one", "open": 2})], now)
    assert sent(core) == [(b"resume", {"from": 1})]


def test_the_client_pings_after_silence_and_resumes_after_the_pong():
    core = ClientCore()
    started(core)
    chunk(core, 1)
    core.tick(SILENCE_TIMEOUT_S + 0.1)
    id = ping_id(core)
    [(kind, header)] = sent(core)
    assert kind == b"ping"
    assert "instance" in header
    core.receive([b"pong", id, pack({"boot": "one", "limits": {"max_body": 5}})], 6.0)
    assert sent(core) == [(b"resume", {"from": 2})]
    with pytest.raises(AxonError, match="at most 5"):
        core.run("run", "echo", "far too long", {}, 6.0)


def test_a_reconnect_makes_the_client_resume():
    core = ClientCore()
    core.connected(0.0)
    started(core)
    core.connected(1.0)
    assert [kind for kind, _ in sent(core)] == [b"resume", b"ping"]


def test_every_request_ends_at_its_deadline():
    core = ClientCore()
    run = started(core, timeout_ms=1000)
    core.tick(1.0 + ANSWER_GRACE_S)
    assert not run.ended
    core.tick(1.1 + ANSWER_GRACE_S)
    assert run.ended
    assert run.inbox[-1].details["by"] == "client"


def test_stale_frames_unknown_kinds_and_foreign_ids_are_ignored():
    core = ClientCore()
    run = started(core)
    packed = pack({"seq": 1, "type": "text", "data": "x", "step": 1, "part": 0})
    assert core.receive([b"stale", b"frame", b"chunk", b"1", packed], 0.0) is run
    assert core.receive([b"chunk", b"another", packed], 0.0) is None
    assert core.receive([b"of_the_future", b"1", pack({"a": 1})], 0.0) is None
    assert core.receive([b"x"], 0.0) is None


def test_options_are_checked_before_anything_is_sent():
    core = ClientCore()
    with pytest.raises(TypeError, match="unknown option 'promt'; known options: id, timeout_ms"):
        core.run("run", "echo", "x", {"promt": 1}, 0.0)
    with pytest.raises(TypeError, match="unknown option 'timeout'; did you mean 'timeout_ms'"):
        core.run("run", "echo", "x", {"timeout": 1}, 0.0)
    with pytest.raises(TypeError, match="unknown option 'dep'; did you mean 'deps'"):
        core.call_tool("add", {}, {"dep": 1}, 0.0)
    assert not core.outgoing
    core.run("run", "echo", "x", {"id": "same"}, 0.0)
    with pytest.raises(AxonError, match="already has an open request"):
        core.run("run", "echo", "x", {"id": "same"}, 0.0)


@pytest.mark.parametrize(
    ("kind", "packed"),
    [
        (b"chunk", b"\xc1"),
        (b"chunk", pack({"seq": 1})),
        (b"chunk", pack({"seq": "1", "type": "text"})),
        (b"complete", pack([])),
        (b"resumed", pack({"gap": True})),
    ],
)
def test_an_unreadable_answer_ends_its_run_and_cancels_it(kind, packed):
    core = ClientCore()
    run = started(core)
    assert core.receive([kind, b"1", packed], 0.0) is run
    assert run.ended
    [error] = run.inbox
    assert (error.error_type, error.details) == ("internal", {"by": "client"})
    assert error.message.startswith(f"malformed `{kind.decode()}` message from the daemon: ")
    assert sent(core) == [(b"cancel", {})]
    assert not core.open


def test_an_unreadable_alive_or_pong_is_ignored():
    core = ClientCore()
    run = started(core)
    core.connected(0.0)
    bound = core.max_body
    assert core.receive([b"alive", b"", b"\xc1"], 0.0) is None
    core.receive([b"pong", ping_id(core), b"\xc1"], 0.0)
    for body in ({"limits": None}, {"limits": {"max_body": "x"}, "boot": 7}, {"limits": [], "boot": None}):
        core.connected(0.0)
        core.receive([b"pong", ping_id(core), pack(body)], 0.0)
    assert core.max_body == bound
    assert not run.ended
    assert chunk(core, 1) is run


def test_an_abandoned_request_is_cancelled_and_ended():
    core = ClientCore()
    run = started(core)
    chunk(core, 1)
    core.abandon(run)
    [error] = run.inbox
    assert (error.error_type, error.details) == ("cancelled", {"by": "client"})
    assert run.ended
    assert sent(core) == [(b"cancel", {})]
    again = started(core)
    core.abandon(run)  # it has ended, and another run uses its id
    assert sent(core) == []
    assert core.open == {b"1": again}


@pytest.mark.parametrize("id", ["", b"", "x" * (limits.MAX_ID + 1), "\u00e9" * (limits.MAX_ID // 2 + 1)])
def test_an_id_that_the_daemon_would_reject_is_rejected_by_the_client(id):
    core = ClientCore()
    with pytest.raises(AxonError, match="expected 1 to 64") as caught:
        core.run("run", "echo", "x", {"id": id}, 0.0)
    assert caught.value.error_type == "invalid_request"
    assert not core.outgoing


def test_a_request_may_have_the_id_probe():
    core = ClientCore()
    core.connected(0.0)
    run = core.run("run", "echo", "x", {"id": "probe"}, 0.0)
    core.connected(1.0)
    assert core.open[b"probe"] is run
    other = ClientCore()
    other.connected(0.0)
    assert ping_id(core) != ping_id(other)
    assert len(ping_id(core)) <= limits.MAX_ID


def test_an_idle_period_does_not_count_as_silence():
    core = ClientCore()
    core.connected(0.0)
    core.receive([b"pong", ping_id(core), pack({"boot": "one"})], 0.0)
    started(core, 100.0)
    core.tick(100.5)
    assert sent(core) == []
    core.tick(100.1 + SILENCE_TIMEOUT_S)
    assert [kind for kind, _ in sent(core)] == [b"ping"]
