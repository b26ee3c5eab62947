"""The broker core in memory when processes hang, die, return or leave: one test for each promise."""

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
    """Advance the time in steps as small as those of the loop; all workers except one report progress."""
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


def test_a_hung_worker_is_killed_once_and_lost_only_when_its_link_is_down():
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


def test_a_killed_worker_gets_no_new_runs_even_if_it_still_sends_messages():
    bench = Bench(hang_seconds=2)
    hung = bench.add_worker(b"hung")
    let_time_pass(bench, 3, but=hung)
    bench.feed_control(hung, b"progress")
    bench.register(hung)
    bench.send(A, "run", b"1")
    assert bench.dispatched == []


def test_time_in_which_the_broker_itself_was_stopped_does_not_count():
    bench = Bench(hang_seconds=10)
    worker = bench.add_worker(b"w")
    bench.workers = {}
    bench.pass_time(60)  # a single tick after a minute: the machine was suspended
    assert bench.killed == []
    bench.workers = {b"w": worker}
    let_time_pass(bench, 9, but=worker)
    assert bench.killed == []


def test_an_exited_worker_is_marked_at_once_and_lost_when_its_messages_are_read():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=5)
    bench.send(A, "run", b"1")
    bench.feed(FromWorker(b"listener", b"exited", pack({"name": "w", "pid": 1})))  # the pid of another process
    bench.send(A, "run", b"2")
    bench.feed(FromWorker(b"listener", b"exited", pack({"name": "w", "pid": worker.pid})))
    bench.send(A, "run", b"3")
    assert [key[1] for _, key, _ in bench.dispatched] == [b"1", b"2"]
    bench.finish(worker, (A, b"1"))  # it still sent this message
    bench.lose(worker)
    assert [kind for kind, _ in bench.terminals((A, b"1"))] == ["complete"]
    assert error_type(bench.replies(A, b"2")) == "worker_lost"


def test_a_worker_that_hung_when_the_broker_died_is_killed():
    previous = PreviousState(workers={b"run-1.abc": 4711, b"run-2.def": 4712, b"run-3.ghi": 4713})
    bench = Bench(previous=previous, recovered=False, hang_seconds=30)
    listener = FakeWorker(b"events", "run", 0)
    programs = {"run-1": {"state": "RUNNING", "pid": 4711}, "run-2": {"state": "RUNNING", "pid": 5000}}
    bench.feed_control(listener, b"processes", programs=programs | {"run-3": {"state": "RUNNING", "pid": 4713}})
    bench.pass_time(RECOVERY_S)
    bench.add_worker(b"run-3.ghi")  # it was only late
    while bench.now < 1029:
        bench.pass_time(HOUSEKEEPING_S)
    assert bench.killed == []
    for _ in range(8):
        bench.pass_time(HOUSEKEEPING_S)
    assert bench.killed == [b"run-1.abc"]  # run-2 is another process by now


def test_after_a_pause_of_the_broker_idle_workers_are_used_again():
    bench = Bench()
    bench.add_worker(b"w")
    bench.now += 20  # the machine was suspended
    assert bench.send(A, "run", b"1") == []
    bench.feed(Tick())
    assert [key for _, key, _ in bench.dispatched] == [(A, b"1")]


# --- requests that kill ----------------------------------------------------------------------------


def test_at_most_two_workers_die_of_a_request_whatever_its_max_attempts():
    bench = Bench()
    for number in range(5):
        bench.add_worker(b"w%d" % number)
    bench.send(A, "run", b"1", {"max_attempts": 10}, b"poison")
    for _ in range(2):
        [holder] = bench.holders((A, b"1"))
        bench.lose(holder)
    assert error_type(bench.replies(A, b"1")) == "quarantined"
    assert len(bench.dispatched) == 2


def test_two_copies_of_a_request_on_one_worker_count_as_one_death():
    bench = Bench()
    first = bench.add_worker(b"w1", slots=2)
    for number in range(2):
        bench.send(A, "run", b"%d" % number, None, b"twin")
    bench.lose(first)
    bench.add_worker(b"w2")
    assert bench.send(A, "run", b"3", None, b"twin") == []
    assert (A, b"3") in [key for _, key, _ in bench.dispatched]


def test_a_quarantined_request_is_refused_for_any_id_and_client_until_the_quarantine_ends():
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


