"""The broker core in memory: one test for each clause of the protocol's numbered rules."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from axon_zmq.broker.core.admission import UNDELIVERED_KEPT
from axon_zmq.broker.core.broker import ALIVE_INTERVAL_S, CLIENT_GRACE_S, RECOVERY_S
from axon_zmq.broker.core.clients import SHARED_WINDOW_S
from axon_zmq.broker.core.effects import ToClient
from axon_zmq.broker.core.events import FromClient, FromWorker, TakenOver
from axon_zmq.broker.core.outgoing import BAD_INPUT_LINES_PER_SECOND
from axon_zmq.broker.core.pools import PROGRESS_TIMEOUT_S
from axon_zmq.broker.core.runs import NO_WORKER_GRACE_S
from axon_zmq.broker.core.states import (
    RUN,
    WORKER,
    IllegalTransitionError,
    RunEvent,
    RunState,
    WorkerState,
    step,
)
from axon_zmq.protocol import frames, limits
from axon_zmq.protocol.kinds import MODES
from axon_zmq.protocol.msgpack import pack, unpack
from tests.support.broker_helpers import Bench, error_type

A, B = b"client-a", b"client-b"


def error_type_of(sent: list[ToClient]) -> str:
    [answer] = sent
    return unpack(answer.body, "error")["error_type"]


def test_a_run_goes_to_a_free_worker_with_header_body_and_lease():
    bench = Bench()
    bench.add_worker(b"w")
    bench.send(A, "run", b"1", {"timeout_ms": 5000}, {"agent": "echo"})
    [(worker, key, lease)] = bench.dispatched
    assert (worker, key) == (b"w", (A, b"1"))
    assert lease == {"deadline": bench.now + 5, "attempt": 1, "digest": frames.body_digest(pack({"agent": "echo"}))}


def test_the_body_is_passed_on_without_being_unpacked():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1", None, b"\xc1 not msgpack at all")
    assert list(worker.runs) == [(A, b"1")]


def test_runs_wait_for_a_slot_and_a_terminal_message_frees_it():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2")
    assert list(worker.runs) == [(A, b"1")]
    bench.finish(worker, (A, b"1"))
    assert list(worker.runs) == [(A, b"2")]
    bench.finish(worker, (A, b"2"))
    bench.assert_idle()


def test_each_mode_has_its_own_workers():
    bench = Bench()
    for mode in MODES:
        bench.add_worker(mode.encode(), mode)
        bench.send(A, mode, mode.encode())
    assert [(worker, key[1]) for worker, key, _ in bench.dispatched] == [(m.encode(),) * 2 for m in MODES]


def test_the_worker_with_the_most_free_slots_is_chosen():
    bench = Bench()
    bench.add_worker(b"small", slots=1)
    bench.add_worker(b"large", slots=3)
    for number in range(4):
        bench.send(A, "run", b"%d" % number)
    assert [worker for worker, _, _ in bench.dispatched].count(b"large") == 3


def test_rule_11_the_queue_is_served_round_robin_over_clients():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"first")
    for number in range(5):
        bench.send(A, "run", b"a%d" % number)
    for number in range(2):
        bench.send(B, "run", b"b%d" % number)
    order = []
    while worker.runs:
        [key] = worker.runs
        order.append(key[1])
        bench.finish(worker, key)
    assert order == [b"first", b"a0", b"b0", b"a1", b"b1", b"a2", b"a3", b"a4"]


@pytest.mark.parametrize(
    ("bounds", "accepted"),
    [({"max_queued": 3}, 3), ({"max_queued_per_client": 2}, 2), ({"max_queued_bytes": 150}, 1)],
)
def test_rule_11_requests_over_the_limits_are_rejected_as_overloaded(bounds, accepted):
    bench = Bench(**bounds)
    bench.add_worker(b"w")
    bench.send(A, "run", b"running")
    answers = [bench.send(A, "run", b"%d" % number, None, b"x" * 100) for number in range(5)]
    assert [bool(answer) for answer in answers] == [False] * accepted + [True] * (5 - accepted)
    body = unpack(answers[-1][0].body, "error")
    assert body["error_type"] == "overloaded"
    assert body["retryable"] is True
    assert body["details"]["retry_after_ms"] >= 100


def test_the_limit_of_one_client_leaves_room_for_others():
    bench = Bench(max_queued_per_client=1)
    bench.add_worker(b"w")
    bench.send(A, "run", b"running")
    assert not bench.send(A, "run", b"2")
    assert bench.send(A, "run", b"3")
    assert not bench.send(B, "run", b"1")


def test_ack_is_sent_on_request():
    bench = Bench()
    bench.add_worker(b"w")
    bench.send(A, "run", b"1", {"ack": True})
    assert bench.replies(A, b"1") == [("accepted", {"duplicate": False})]


def test_rule_10_a_run_whose_deadline_passes_in_the_queue_is_never_started():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2", {"timeout_ms": 1000})
    bench.pass_time(0.9)
    assert bench.replies(A, b"2") == []
    assert bench.broker.next_timer() <= bench.now + 0.1 + 1e-6
    bench.pass_time(0.11)
    assert error_type(bench.replies(A, b"2")) == "deadline_exceeded"
    bench.finish(worker, (A, b"1"))
    assert len(bench.dispatched) == 1


def test_rule_10_a_slot_that_frees_just_after_the_deadline_starts_no_run():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2", {"timeout_ms": 1000})
    bench.now += 1.1  # without a Tick
    bench.finish(worker, (A, b"1"))
    assert len(bench.dispatched) == 1
    assert error_type(bench.replies(A, b"2")) == "deadline_exceeded"


def test_rule_10_time_counts_from_arrival_also_during_recovery():
    bench = Bench(recovered=False)
    bench.send(A, "run", b"1", {"timeout_ms": 3000})
    bench.add_worker(b"w")
    bench.pass_time(RECOVERY_S)
    assert bench.dispatched[0][2]["deadline"] == 1003.0


def test_rule_10_time_spent_digesting_a_large_body_counts():
    bench = Bench(recovered=False)
    frames = [b"run", b"1", pack({"timeout_ms": 6000}), pack({})]
    bench.feed(FromClient(A, frames, bench.now - 1.0, b"digest"))
    bench.add_worker(b"w")
    bench.pass_time(RECOVERY_S)
    assert bench.dispatched[0][2]["deadline"] == 1005.0


def test_held_requests_are_answered_when_the_broker_stops():
    bench = Bench(recovered=False)
    bench.send(A, "run", b"1")
    bench.stop()
    bench.pass_time(RECOVERY_S)
    assert bench.broker.stopped
    assert error_type(bench.replies(A, b"1")) == "shutting_down"


def test_a_queue_of_length_zero_still_serves_requests_with_a_free_worker():
    bench = Bench(max_queued=0, max_queued_bytes=0)
    bench.add_worker(b"w")
    assert bench.send(A, "run", b"1", None, b"body") == []
    assert error_type_of(bench.send(A, "run", b"2")) == "overloaded"


@pytest.mark.parametrize(
    "ready", [b"\xc1", pack({"v": 1}), pack({"v": 1, "mode": "new", "slots": 1, "name": "n", "holds": []})]
)
def test_a_worker_with_a_malformed_registration_is_logged_and_gets_no_work(ready):
    bench = Bench()
    bench.feed(FromWorker(b"w", b"ready", ready))
    assert bench.notes[-1].level >= 40
    assert bench.pong()["modes"]["run"]["workers"] == 0


def test_a_flood_of_malformed_messages_writes_few_log_lines():
    bench = Bench()
    for _ in range(1000):
        bench.send(A, "nonsense", b"1")
    bench.now += 2
    bench.send(A, "nonsense", b"1")
    assert len(bench.notes) < 2 * BAD_INPUT_LINES_PER_SECOND
    assert any("980 more" in note.text for note in bench.notes)


def test_the_broker_answers_the_cancel_of_a_queued_run():
    bench = Bench()
    bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2")
    bench.send(A, "cancel", b"2")
    [(kind, body)] = bench.replies(A, b"2")
    assert (kind, body["error_type"], body["details"]["by"]) == ("error", "cancelled", "broker")
    assert "seq" not in body


def test_rule_2_the_worker_answers_the_cancel_of_a_running_run():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "cancel", b"1")
    bench.send(A, "cancel", b"1")
    assert worker.asked_to_end == [(b"1", "cancelled")]
    assert bench.replies(A, b"1") == []


def test_rule_3_a_late_cancel_is_refused_and_an_unknown_id_is_an_error():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.finish(worker, (A, b"1"))
    bench.send(A, "cancel", b"1")
    assert bench.replies(A, b"1")[-1][0] == "refused"
    bench.send(A, "cancel", b"nobody")
    [(kind, body)] = bench.replies(A, b"nobody")
    assert (kind, body["error_type"], body["details"]["may_have_run"]) == ("error", "unknown_request", True)


def test_rule_3_malformed_input_for_an_open_run_is_refused_and_the_run_continues():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "no_such_kind", b"1")
    bench.send(A, "run", b"1", {"unknown": 1})
    assert [(kind, body["error_type"]) for kind, body in bench.replies(A, b"1")] == [
        ("refused", "unknown_kind"),
        ("refused", "invalid_request"),
    ]
    bench.finish(worker, (A, b"1"))
    assert len(bench.terminals((A, b"1"))) == 1


def test_rule_4_a_repeated_request_attaches_to_the_same_run():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=5)
    bench.send(A, "run", b"1", None, b"body")
    bench.send(A, "run", b"1", None, b"body")
    assert len(bench.dispatched) == 1
    assert bench.replies(A, b"1") == [("accepted", {"duplicate": True})]
    assert worker.resumed == [((A, b"1"), 1)]
    bench.finish(worker, (A, b"1"))
    bench.send(A, "run", b"1", None, b"body")
    assert len(bench.dispatched) == 1
    assert len(worker.resumed) == 2


def test_rule_4_the_same_id_from_another_client_is_another_run():
    bench = Bench()
    bench.add_worker(b"w", slots=5)
    bench.send(A, "run", b"1")
    bench.send(B, "run", b"1")
    assert len(bench.dispatched) == 2


@pytest.mark.parametrize(("kind", "body"), [("run", b"another"), ("run_stream", b"body")])
def test_rule_4_a_repeated_id_with_another_kind_or_body_is_refused(kind, body):
    bench = Bench()
    bench.add_worker(b"w", slots=5)
    bench.send(A, "run", b"1", None, b"body")
    bench.send(A, kind, b"1", None, body)
    [(answer, reply)] = bench.replies(A, b"1")
    assert (answer, reply["error_type"], reply["of"]) == ("refused", "invalid_request", kind)


def test_rule_4_an_id_can_be_reused_after_the_resume_window():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.finish(worker, (A, b"1"))
    bench.pass_time(limits.RESUME_WINDOW + 1)
    bench.send(A, "run", b"1")
    assert len(bench.dispatched) == 2


def test_runs_ended_by_the_broker_are_replayed_by_the_broker():
    bench = Bench()
    bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2")
    bench.send(A, "cancel", b"2")
    bench.send(A, "run", b"2")
    kinds = [kind for kind, _ in bench.replies(A, b"2")]
    assert kinds == ["error", "accepted", "resumed", "error"]


def test_resume_of_a_queued_run_and_of_an_unknown_run():
    bench = Bench()
    bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2")
    bench.send(A, "resume", b"2", {"from": 1})
    assert bench.replies(A, b"2") == [("resumed", {"from": 1, "gap": False, "open_calls": []})]
    bench.send(A, "resume", b"3", {"from": 1})
    assert error_type(bench.replies(A, b"3")) == "unknown_request"


def test_the_runs_of_a_lost_worker_end_as_worker_lost_and_its_slots_are_removed():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=3)
    bench.add_worker(b"other")
    bench.send(A, "run", b"1", {"max_attempts": 2})
    bench.send(A, "run", b"2")
    bench.chunk(worker, (A, b"1"))
    bench.lose(worker)
    for id in (b"1", b"2"):
        [(_, body)] = bench.terminals((A, id))
        assert (body["error_type"], body["retryable"], body["details"]["by"]) == ("worker_lost", True, "broker")
    bench.assert_idle()


def test_rule_4_a_run_is_retried_only_with_max_attempts_and_before_anything_was_relayed():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1", {"max_attempts": 2}, b"the body")
    bench.lose(worker)
    assert bench.terminals((A, b"1")) == []
    second = bench.add_worker(b"w2")
    assert [lease["attempt"] for _, _, lease in bench.dispatched] == [1, 2]
    bench.lose(second)
    assert len(bench.terminals((A, b"1"))) == 1


def test_a_run_that_was_asked_to_end_is_not_retried():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1", {"max_attempts": 5})
    bench.send(A, "cancel", b"1")
    bench.lose(worker)
    assert len(bench.terminals((A, b"1"))) == 1


def test_a_leaving_worker_gets_no_new_runs_and_finishes_its_open_ones():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=2)
    bench.send(A, "run", b"1")
    bench.feed_control(worker, b"leaving")
    bench.send(A, "run", b"2")
    assert list(worker.runs) == [(A, b"1")]
    assert bench.pong()["draining"] is True
    bench.add_worker(b"new")
    assert [key for _, key, _ in bench.dispatched] == [(A, b"1"), (A, b"2")]
    bench.finish(worker, (A, b"1"))
    bench.lose(worker)
    assert [kind for kind, _ in bench.terminals((A, b"1"))] == ["complete"]


def test_a_worker_without_progress_gets_no_new_runs_until_it_makes_progress():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.now += PROGRESS_TIMEOUT_S
    bench.send(A, "run", b"1")
    assert not worker.runs
    bench.pass_time(0)
    assert worker.runs


def test_a_stuck_slot_is_taken_out_of_service_and_returned():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=2)
    bench.send(A, "run", b"1")
    bench.feed(FromWorker(worker.identity, b"slots", pack({"slots": 1})))
    bench.finish(worker, (A, b"1"), b"error")
    bench.send(A, "run", b"2")
    bench.send(A, "run", b"3")
    assert list(worker.runs) == [(A, b"2")]
    bench.feed(FromWorker(worker.identity, b"slots", pack({"slots": 2})))
    assert list(worker.runs) == [(A, b"2"), (A, b"3")]


def test_a_mode_without_workers_holds_its_queue_for_a_while_and_then_answers_no_worker():
    bench = Bench()
    bench.send(A, "run", b"1")
    assert bench.replies(A, b"1") == []
    bench.pass_time(NO_WORKER_GRACE_S)
    assert error_type(bench.replies(A, b"1")) == "no_worker"
    [answer] = bench.send(A, "run", b"2")
    assert unpack(answer.body, "error")["error_type"] == "no_worker"


def test_rule_8_runs_of_a_gone_client_are_cancelled_or_kept_after_the_grace_period():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=2)
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2", {"on_disconnect": "keep"})
    bench.send(A, "run", b"3")
    bench.client_gone(A)
    bench.pass_time(CLIENT_GRACE_S - 1)
    assert worker.asked_to_end == []
    bench.pass_time(1 + 2 * ALIVE_INTERVAL_S)
    assert worker.asked_to_end == [(b"1", "client_gone")]
    assert error_type(bench.replies(A, b"3")) == "cancelled"


@pytest.mark.parametrize("sign", ["a send that reached it", "a message of its own"])
def test_rule_8_a_client_that_returns_within_the_grace_period_keeps_its_runs(sign):
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.client_gone(A)
    bench.pass_time(10)
    if sign == "a message of its own":
        bench.send(A, "ping", b"p")
    else:
        bench.client_back(A)
    bench.pass_time(30)
    assert worker.asked_to_end == []


def test_rule_7_workers_are_notified_when_a_client_is_gone_and_when_it_returns():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2")  # it is queued: there is no worker to notify
    bench.client_gone(A)
    assert worker.told == [("gone", b"1", b"")]
    bench.register(worker)  # after a reconnect it assumes that all clients are connected
    assert worker.told == [("gone", b"1", b"")] * 2
    bench.finish(worker, (A, b"1"))
    assert worker.told[2:] == [("gone", b"2", b"")]  # started while its client is away
    bench.client_back(A)
    assert worker.told[3:] == [("back", b"2", b"")]


def test_messages_to_a_run_go_to_the_worker_that_executes_it():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    assert bench.send(A, "steer", b"1", None, b"more") == []
    assert bench.send(A, "tool_result", b"1", {"call_id": "c"}, b"result") == []
    assert worker.told == [("steer", b"1", b"more"), ("tool_result", b"1", b"result")]


def test_rule_3_a_late_message_is_refused_and_one_for_an_unknown_run_is_an_error():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.finish(worker, (A, b"1"))
    for kind, header in (("steer", {}), ("tool_result", {"call_id": "c"}), ("cancel", {})):
        [answer] = bench.send(A, kind, b"1", header)
        body = unpack(answer.body, "refused")
        assert (answer.kind, body["of"], body["error_type"]) == (b"refused", kind, "invalid_request")
        assert body.get("call_id") == header.get("call_id")
        assert error_type_of(bench.send(B, kind, b"1", header)) == "unknown_request"  # of another client


def test_a_tool_result_that_is_too_large_is_refused_with_its_call_id():
    bench = Bench(max_body=100)
    bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    [answer] = bench.send(A, "tool_result", b"1", {"call_id": "c"}, b"x" * 101)
    body = unpack(answer.body, "refused")
    assert (body["of"], body["error_type"], body["call_id"]) == ("tool_result", "too_large", "c")


def test_steer_messages_wait_with_a_queued_run_and_are_bounded():
    bench = Bench(max_queued_bytes=1000)
    bench.send(A, "run", b"1", None, b"x" * 100)
    for number in range(UNDELIVERED_KEPT):
        assert bench.send(A, "steer", b"1", None, b"%02d" % number) == []
    assert error_type_of(bench.send(A, "steer", b"1", None, b"one too many")) == "overloaded"
    bench.send(A, "run", b"2", None, b"y" * 100)
    assert error_type_of(bench.send(A, "steer", b"2", None, b"z" * 800)) == "overloaded"
    assert error_type_of(bench.send(A, "tool_result", b"2", {"call_id": "c"}, b"")) == "invalid_request"
    worker = bench.add_worker(b"w", slots=2)
    assert [body for kind, _, body in worker.told if kind == "steer"] == [b"%02d" % n for n in range(UNDELIVERED_KEPT)]
    assert bench.broker.workers.pools["run"].queue.bytes == 0


def test_an_adopted_run_receives_earlier_messages_and_the_presence_of_its_client():
    bench = Bench()
    bench.send(A, "run", b"1", None, b"body")
    bench.send(A, "steer", b"1", None, b"more")
    bench.client_gone(A)
    held = {"client": A, "id": b"1", "kind": "run", "digest": frames.body_digest(b"body"), "deadline": bench.now + 9}
    worker = bench.add_worker(b"w", holds=[{**held, "keep": False, "seq": 0, "ended": False}])
    assert worker.told == [("steer", b"1", b"more"), ("gone", b"1", b"")]


def test_messages_to_a_run_that_never_started_are_refused():
    bench = Bench()
    bench.send(A, "run", b"1")
    bench.send(A, "steer", b"1", None, b"more")
    bench.send(A, "cancel", b"1")
    assert [(kind, body.get("of")) for kind, body in bench.replies(A, b"1")] == [("refused", "steer"), ("error", None)]


def test_a_run_that_received_a_message_is_not_started_again():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1", {"max_attempts": 3})
    bench.send(A, "steer", b"1", None, b"more")
    bench.lose(worker)
    assert error_type(bench.replies(A, b"1")) == "worker_lost"


def test_call_tool_goes_to_the_workers_of_mode_run():
    bench = Bench()
    bench.add_worker(b"s", "run_stream")
    worker = bench.add_worker(b"w")
    bench.send(A, "call_tool", b"1", None, b"body")
    assert bench.dispatched[0][:2] == (b"w", (A, b"1"))
    assert bench.pong()["modes"]["run"]["free"] == 0
    bench.finish(worker, (A, b"1"))
    assert bench.pong()["modes"]["run"]["free"] == 1


def test_rule_9_only_the_running_runs_of_a_slow_client_are_ended():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=2)
    bench.send(A, "run", b"1")
    bench.send(B, "run", b"1")
    bench.client_blocked(A)
    assert worker.asked_to_end == [(b"1", "slow_consumer")]


def test_alive_is_sent_every_two_seconds_to_clients_with_unfinished_requests():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2")
    sent = [bench.pass_time(ALIVE_INTERVAL_S) for _ in range(2)]
    assert sent == [[ToClient(A, b"alive", b"", pack({"boot": "boot", "open": 2}))]] * 2
    bench.finish(worker, (A, b"1"))
    bench.finish(worker, (A, b"2"))
    assert bench.pass_time(ALIVE_INTERVAL_S) == []


def test_a_req_client_gets_no_alive_instead_of_its_answer():
    bench = Bench()
    bench.add_worker(b"w")
    bench.feed(FromClient(A, [b"", b"run", b"1", b"", b""], bench.now))
    assert bench.pass_time(ALIVE_INTERVAL_S) == []


def test_pong_reports_a_takeover_of_the_routing_id_for_a_minute():
    bench = Bench()
    pong = lambda client: unpack(bench.send(client, "ping", b"p")[0].body, "pong")["shared"]  # noqa: E731
    assert pong(A) is False
    bench.feed(TakenOver(A))
    assert [pong(A), pong(A), pong(B)] == [True, True, False]
    assert bench.broker.takeovers == 1
    bench.pass_time(SHARED_WINDOW_S + 1)
    assert pong(A) is False


def test_a_restarted_process_with_another_instance_is_no_takeover():
    bench = Bench()
    pongs = [unpack(bench.send(A, "ping", b"p", {"instance": name})[0].body, "pong") for name in ("one", "two")]
    assert [pong["shared"] for pong in pongs] == [False, False]


def test_an_error_does_not_show_a_routing_id_that_zeromq_has_assigned():
    bench = Bench(max_queued_per_client=0)
    [answer] = bench.send(b"\0\x6b\x8b\x45\x67", "run", b"1")
    message = unpack(answer.body, "error")["message"]
    assert "client without a routing id already has 0 queued run requests" in message


def test_rule_6_a_new_broker_holds_requests_about_unknown_runs_until_workers_have_registered():
    bench = Bench(expected_workers=1, recovered=False)
    body = b"the body"
    bench.send(A, "run", b"held", None, body)
    bench.send(A, "resume", b"held", {"from": 3})
    bench.send(A, "cancel", b"unknown")
    assert bench.to_clients == []
    assert bench.pong()["settling"] is True
    digest = blake2b(body, digest_size=16).digest()
    hold = {
        "client": A,
        "id": b"held",
        "kind": "run",
        "digest": digest,
        "deadline": 2000.0,
        "keep": False,
        "seq": 2,
        "ended": False,
    }
    worker = bench.add_worker(b"w", holds=[hold])
    worker.runs[A, b"held"] = 2
    assert bench.broker.recovering is False
    assert bench.dispatched == []  # never a second run
    assert bench.replies(A, b"held")[0] == ("accepted", {"duplicate": True})
    assert worker.resumed == [((A, b"held"), 1), ((A, b"held"), 3)]
    assert error_type(bench.replies(A, b"unknown")) == "unknown_request"
    bench.finish(worker, (A, b"held"))
    bench.assert_idle()


def test_recovery_ends_after_a_time_limit():
    bench = Bench(expected_workers=7, recovered=False)
    bench.send(A, "run", b"1")
    bench.add_worker(b"w")
    assert bench.dispatched == []
    bench.pass_time(RECOVERY_S)
    assert len(bench.dispatched) == 1


def test_a_stopping_broker_answers_queued_runs():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2")
    bench.feed_control(worker, b"leaving")
    bench.stop()
    assert error_type(bench.replies(A, b"2")) == "shutting_down"
    assert bench.replies(A, b"1") == []


def test_describe_needs_a_worker_but_no_free_slot():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "describe", b"d")
    assert [key[1] for _, key, _ in bench.dispatched] == [b"1", b"d"]
    bench.send(A, "describe", b"d")
    bench.send(A, "resume", b"d")
    bench.finish(worker, (A, b"d"), b"catalog")
    assert [kind for kind, _ in bench.replies(A, b"d")] == ["accepted", "resumed", "resumed", "catalog"]
    bench.send(A, "describe", b"d")  # its id can be reused at once
    assert len(bench.dispatched) == 3


def test_a_worker_with_another_protocol_version_gets_no_work():
    bench = Bench()
    bench.feed(FromWorker(b"w", b"ready", pack({"v": 99})))
    bench.send(A, "run", b"1")
    assert bench.dispatched == []
    assert "99" in bench.notes[-1].text


def test_a_terminal_message_from_a_worker_that_does_not_hold_the_run_is_ignored():
    bench = Bench()
    worker = bench.add_worker(b"w")
    other = bench.add_worker(b"other", "run_stream")
    bench.send(A, "run", b"1")
    other.runs[A, b"1"] = 0
    bench.finish(other, (A, b"1"))
    assert bench.pong()["modes"]["run"]["free"] == 0
    assert worker.runs


def test_the_heap_of_deadlines_grows_with_queued_runs_and_not_with_served_ones():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    for number in range(5000):
        bench.send(A, "run", b"%d" % number)
        bench.send(A, "run", b"q%d" % number)
        bench.finish(worker, (A, b"%d" % number))
        bench.finish(worker, (A, b"q%d" % number))
    assert bench.broker.runs.deadlines <= 1001


def test_an_illegal_transition_raises():
    with pytest.raises(IllegalTransitionError, match="DISPATCH in state ENDED"):
        step(RUN, RunState.ENDED, RunEvent.DISPATCH)


def test_final_states_have_no_transitions():
    assert not [state for state, _ in RUN if state is RunState.ENDED]
    assert not [state for state, _ in WORKER if state is WorkerState.LOST]
