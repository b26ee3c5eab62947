"""What the core does when processes hang, die, come back or go: one test for each promise, in memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from axon_zmq.broker.core.broker import ALIVE_INTERVAL_S, CLIENT_GRACE_S, RECOVERY_S
from axon_zmq.broker.core.effects import Dequeued, Enqueued, Registered, ToClient, Unregistered
from axon_zmq.broker.core.events import ClientBlocked, FromClient, FromWorker, Tick, WorkerGone
from axon_zmq.broker.core.health import CRASH_LOOP, CRASH_WINDOW_S, MISSING_GRACE_S
from axon_zmq.broker.core.pools import SUSPECTS_PER_WORKER
from axon_zmq.broker.core.quarantine import QUARANTINE_S, SUSPECTS_KEPT, Quarantine
from axon_zmq.broker.core.recovery import PreviousState
from axon_zmq.broker.core.workers import HOUSEKEEPING_S
from axon_zmq.broker.journal import Journal, JournalState
from axon_zmq.process.event_queue import EventQueue
from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import body_digest
from axon_zmq.protocol.msgpack import pack, unpack
from tests.support.broker_helpers import Bench, FakeWorker, error_type

A, B = b"client-a", b"client-b"


def body_of(sent: list[ToClient]) -> dict:
    [answer] = sent
    return unpack(answer.body, "a reply")


def let_time_pass(bench: Bench, seconds: float, but: FakeWorker | None = None) -> None:
    """In steps as small as the loop's, all workers but one making progress."""
    for _ in range(int(seconds / HOUSEKEEPING_S)):
        others = [worker for worker in bench.workers.values() if worker is not but]
        for worker in others:
            bench.feed_control(worker, b"progress")
        silent = bench.workers
        bench.workers = {}
        bench.pass_time(HOUSEKEEPING_S)
        bench.workers = silent


def held(key: tuple[bytes, bytes], *, ended: bool = False, keep: bool = False) -> dict:
    client, id = key
    return {
        "client": client,
        "id": id,
        "kind": "run",
        "digest": body_digest(pack({})),
        "deadline": 2000.0,
        "keep": keep,
        "seq": 3,
        "ended": ended,
    }


# --- workers that hang -----------------------------------------------------------------------------


def test_a_worker_without_progress_is_killed_once_and_lost_only_when_its_link_is_down():
    bench = Bench(hang_seconds=10)
    hung, well = bench.add_worker(b"hung"), bench.add_worker(b"well")
    bench.send(A, "run", b"1")
    [(holder, key, _)] = bench.dispatched
    hung, well = (hung, well) if holder == b"hung" else (well, hung)
    let_time_pass(bench, 9, but=hung)
    assert bench.killed == []
    let_time_pass(bench, 3, but=hung)
    assert bench.killed == [hung.identity]
    assert bench.terminals(key) == []
    assert bench.broker.workers.get(hung.identity).state.value == "killed"
    bench.lose(hung)
    assert error_type(bench.replies(*key)) == "worker_lost"
    assert bench.killed == [hung.identity]


def test_a_killed_worker_gets_no_new_runs_whatever_it_still_says():
    bench = Bench(hang_seconds=2)
    hung = bench.add_worker(b"hung")
    let_time_pass(bench, 3, but=hung)
    bench.feed_control(hung, b"progress")
    bench.register(hung)
    bench.send(A, "run", b"1")
    assert bench.dispatched == []


def test_time_in_which_the_broker_itself_stood_still_does_not_count():
    bench = Bench(hang_seconds=10)
    worker = bench.add_worker(b"w")
    bench.workers = {}
    bench.pass_time(60)  # one look after a minute: the machine slept
    assert bench.killed == []
    bench.workers = {b"w": worker}
    let_time_pass(bench, 9, but=worker)
    assert bench.killed == []


def test_an_exited_worker_is_marked_at_once_and_lost_when_all_was_read():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=5)
    bench.send(A, "run", b"1")
    bench.feed(FromWorker(b"listener", b"exited", pack({"name": "w", "pid": 1})))  # another process's pid
    bench.send(A, "run", b"2")
    bench.feed(FromWorker(b"listener", b"exited", pack({"name": "w", "pid": worker.pid})))
    bench.send(A, "run", b"3")
    assert [key[1] for _, key, _ in bench.dispatched] == [b"1", b"2"]
    bench.finish(worker, (A, b"1"))  # it still got that out
    bench.lose(worker)
    assert [kind for kind, _ in bench.terminals((A, b"1"))] == ["complete"]
    assert error_type(bench.replies(A, b"2")) == "worker_lost"