def test_a_queued_copy_of_a_request_that_is_quarantined_meanwhile_is_not_started():
    bench = Bench()
    first = bench.add_worker(b"w1")
    for number in range(3):
        bench.send(A, "run", b"%d" % number, None, b"poison")
    bench.lose(first)
    bench.lose(bench.add_worker(b"w2"))
    bench.add_worker(b"w3")
    assert len(bench.dispatched) == 2
    assert error_type(bench.replies(A, b"2")) == "quarantined"


def test_a_completed_request_is_no_longer_suspect():
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


def test_runs_that_were_lost_together_are_spread_over_workers():
    bench = Bench()
    first = bench.add_worker(b"w1", slots=100)
    for number in range(50):
        bench.send(A, "run", b"%d" % number, {"max_attempts": 2}, b"body %d" % number)
    second = bench.add_worker(b"w2", slots=100)
    bench.lose(first)
    assert len(second.runs) == SUSPECTS_PER_WORKER
    bench.send(B, "run", b"innocent")
    assert (B, b"innocent") in second.runs  # other runs do not wait for suspects
    while second.runs:
        bench.finish(second, next(iter(second.runs)))
    assert all(bench.terminals((A, b"%d" % number)) for number in range(50))
    bench.assert_idle()


def test_a_worker_that_dies_while_leaving_makes_no_request_suspect():
    bench = Bench()
    for number in range(3):
        worker = bench.add_worker(b"w%d" % number)
        bench.send(A, "run", b"%d" % number, None, b"long")
        bench.feed_control(worker, b"leaving")
        bench.lose(worker)
    bench.add_worker(b"last")
    assert bench.send(A, "run", b"9", None, b"long") == []


def test_suspects_are_bounded_and_expire():
    quarantine = Quarantine()
    for number in range(SUSPECTS_KEPT + 10):
        quarantine.strike(b"%d" % number, 0.0)
    assert not quarantine.suspects(b"0", 1.0)
    assert quarantine.suspects(b"11", 1.0)
    quarantine.tidy(QUARANTINE_S)
    assert repr(quarantine) == "<Quarantine 0 suspects>"


def test_a_describe_never_becomes_suspect():
    bench = Bench()
    for name in (b"w1", b"w2", b"w3"):
        bench.add_worker(name)
    for number in range(3):
        assert bench.send(A, "describe", b"%d" % number) == []
        [(holder, _, _)] = bench.dispatched[-1:]
        bench.lose(bench.workers[holder])
        assert error_type(bench.replies(A, b"%d" % number)) == "worker_lost"


def test_suspects_and_other_runs_take_turns():
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


def test_a_crash_loop_degrades_only_its_own_pool_for_a_minute():
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
    assert degraded(bench) == ["run"]  # it has returned, perhaps only for a moment
    bench.pass_time(CRASH_WINDOW_S + 1)
    assert degraded(bench) == []


def ready(worker: FakeWorker, name: str) -> bytes:
    said = {"v": 1, "mode": worker.mode, "slots": worker.slots, "name": name, "pid": worker.pid, "holds": []}
    return pack(said)


def test_a_worker_that_does_not_return_degrades_its_pool_unless_it_left():
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
def test_a_program_in_state_fatal_degrades_its_pool(state):
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


def test_a_process_that_does_not_register_degrades_its_pool():
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


def test_requests_dropped_during_recovery_never_end_a_run():
    bench = Bench(recovered=False, max_queued=1)
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
def test_messages_with_unknown_content_are_logged_and_change_nothing(kind, body):
    bench = Bench()
    bench.add_worker(b"w")
    bench.feed(FromWorker(b"w", kind, body))
    assert bench.notes[-1].level >= 40
    assert bench.pong()["modes"]["run"]["workers"] == 1


def test_a_process_that_cannot_be_killed_degrades_its_pool():
    bench = Bench(hang_seconds=5)
    bench.add_worker(b"w")
    while bench.now < 1000 + 10 + MISSING_GRACE_S:
        bench.now += HOUSEKEEPING_S
        bench.feed(Tick())
    assert bench.killed == [b"w"]
    assert degraded(bench) == ["run"]


# --- a broker that dies ----------------------------------------------------------------------------


def test_rule_6_runs_that_only_waited_are_known_and_can_be_sent_again():
    before = Bench()
    worker = before.add_worker(b"w")
    before.send(A, "run", b"running")
    before.send(A, "run", b"waiting")
    assert before.journal == {(A, b"waiting")}
    after = Bench(previous=PreviousState(waiting=frozenset(before.journal), workers={b"w": 4711}), recovered=False)
    after.send(A, "resume", b"waiting")
    after.send(A, "resume", b"running")
    after.add_worker(b"w", holds=[held((A, b"running"))])
    after.pass_time(RECOVERY_S)
    [(kind, body)] = after.replies(A, b"waiting")
    assert (kind, body["error_type"], body["details"]["may_have_run"]) == ("error", "unknown_request", False)
    assert after.workers[b"w"].resumed == [((A, b"running"), 1)]
    after.send(A, "run", b"waiting")
    assert after.journal == {(A, b"waiting")}  # it is queued again
    assert worker.identity in before.workers