def test_a_worker_that_hung_when_the_broker_died_is_killed():
    previous = PreviousState(workers={b"run-1.abc": 4711, b"run-2.def": 4712, b"run-3.ghi": 4713})
    bench = Bench(previous=previous, settle=False, hang_seconds=30)
    listener = FakeWorker(b"events", "run", 0)
    programs = {"run-1": {"state": "RUNNING", "pid": 4711}, "run-2": {"state": "RUNNING", "pid": 5000}}
    bench.feed_control(listener, b"processes", programs=programs | {"run-3": {"state": "RUNNING", "pid": 4713}})
    bench.pass_time(RECOVERY_S)
    bench.add_worker(b"run-3.ghi")  # it was only slow
    while bench.now < 1029:
        bench.pass_time(HOUSEKEEPING_S)
    assert bench.killed == []
    for _ in range(8):
        bench.pass_time(HOUSEKEEPING_S)
    assert bench.killed == [b"run-1.abc"]  # run-2 is another process by now


def test_after_a_standstill_idle_workers_are_used_again():
    bench = Bench()
    bench.add_worker(b"w")
    bench.now += 20  # the machine slept
    assert bench.send(A, "run", b"1") == []
    bench.feed(Tick())
    assert [key for _, key, _ in bench.dispatched] == [(A, b"1")]


# --- requests that kill ----------------------------------------------------------------------------


def test_at_most_two_workers_die_of_a_request_whatever_its_attempts():
    bench = Bench()
    for number in range(5):
        bench.add_worker(b"w%d" % number)
    bench.send(A, "run", b"1", {"max_attempts": 10}, b"poison")
    for _ in range(2):
        [holder] = bench.holders((A, b"1"))
        bench.lose(holder)
    assert error_type(bench.replies(A, b"1")) == "quarantined"
    assert len(bench.dispatched) == 2


def test_two_copies_of_a_request_on_one_worker_are_one_death():
    bench = Bench()
    first = bench.add_worker(b"w1", slots=2)
    for number in range(2):
        bench.send(A, "run", b"%d" % number, None, b"twin")
    bench.lose(first)
    bench.add_worker(b"w2")
    assert bench.send(A, "run", b"3", None, b"twin") == []
    assert (A, b"3") in [key for _, key, _ in bench.dispatched]


def test_a_quarantined_request_is_refused_at_once_under_any_id_and_for_any_client_until_its_time_is_over():
    bench = Bench()
    for number in range(2):
        worker = bench.add_worker(b"w%d" % number)
        bench.send(A, "run", b"%d" % number, None, b"poison")
        bench.lose(worker)
    bench.add_worker(b"w3", slots=9)
    body = body_of(bench.send(B, "run", b"1", None, b"poison"))
    assert (body["error_type"], body["retryable"]) == ("quarantined", False)
    assert 0 < body["details"]["retry_after_ms"] <= QUARANTINE_S * 1000
    assert bench.send(B, "run", b"2", None, b"another") == []
    bench.pass_time(QUARANTINE_S + 1)
    assert bench.send(B, "run", b"3", None, b"poison") == []


def test_a_queued_copy_of_what_was_quarantined_meanwhile_is_not_started():
    bench = Bench()
    first = bench.add_worker(b"w1")
    for number in range(3):
        bench.send(A, "run", b"%d" % number, None, b"poison")
    bench.lose(first)
    bench.lose(bench.add_worker(b"w2"))
    bench.add_worker(b"w3")
    assert len(bench.dispatched) == 2
    assert error_type(bench.replies(A, b"2")) == "quarantined"


def test_a_request_that_completes_is_acquitted():
    bench = Bench()
    for number in range(6):
        worker = bench.add_worker(b"w%d" % number)
        bench.send(A, "run", b"a%d" % number, None, b"same")
        bench.lose(worker)
        again = bench.add_worker(b"again%d" % number)
        bench.send(A, "run", b"b%d" % number, None, b"same")
        bench.finish(again, (A, b"b%d" % number))
        bench.lose(again)
    assert bench.pong()["modes"]["run"]["queued"] == 0
    assert all(body["error_type"] == "worker_lost" for kind, body in bench.terminals((A, b"a5")))


def test_of_the_runs_that_died_together_few_share_a_worker_again():
    bench = Bench()
    first = bench.add_worker(b"w1", slots=100)
    for number in range(50):
        bench.send(A, "run", b"%d" % number, {"max_attempts": 2}, b"body %d" % number)
    second = bench.add_worker(b"w2", slots=100)
    bench.lose(first)
    assert len(second.runs) == SUSPECTS_PER_WORKER
    bench.send(B, "run", b"innocent")
    assert (B, b"innocent") in second.runs  # nobody waits behind suspects
    while second.runs:
        bench.finish(second, next(iter(second.runs)))
    assert all(bench.terminals((A, b"%d" % number)) for number in range(50))
    bench.assert_idle()


def test_a_worker_that_dies_while_it_leaves_incriminates_nobody():
    bench = Bench()
    for number in range(3):
        worker = bench.add_worker(b"w%d" % number)
        bench.send(A, "run", b"%d" % number, None, b"long")
        bench.feed_control(worker, b"leaving")
        bench.lose(worker)
    bench.add_worker(b"last")
    assert bench.send(A, "run", b"9", None, b"long") == []


def test_suspects_are_bounded_and_forgotten():
    quarantine = Quarantine()
    for number in range(SUSPECTS_KEPT + 10):
        quarantine.strike(b"%d" % number, 0.0)
    assert not quarantine.suspects(b"0", 1.0)
    assert quarantine.suspects(b"11", 1.0)
    quarantine.tidy(QUARANTINE_S)
    assert repr(quarantine) == "<Quarantine 0 suspects>"


def test_a_describe_is_nobodys_fault():
    bench = Bench()
    for name in (b"w1", b"w2", b"w3"):
        bench.add_worker(name)
    for number in range(3):
        assert bench.send(A, "describe", b"%d" % number) == []
        [(holder, _, _)] = bench.dispatched[-1:]
        bench.lose(bench.workers[holder])
        assert error_type(bench.replies(A, b"%d" % number)) == "worker_lost"


def test_suspects_and_others_take_turns():
    bench = Bench()
    doomed = bench.add_worker(b"doomed")
    bench.send(A, "run", b"suspect", {"max_attempts": 2})
    bench.lose(doomed)
    for number in range(6):
        bench.send(B, "run", b"%d" % number, None, b"%d" % number)
    well = bench.add_worker(b"well")
    for _ in range(3):
        [key] = well.runs
        bench.finish(well, key)
    assert [key for _, key, _ in bench.dispatched].count((A, b"suspect")) == 2
    assert bench.dispatched[-1][1][0] == B


# --- a pool that is degraded -----------------------------------------------------------------------


def degraded(bench: Bench) -> list[str]:
    return [mode for mode, pool in bench.pong()["modes"].items() if pool["degraded"]]


def test_a_crash_loop_degrades_its_own_pool_for_a_minute():
    bench = Bench()
    bench.add_worker(b"well", "run_sync")
    for number in range(CRASH_LOOP):
        assert degraded(bench) == []
        worker = FakeWorker(b"run-1.%d" % number, "run", 1)
        bench.workers[worker.identity] = worker
        bench.feed(FromWorker(worker.identity, b"ready", ready(worker, "run-1")))
        bench.lose(worker)
    assert degraded(bench) == ["run"]
    bench.feed(FromWorker(b"run-1.x", b"ready", ready(FakeWorker(b"run-1.x", "run", 1), "run-1")))
    assert degraded(bench) == ["run"]  # it is there again, but for how long
    bench.pass_time(CRASH_WINDOW_S + 1)
    assert degraded(bench) == []


def ready(worker: FakeWorker, name: str) -> bytes:
    said = {"v": 1, "mode": worker.mode, "slots": worker.slots, "name": name, "pid": worker.pid, "holds": []}
    return pack(said)


def test_a_worker_that_does_not_come_back_degrades_its_pool_and_one_that_left_does_not():
    bench = Bench()
    crashed, left = bench.add_worker(b"crashed"), bench.add_worker(b"left", "run_stream")
    bench.feed_control(left, b"leaving")
    bench.lose(left)
    bench.lose(crashed)
    assert degraded(bench) == []
    bench.pass_time(MISSING_GRACE_S + 1)
    assert degraded(bench) == ["run"]
    bench.add_worker(b"crashed")
    assert degraded(bench) == []