def test_runs_that_only_waited_are_reported_for_the_resume_window_and_then_forgotten():
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


def test_when_all_workers_have_returned_nothing_sent_within_the_window_can_have_run():
    bench = Bench(previous=PreviousState(workers={b"w1": 1, b"w2": 2}, lost_at=980.0), recovered=False)
    bench.add_worker(b"w1")
    bench.add_worker(b"w2")
    bench.pass_time(RECOVERY_S)
    details = body_of(bench.send(A, "resume", b"1"))["details"]
    assert details == {"may_have_run": True, "never_ran_within_ms": 22_000}  # a worker was lost 22 s ago
    bench.pass_time(100)
    details = body_of(bench.send(A, "resume", b"1"))["details"]
    assert details["never_ran_within_ms"] == limits.RESUME_WINDOW * 1000


@pytest.mark.parametrize("previous", [PreviousState(), PreviousState(workers={b"w1": 1, b"dead": 2})])
def test_when_a_worker_is_missing_only_requests_since_the_boot_are_certain(previous):
    bench = Bench(previous=previous, recovered=False)
    bench.add_worker(b"w1")
    bench.pass_time(RECOVERY_S)
    details = body_of(bench.send(A, "resume", b"1"))["details"]
    assert details == {"may_have_run": True, "never_ran_within_ms": RECOVERY_S * 1000}


def test_a_missing_worker_is_recorded_so_that_no_later_broker_is_certain():
    bench = Bench(previous=PreviousState(workers={b"w1": 1, b"dead": 2}, lost_at=5.0), recovered=False)
    bench.add_worker(b"w1")
    bench.pass_time(RECOVERY_S)
    assert bench.unregistered == [Unregistered(b"dead", bench.now)]


def test_nothing_is_certain_until_all_handover_files_have_been_read():
    bench = Bench(previous=PreviousState(workers={}, lost_at=5.0, handover_files=("a", "b")), recovered=False)
    bench.pass_time(RECOVERY_S)
    asked = lambda: body_of(bench.send(A, "resume", b"1"))["details"]["never_ran_within_ms"]  # noqa: E731
    assert asked() == RECOVERY_S * 1000
    heir = bench.add_worker(b"heir")
    bench.feed_control(heir, b"holds", holds=[])
    assert asked() == RECOVERY_S * 1000
    bench.feed_control(heir, b"holds", holds=[])
    assert asked() == limits.RESUME_WINDOW * 1000


def test_runs_that_a_worker_forgot_or_could_not_read_are_not_certain():
    bench = Bench(previous=PreviousState(workers={}, lost_at=5.0, handover_files=("a",)), recovered=False)
    heir = bench.add_worker(b"heir")
    bench.pass_time(RECOVERY_S)
    bench.feed_control(heir, b"holds", holds=[], forgot_at=bench.now - 1)
    assert body_of(bench.send(A, "resume", b"1"))["details"]["never_ran_within_ms"] == 1000


def test_a_run_that_the_broker_ended_is_not_adopted_from_a_returning_worker():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.lose(worker)
    assert error_type(bench.replies(A, b"1")) == "worker_lost"
    bench.add_worker(b"w", holds=[held((A, b"1"))])
    assert (b"w", A, b"1") in bench.broker.relay.disowned_runs
    assert bench.workers[b"w"].asked_to_end == [(b"1", "superseded")]


def test_messages_to_a_queued_run_that_ended_elsewhere_are_refused():
    bench = Bench()
    bench.send(A, "run", b"1", None, b"body")
    bench.send(A, "steer", b"1", None, b"more")
    bench.add_worker(b"other", mode="run_stream", holds=[held((A, b"1"), ended=True)])
    refused = [body["of"] for kind, body in bench.replies(A, b"1") if kind == "refused"]
    assert refused == ["steer"]


def test_a_broker_that_is_stopped_during_recovery_stops_when_recovery_ends():
    bench = Bench(expected_workers=1, recovered=False)
    bench.send(A, "resume", b"1")
    bench.stop()
    assert not bench.broker.stopped
    assert bench.replies(A, b"1") == []
    worker = bench.add_worker(b"w", holds=[held((A, b"1"))])
    assert bench.broker.stopped
    assert worker.resumed == [((A, b"1"), 1)]