@pytest.mark.parametrize("state", ["BACKOFF", "FATAL", "UNKNOWN"])
def test_a_program_that_supervisord_cannot_keep_running_degrades_its_pool(state):
    bench = Bench()
    bench.add_worker(b"run-1")
    programs = {
        "run-1": {"state": "RUNNING", "pid": 4711},
        "run-2": {"state": state, "pid": 0},
        "mine": {"state": "FATAL"},
    }
    bench.feed(FromWorker(b"listener", b"processes", pack({"programs": programs})))
    assert degraded(bench) == ["run"]
    [(peer, kind, body)] = status(bench)
    assert (peer, kind) == (b"operator", "status")
    assert body["modes"]["run"]["reasons"] == [f"run-2 is {state}"]
    assert [worker["name"] for worker in body["workers"]] == ["run-1"]
    programs["run-2"] = {"state": "STOPPED", "pid": 0}
    bench.feed(FromWorker(b"listener", b"processes", pack({"programs": programs})))
    assert degraded(bench) == []


def test_a_process_that_runs_and_does_not_register_degrades_its_pool():
    bench = Bench()
    programs = {"run-1": {"state": "RUNNING", "pid": 4711}}
    bench.feed(FromWorker(b"listener", b"processes", pack({"programs": programs})))
    let_time_pass(bench, MISSING_GRACE_S)
    assert degraded(bench) == []
    let_time_pass(bench, 2)
    assert degraded(bench) == ["run"]
    bench.add_worker(b"run-1")
    bench.pass_time(1)
    assert degraded(bench) == []


def test_what_is_held_too_much_while_settling_never_ends_a_run():
    bench = Bench(settle=False, max_queued=1)
    bench.send(A, "run", b"held")
    for kind, id in (("resume", b"held"), ("run", b"held"), ("cancel", b"of a worker's")):
        [answer] = bench.send(A, kind, id)
        assert (answer.kind, unpack(answer.body, "refused")["error_type"]) == (b"refused", "overloaded")
    assert body_of(bench.send(A, "run", b"new"))["error_type"] == "overloaded"
    bench.add_worker(b"w")
    bench.pass_time(RECOVERY_S)
    assert [key for _, key, _ in bench.dispatched] == [(A, b"held")]


def status(bench: Bench) -> list[tuple[bytes, str, dict]]:
    before = len(bench.controls)
    bench.feed(FromWorker(b"operator", b"status", b""))
    return bench.controls[before:]


@pytest.mark.parametrize("body", [b"\xc1", pack({}), pack({"programs": 5}), pack({"programs": {"run-1": 1}})])
@pytest.mark.parametrize("kind", [b"processes", b"exited", b"handover", b"holds", b"slots"])
def test_what_nobody_understands_is_noted_and_changes_nothing(kind, body):
    bench = Bench()
    bench.add_worker(b"w")
    bench.feed(FromWorker(b"w", kind, body))
    assert bench.notes[-1].level >= 40
    assert bench.pong()["modes"]["run"]["workers"] == 1


def test_one_that_cannot_be_killed_degrades_its_pool():
    bench = Bench(hang_seconds=5)
    bench.add_worker(b"w")
    while bench.now < 1000 + 10 + MISSING_GRACE_S:
        bench.now += HOUSEKEEPING_S
        bench.feed(Tick())
    assert bench.killed == [b"w"]
    assert degraded(bench) == ["run"]


# --- a broker that dies ----------------------------------------------------------------------------


def test_rule_6_what_only_waited_is_known_as_such_and_can_be_sent_again():
    before = Bench()
    worker = before.add_worker(b"w")
    before.send(A, "run", b"running")
    before.send(A, "run", b"waiting")
    assert before.journal == {(A, b"waiting")}
    after = Bench(previous=PreviousState(waiting=frozenset(before.journal), workers={b"w": 4711}), settle=False)
    after.send(A, "resume", b"waiting")
    after.send(A, "resume", b"running")
    after.add_worker(b"w", holds=[held((A, b"running"))])
    after.pass_time(RECOVERY_S)
    [(kind, body)] = after.replies(A, b"waiting")
    assert (kind, body["error_type"], body["details"]["may_have_run"]) == ("error", "unknown_request", False)
    assert after.workers[b"w"].resumed == [((A, b"running"), 1)]
    after.send(A, "run", b"waiting")
    assert after.journal == {(A, b"waiting")}  # it waits again
    assert worker.identity in before.workers


def test_what_only_waited_is_said_for_the_resume_window_and_then_forgotten():
    bench = Bench(previous=PreviousState(waiting=frozenset({(A, b"1")})))
    bench.pass_time(limits.RESUME_WINDOW + 1)
    assert body_of(bench.send(A, "resume", b"1"))["details"]["may_have_run"] is True
    assert bench.journal == set()


def test_a_run_that_was_started_before_is_never_in_the_journal():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1", {"max_attempts": 2})
    bench.lose(worker)
    assert bench.pong()["modes"]["run"]["queued"] == 1
    assert bench.journal == set()


def test_when_all_workers_are_there_again_nothing_sent_within_the_window_can_have_run():
    bench = Bench(previous=PreviousState(workers={b"w1": 1, b"w2": 2}, lost_at=980.0), settle=False)
    bench.add_worker(b"w1")
    bench.add_worker(b"w2")
    bench.pass_time(RECOVERY_S)
    details = body_of(bench.send(A, "resume", b"1"))["details"]
    assert details == {"may_have_run": True, "never_ran_within_ms": 22_000}  # a worker was lost 22 s ago
    bench.pass_time(100)
    details = body_of(bench.send(A, "resume", b"1"))["details"]
    assert details["never_ran_within_ms"] == limits.RESUME_WINDOW * 1000


@pytest.mark.parametrize("previous", [PreviousState(), PreviousState(workers={b"w1": 1, b"dead": 2})])
def test_when_a_worker_is_missing_only_what_came_since_the_boot_is_sure(previous):
    bench = Bench(previous=previous, settle=False)
    bench.add_worker(b"w1")
    bench.pass_time(RECOVERY_S)
    details = body_of(bench.send(A, "resume", b"1"))["details"]
    assert details == {"may_have_run": True, "never_ran_within_ms": RECOVERY_S * 1000}


def test_who_did_not_come_is_written_off_so_that_no_later_broker_is_sure_either():
    bench = Bench(previous=PreviousState(workers={b"w1": 1, b"dead": 2}, lost_at=5.0), settle=False)
    bench.add_worker(b"w1")
    bench.pass_time(RECOVERY_S)
    assert bench.unregistered == [Unregistered(b"dead", bench.now)]


def test_nothing_is_sure_until_everybody_has_read_what_was_left_to_him():
    bench = Bench(previous=PreviousState(workers={}, lost_at=5.0, handover_files=("a", "b")), settle=False)
    bench.pass_time(RECOVERY_S)
    asked = lambda: body_of(bench.send(A, "resume", b"1"))["details"]["never_ran_within_ms"]  # noqa: E731
    assert asked() == RECOVERY_S * 1000
    heir = bench.add_worker(b"heir")
    bench.feed_control(heir, b"holds", holds=[])
    assert asked() == RECOVERY_S * 1000
    bench.feed_control(heir, b"holds", holds=[])
    assert asked() == limits.RESUME_WINDOW * 1000


def test_what_a_worker_forgot_or_could_not_read_is_not_sure():
    bench = Bench(previous=PreviousState(workers={}, lost_at=5.0, handover_files=("a",)), settle=False)
    heir = bench.add_worker(b"heir")
    bench.pass_time(RECOVERY_S)
    bench.feed_control(heir, b"holds", holds=[], forgot_at=bench.now - 1)
    assert body_of(bench.send(A, "resume", b"1"))["details"]["never_ran_within_ms"] == 1000


def test_a_run_that_the_broker_ended_is_not_taken_up_again_from_who_comes_back():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.lose(worker)
    assert error_type(bench.replies(A, b"1")) == "worker_lost"
    bench.add_worker(b"w", holds=[held((A, b"1"))])
    assert (b"w", A, b"1") in bench.broker.relay.disowned_runs
    assert bench.workers[b"w"].asked_to_end == [(b"1", "superseded")]


def test_what_was_said_to_a_queued_run_that_has_ended_elsewhere_is_refused():
    bench = Bench()
    bench.send(A, "run", b"1", None, b"body")
    bench.send(A, "steer", b"1", None, b"more")
    bench.add_worker(b"other", mode="run_stream", holds=[held((A, b"1"), ended=True)])
    refused = [body["of"] for kind, body in bench.replies(A, b"1") if kind == "refused"]
    assert refused == ["steer"]