def test_an_event_caused_by_an_effect_is_handled_after_the_other_effects():
    """`accepted` blocks the client: the run must reach its worker before it is asked to end."""
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


def test_recovery_ends_when_every_process_of_supervisord_has_registered():
    bench = Bench(recovered=False)
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


def test_a_restart_of_the_broker_alone_ends_no_queued_run():
    bench = Bench()
    bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.send(A, "run", b"2")
    bench.send(A, "run_stream", b"3")  # no worker of that mode remains
    bench.stop()
    assert bench.replies(A, b"2") == []
    assert bench.journal == {(A, b"2")}
    assert error_type(bench.replies(A, b"3")) == "shutting_down"


def test_an_adopted_run_is_never_started_again():
    bench = Bench(recovered=False)
    worker = bench.add_worker(b"w", holds=[held((A, b"1"))])
    bench.pass_time(RECOVERY_S)
    bench.add_worker(b"other")
    bench.feed(WorkerGone(worker.identity))
    assert error_type(bench.replies(A, b"1")) == "worker_lost"
    assert bench.dispatched == []


@pytest.mark.parametrize("ended", [False, True])
def test_a_resent_queued_run_is_found_at_a_worker_that_registers_late(ended):
    bench = Bench()
    bench.send(A, "run", b"1")
    late = bench.add_worker(b"late", slots=0, holds=[held((A, b"1"), ended=ended)])
    assert bench.replies(A, b"1") == [("accepted", {"duplicate": True})]
    assert late.resumed == [((A, b"1"), 1)]
    assert bench.journal == set()
    assert bench.dispatched == []


def test_a_worker_that_registers_late_with_a_run_started_elsewhere_must_end_it():
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


def test_rule_8_the_grace_period_counts_from_the_end_of_recovery():
    bench = Bench(recovered=False)
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


def test_ended_runs_of_a_leaving_worker_go_to_a_remaining_worker_of_its_mode():
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


def test_a_resume_waits_for_the_next_successor_if_there_is_none():
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


def test_a_resume_without_a_successor_fails_after_the_window():
    bench = Bench()
    only = bench.add_worker(b"only")
    bench.send(A, "run", b"1")
    bench.finish(only, (A, b"1"))
    hand_over(bench, only)
    bench.lose(only)
    bench.send(A, "resume", b"1")
    bench.pass_time(limits.RESUME_WINDOW + 1)
    assert bench.replies(A, b"1")[-1][1]["error_type"] == "unknown_request"


def test_handover_files_of_an_earlier_broker_go_to_the_first_worker_before_recovery_ends():
    bench = Bench(expected_workers=1, previous=PreviousState(handover_files=("old.msgpack",)), recovered=False)
    worker = bench.add_worker(b"w")
    assert (b"w", "take", {"file": "old.msgpack"}) in bench.controls
    assert bench.broker.recovering
    bench.send(A, "resume", b"1")
    bench.feed_control(worker, b"holds", holds=[held((A, b"1"), ended=True)])
    assert not bench.broker.recovering
    assert worker.resumed == [((A, b"1"), 1)]


def test_a_worker_that_exits_without_a_handover_makes_the_previous_state_uncertain():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.send(A, "run", b"1")
    bench.finish(worker, (A, b"1"))
    bench.feed_control(worker, b"leaving")
    effects = bench.feed(WorkerGone(b"w"))
    assert [effect.lost_at for effect in effects if hasattr(effect, "lost_at")] == [bench.now]


def test_a_handover_file_that_is_named_again_is_not_given_to_another_worker():
    bench = Bench(previous=PreviousState(handover_files=("left",)), recovered=False)
    heir = bench.add_worker(b"heir")
    writer = bench.add_worker(b"writer", holds=[held((A, b"1"), ended=True)])
    bench.feed_control(writer, b"leaving")
    bench.controls.clear()
    bench.feed_control(writer, b"handover", file="left")
    assert [(peer, kind) for peer, kind, _ in bench.controls] == [(b"writer", "handed")]
    bench.send(A, "resume", b"1")
    assert heir.resumed == [((A, b"1"), 1)]


def test_runs_that_a_leaving_worker_had_forgotten_are_remembered_after_it_left():
    bench = Bench()
    worker = bench.add_worker(b"w")
    bench.feed_control(worker, b"leaving")
    bench.feed_control(worker, b"handover", file="f", forgot_at=990.0)
    bench.lose(worker)
    assert bench.unregistered == [Unregistered(b"w", 990.0)]