def test_a_broker_that_is_told_to_stop_while_it_settles_does_so_when_it_has():
    bench = Bench(expected_workers=1, settle=False)
    bench.send(A, "resume", b"1")
    bench.stop()
    assert not bench.broker.stopped
    assert bench.replies(A, b"1") == []
    worker = bench.add_worker(b"w", holds=[held((A, b"1"))])
    assert bench.broker.stopped
    assert worker.resumed == [((A, b"1"), 1)]


def test_what_comes_of_an_effect_waits_until_the_others_were_applied():
    """A client is blocked by `accepted`: the run must be at its worker before it is asked to end."""
    order: list[str] = []

    class Core:
        def receive(self, event: object, _now: float) -> list[object]:
            order.append(type(event).__name__)
            return [1, 2] if isinstance(event, Tick) else []

    def apply(effect: object) -> None:
        order.append(str(effect))
        if effect == 1:
            events.put(ClientBlocked(A))

    events = EventQueue(Core().receive, lambda: 0.0, apply)
    events.put(Tick())
    assert order == ["Tick", "1", "2", "ClientBlocked"]


def test_settling_ends_when_every_process_of_supervisords_has_registered():
    bench = Bench(settle=False)
    bench.add_worker(b"run-1")
    programs = {
        "run-1": {"state": "RUNNING", "pid": 1},
        "run-2": {"state": "STOPPING", "pid": 2},
        "run-3": {"state": "FATAL", "pid": 0},
    }
    bench.feed(FromWorker(b"listener", b"processes", pack({"programs": programs})))
    assert bench.broker.recovering
    bench.add_worker(b"run-2")
    assert not bench.broker.recovering


def test_a_restart_of_the_broker_alone_ends_nothing_that_waits():
    bench = Bench()
    bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2")
    bench.send(A, "run_stream", b"3")  # no worker of that mode is there to go on
    bench.stop()
    assert bench.replies(A, b"2") == []
    assert bench.journal == {(A, b"2")}
    assert error_type(bench.replies(A, b"3")) == "shutting_down"


def test_an_adopted_run_is_never_started_again():
    bench = Bench(settle=False)
    worker = bench.add_worker(b"w", holds=[held((A, b"1"))])
    bench.pass_time(RECOVERY_S)
    bench.add_worker(b"other")
    bench.feed(WorkerGone(worker.identity))
    assert error_type(bench.replies(A, b"1")) == "worker_lost"
    assert bench.dispatched == []


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_that_was_sent_again_and_waits_is_found_at_a_late_holder(ended):
    bench = Bench()
    bench.send(A, "run", b"1")
    late = bench.add_worker(b"late", slots=0, holds=[held((A, b"1"), ended=ended)])
    assert bench.replies(A, b"1") == [("accepted", {"duplicate": True})]
    assert late.resumed == [((A, b"1"), 1)]
    assert bench.journal == set()
    assert bench.dispatched == []


def test_a_late_holder_of_a_run_that_was_started_elsewhere_is_told_to_end_and_not_heard():
    bench = Bench()
    first = bench.add_worker(b"first")
    bench.send(A, "run", b"1")
    late = bench.add_worker(b"late", holds=[held((A, b"1"))])
    assert late.asked_to_end == [(b"1", "superseded")]
    assert bench.broker.relay.disowned_runs == {(b"late", A, b"1")}
    bench.lose(late)
    assert bench.broker.relay.disowned_runs == set()
    bench.finish(first, (A, b"1"))
    assert len(bench.terminals((A, b"1"))) == 1


def test_rule_8_the_grace_period_counts_from_the_end_of_settling():
    bench = Bench(settle=False)
    worker = bench.add_worker(b"w", holds=[held((A, b"1"))])
    bench.client_gone(A)
    bench.pass_time(RECOVERY_S)
    bench.pass_time(CLIENT_GRACE_S - 0.5)
    assert worker.asked_to_end == []
    bench.pass_time(ALIVE_INTERVAL_S + 1)
    assert worker.asked_to_end == [(b"1", "client_gone")]


# --- ended runs that are handed over ---------------------------------------------------------------


def hand_over(bench: Bench, worker: FakeWorker, file: str = "w.msgpack") -> None:
    bench.feed_control(worker, b"leaving")
    bench.feed_control(worker, b"handover", file=file)
    assert (worker.identity, "handed", {}) in bench.controls


def test_a_leaving_workers_ended_runs_go_to_one_of_its_mode_that_stays():
    bench = Bench()
    leaving = bench.add_worker(b"leaving")
    bench.send(A, "run", b"1")
    bench.finish(leaving, (A, b"1"))
    bench.add_worker(b"stranger", "run_stream", slots=9)
    heir = bench.add_worker(b"heir")
    hand_over(bench, leaving)
    bench.lose(leaving)
    assert (b"heir", "take", {"file": "w.msgpack"}) in bench.controls
    bench.send(A, "resume", b"1", {"from": 1})
    bench.send(A, "run", b"1")
    assert heir.resumed == [((A, b"1"), 1)] * 2


def test_who_asks_while_nobody_has_them_gets_them_from_the_next_that_comes():
    bench = Bench()
    only = bench.add_worker(b"only")
    bench.send(A, "run", b"1")
    bench.finish(only, (A, b"1"))
    hand_over(bench, only)
    bench.lose(only)
    bench.send(A, "resume", b"1", {"from": 2})
    assert len(bench.terminals((A, b"1"))) == 1
    next_one = bench.add_worker(b"next")
    assert (b"next", "take", {"file": "w.msgpack"}) in bench.controls
    assert next_one.resumed == [((A, b"1"), 2)]


def test_who_asks_in_vain_is_told_when_the_window_has_passed():
    bench = Bench()
    only = bench.add_worker(b"only")
    bench.send(A, "run", b"1")
    bench.finish(only, (A, b"1"))
    hand_over(bench, only)
    bench.lose(only)
    bench.send(A, "resume", b"1")
    bench.pass_time(limits.RESUME_WINDOW + 1)
    assert bench.replies(A, b"1")[-1][1]["error_type"] == "unknown_request"


def test_files_that_an_earlier_broker_left_go_to_the_first_worker_and_settling_waits_for_what_is_in_them():
    bench = Bench(expected_workers=1, previous=PreviousState(handover_files=("old.msgpack",)), settle=False)
    worker = bench.add_worker(b"w")
    assert (b"w", "take", {"file": "old.msgpack"}) in bench.controls
    assert bench.broker.recovering
    bench.send(A, "resume", b"1")
    bench.feed_control(worker, b"holds", holds=[held((A, b"1"), ended=True)])
    assert not bench.broker.recovering
    assert worker.resumed == [((A, b"1"), 1)]


def test_a_worker_that_goes_without_handing_over_makes_the_past_uncertain():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.finish(worker, (A, b"1"))
    bench.feed_control(worker, b"leaving")
    effects = bench.feed(WorkerGone(b"w"))
    assert [effect.lost_at for effect in effects if hasattr(effect, "lost_at")] == [bench.now]


def test_a_file_that_is_named_again_is_not_given_to_another():
    bench = Bench(previous=PreviousState(handover_files=("left",)), settle=False)
    heir = bench.add_worker(b"heir")
    writer = bench.add_worker(b"writer", holds=[held((A, b"1"), ended=True)])
    bench.feed_control(writer, b"leaving")
    bench.controls.clear()
    bench.feed_control(writer, b"handover", file="left")
    assert [(peer, kind) for peer, kind, _ in bench.controls] == [(b"writer", "handed")]
    bench.send(A, "resume", b"1")
    assert heir.resumed == [((A, b"1"), 1)]


def test_what_a_leaving_worker_had_forgotten_is_kept_in_mind_when_it_has_gone():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.feed_control(worker, b"leaving")
    bench.feed_control(worker, b"handover", file="f", forgot_at=990.0)
    bench.lose(worker)
    assert bench.unregistered == [Unregistered(b"w", 990.0)]


# --- the journal's file ----------------------------------------------------------------------------


def test_the_journal_tells_the_next_broker_what_waits_and_who_was_there(tmp_path: Path):
    file = tmp_path / "journal"
    journal = Journal(file, (), 5.0)
    assert journal.previous.workers is None
    for effect in (
        *(Enqueued(A, b"1"), Enqueued(A, b"2"), Dequeued(A, b"1")),
        *(Registered(b"w1", 11), Registered(b"w2", 22), Unregistered(b"w1", 17.5), Unregistered(b"never", 0.0)),
    ):
        journal.remember(effect)
    after = Journal(file, ("legacy",), 20.0)  # the first was not closed: as after SIGKILL
    assert after.previous == PreviousState(
        waiting=frozenset({(A, b"2")}), workers={b"w2": 22}, lost_at=17.5, handover_files=("legacy",)
    )
    assert file.stat().st_mode & 0o777 == 0o600
    again = Journal(file, (), 30.0)
    assert again.previous.workers == {b"w2": 22}, "who has not registered with the second may still with the third"
    again.remember(Unregistered(b"w2", 31.0))
    last = Journal(file, (), 40.0)
    assert last.previous == PreviousState(waiting=frozenset({(A, b"2")}), workers={}, lost_at=31.0)
    for each in (journal, after, again, last):
        each.close()