# --- the journal's file ----------------------------------------------------------------------------


def test_the_journal_records_queued_runs_and_registered_workers_for_the_next_broker(tmp_path: Path):
    file = tmp_path / "journal"
    journal = Journal(file, (), 5.0)
    assert journal.previous.workers is None
    for effect in (
        *(Enqueued(A, b"1"), Enqueued(A, b"2"), Dequeued(A, b"1")),
        *(Registered(b"w1", 11), Registered(b"w2", 22), Unregistered(b"w1", 17.5), Unregistered(b"never", 0.0)),
    ):
        journal.remember(effect)
    after = Journal(file, ("legacy",), 20.0)  # the first journal was not closed, as after SIGKILL
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


def test_a_loss_is_recorded_before_the_worker_is_forgotten():
    assert JournalState(PreviousState(), 5.0).remember(Unregistered(b"w", 6.0)) == [(4, 6.0), (3, b"w")]


@pytest.mark.parametrize("content", [b"", b"\xc1", pack(["machine", "another boot"]) + pack([0, A, b"1"]), b"\x92\x05"])
def test_an_invalid_journal_claims_nothing(tmp_path: Path, content):
    file = tmp_path / "journal"
    file.write_bytes(content)
    journal = Journal(file, (), 5.0)
    assert journal.previous == PreviousState()
    after = Journal(file, (), 6.0)
    assert (after.previous.workers, after.previous.lost_at) == ({}, 5.0), "of what was before nothing is known any more"
    for each in (journal, after):
        each.close()


def test_a_record_of_a_later_version_invalidates_the_journal(tmp_path: Path):
    file = tmp_path / "journal"
    Journal(file, (), 5.0).close()
    with file.open("ab") as more:
        more.write(pack([9, "new"]))
    journal = Journal(file, (), 5.0)
    assert journal.previous == PreviousState()
    journal.close()


def test_a_truncated_last_record_is_ignored(tmp_path: Path):
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


def test_an_unwritable_journal_does_not_stop_the_broker_and_claims_nothing(tmp_path: Path):
    nowhere = tmp_path / "missing" / "journal"
    journal = Journal(nowhere, (), 5.0)
    journal.remember(Enqueued(A, b"1"))
    journal.remember(Dequeued(A, b"1"))
    journal.close()
    assert not nowhere.exists()


def test_an_earlier_journal_is_invalidated_once_it_cannot_be_kept_current(tmp_path: Path):
    file = tmp_path / "journal"
    journal = Journal(file, (), 5.0)
    journal.remember(Enqueued(A, b"waits"))
    journal.close()
    (tmp_path / "journal.new").mkdir()  # the journal cannot be written there
    full = Journal(file, (), 6.0)
    assert full.previous.waiting == {(A, b"waits")}
    full.remember(Dequeued(A, b"waits"))
    full.close()
    assert Journal(file, (), 7.0).previous == PreviousState()


def test_a_record_that_does_not_fit_on_the_disk_ends_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "journal"
    journal = Journal(file, (), 5.0)
    journal.remember(Enqueued(A, b"waits"))
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, packed: write(fd, packed[:-1]))
    journal.remember(Dequeued(A, b"waits"))
    monkeypatch.undo()
    assert Journal(file, (), 6.0).previous == PreviousState()


def test_only_frames_from_the_old_worker_of_a_disowned_run_are_dropped():
    bench = Bench()
    bench.add_worker(b"first", slots=2)
    bench.send(A, "run", b"1")
    bench.feed(FromClient(A, [b"run", b"2", b"", b""], bench.now))
    bench.add_worker(b"late", slots=2, holds=[held((A, b"1"))])
    assert (b"first", A, b"1") not in bench.broker.relay.disowned_runs
    assert (b"late", A, b"2") not in bench.broker.relay.disowned_runs


def test_marks_of_runs_are_forgotten_if_their_worker_never_registers():
    """A worker streams while the broker restarts, and dies before it registers again."""
    bench = Bench()
    known = bench.add_worker(b"known")
    bench.send(A, "run", b"1")
    bench.chunk(known, (A, b"1"))
    stranger = FakeWorker(b"stranger", "run", 1)
    assert bench.relay(stranger, (A, b"2"), b"chunk", 7)
    assert bench.broker.relay.relayed_runs == {(A, b"1"), (A, b"2")}
    bench.pass_time(limits.RESUME_WINDOW + 1)
    assert bench.broker.relay.relayed_runs == {(A, b"1")}