def test_a_loss_is_written_before_who_is_gone():
    assert JournalState(PreviousState(), 5.0).remember(Unregistered(b"w", 6.0)) == [(4, 6.0), (3, b"w")]


@pytest.mark.parametrize("content", [b"", b"\xc1", pack(["machine", "another boot"]) + pack([0, A, b"1"]), b"\x92\x05"])
def test_a_journal_that_cannot_be_believed_claims_nothing(tmp_path: Path, content):
    file = tmp_path / "journal"
    file.write_bytes(content)
    journal = Journal(file, (), 5.0)
    assert journal.previous == PreviousState()
    after = Journal(file, (), 6.0)
    assert (after.previous.workers, after.previous.lost_at) == ({}, 5.0), "of what was before nothing is known any more"
    for each in (journal, after):
        each.close()


def test_a_record_of_a_later_version_makes_the_journal_none(tmp_path: Path):
    file = tmp_path / "journal"
    Journal(file, (), 5.0).close()
    with file.open("ab") as more:
        more.write(pack([9, "new"]))
    journal = Journal(file, (), 5.0)
    assert journal.previous == PreviousState()
    journal.close()


def test_a_torn_last_record_is_left_out(tmp_path: Path):
    file = tmp_path / "journal"
    journal = Journal(file, (), 5.0)
    journal.remember(Enqueued(A, b"1"))
    journal.remember(Enqueued(A, b"2"))
    journal.close()
    file.write_bytes(file.read_bytes()[:-2])
    again = Journal(file, (), 6.0)
    assert again.previous.waiting == {(A, b"1")}
    again.close()


def test_the_journal_stays_small(tmp_path: Path):
    file = tmp_path / "journal"
    journal = Journal(file, (), 5.0)
    journal.remember(Enqueued(A, b"stays"))
    for number in range(20_000):
        journal.remember(Enqueued(A, b"%d" % number))
        journal.remember(Dequeued(A, b"%d" % number))
    assert file.stat().st_size < 400_000
    again = Journal(file, (), 6.0)
    assert again.previous.waiting == {(A, b"stays")}
    for each in (journal, again):
        each.close()


def test_a_journal_that_cannot_be_written_stops_nothing_and_claims_nothing(tmp_path: Path):
    nowhere = tmp_path / "missing" / "journal"
    journal = Journal(nowhere, (), 5.0)
    journal.remember(Enqueued(A, b"1"))
    journal.remember(Dequeued(A, b"1"))
    journal.close()
    assert not nowhere.exists()


def test_what_an_earlier_broker_wrote_is_not_believed_once_it_cannot_be_kept_up(tmp_path: Path):
    file = tmp_path / "journal"
    journal = Journal(file, (), 5.0)
    journal.remember(Enqueued(A, b"waits"))
    journal.close()
    (tmp_path / "journal.new").mkdir()  # nothing can be written there
    full = Journal(file, (), 6.0)
    assert full.previous.waiting == {(A, b"waits")}
    full.remember(Dequeued(A, b"waits"))
    full.close()
    assert Journal(file, (), 7.0).previous == PreviousState()


def test_a_record_for_which_there_is_no_room_ends_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "journal"
    journal = Journal(file, (), 5.0)
    journal.remember(Enqueued(A, b"waits"))
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, packed: write(fd, packed[:-1]))
    journal.remember(Dequeued(A, b"waits"))
    monkeypatch.undo()
    assert Journal(file, (), 6.0).previous == PreviousState()


def test_frames_of_a_disowned_run_are_of_its_old_holder_only():
    bench = Bench()
    bench.add_worker(b"first", slots=2)
    bench.send(A, "run", b"1")
    bench.feed(FromClient(A, [b"run", b"2", b"", b""], bench.now))
    bench.add_worker(b"late", slots=2, holds=[held((A, b"1"))])
    assert (b"first", A, b"1") not in bench.broker.relay.disowned_runs
    assert (b"late", A, b"2") not in bench.broker.relay.disowned_runs
