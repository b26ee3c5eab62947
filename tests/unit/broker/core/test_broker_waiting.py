"""Runs that only wait for tools of their client, in the broker core."""

from __future__ import annotations

import pytest

from axon_zmq.broker.core.pools import WAITING_PER_SLOT
from axon_zmq.broker.core.states import RunState
from tests.support.broker_helpers import Bench, FakeWorker, Key, error_type

A, B = b"a", b"b"


def waits(bench: Bench, worker: FakeWorker, *ids: bytes, client: bytes = A) -> None:
    """Let runs call a tool of the client and wait."""
    for id in ids:
        bench.chunk(worker, (client, id))
        bench.feed_control(worker, b"waiting", client=client, id=id)


def continues(bench: Bench, worker: FakeWorker, id: bytes, client: bytes = A) -> None:
    bench.feed_control(worker, b"continuing", client=client, id=id)


def state(bench: Bench, key: Key) -> RunState:
    run = bench.broker.runs.get(key)
    assert run is not None
    return run.state


def test_a_waiting_run_leaves_its_slot_to_a_queued_run():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1")
    bench.send(B, "run", b"2")
    assert list(worker.runs) == [(A, b"1")]
    waits(bench, worker, b"1")
    assert list(worker.runs) == [(A, b"1"), (B, b"2")]
    assert state(bench, (A, b"1")) is RunState.WAITING


def test_no_new_run_is_dispatched_before_a_run_that_continues():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1")
    waits(bench, worker, b"1")
    bench.send(B, "run", b"2")
    continues(bench, worker, b"1")
    bench.send(B, "run", b"3")
    assert state(bench, (A, b"1")) is RunState.RUNNING
    bench.finish(worker, (B, b"2"))
    assert list(worker.runs) == [(A, b"1")]
    bench.finish(worker, (A, b"1"))
    assert list(worker.runs) == [(B, b"3")]
    bench.finish(worker, (B, b"3"))
    bench.assert_idle()


def test_a_worker_has_a_limited_number_of_waiting_runs_beyond_its_slots():
    bench = Bench(max_waiting_per_client=2)
    worker = bench.add_worker(b"w", slots=1)
    most = WAITING_PER_SLOT + 2
    for number in range(most + 3):
        bench.send(b"client-%d" % number, "run", b"1")
        if (b"client-%d" % number, b"1") in worker.runs:
            waits(bench, worker, b"1", client=b"client-%d" % number)
    assert len(worker.runs) == most + 1
    # When one of them ends, its place goes to another waiting run, and a queued run gets the slot.
    bench.finish(worker, (b"client-0", b"1"))
    assert len(worker.runs) == most + 1


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_the_waiting_runs_of_one_client_leave_slots_for_others_however_few_there_are(slots: int):
    bench = Bench()
    worker = bench.add_worker(b"w", slots=slots)
    for number in range(50):
        bench.send(A, "run", b"%d" % number, {"on_disconnect": "keep"})
        if (A, b"%d" % number) in worker.runs:
            waits(bench, worker, b"%d" % number)
    for number in range(slots):
        bench.send(B, "run", b"%d" % number)
        assert (B, b"%d" % number) in worker.runs


def test_a_client_with_too_many_waiting_runs_gets_replays_and_its_describes_answered():
    bench = Bench(max_waiting_per_client=1)
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"ended")
    bench.finish(worker, (A, b"ended"))
    for id in (b"1", b"2"):
        bench.send(A, "run", id)
        waits(bench, worker, id)
    bench.send(A, "run", b"3")
    assert (A, b"3") not in worker.runs
    for id in (b"1", b"ended"):
        bench.send(A, "resume", id)
    assert worker.resumed == [((A, b"1"), 1), ((A, b"ended"), 1)]
    bench.send(A, "describe", b"d")
    assert (A, b"d") in worker.runs


def test_a_client_with_too_many_waiting_runs_gets_no_more_slots_although_slots_are_free():
    bench = Bench(max_waiting_per_client=2)
    worker = bench.add_worker(b"w", slots=2)
    for number in range(10):
        bench.send(A, "run", b"%d" % number)
        if (A, b"%d" % number) in worker.runs:
            waits(bench, worker, b"%d" % number)
    assert len(worker.runs) == 4  # two are free of charge, and two count as slots
    bench.send(B, "run", b"1")
    assert (B, b"1") in worker.runs
    continues(bench, worker, b"0")
    bench.finish(worker, (A, b"0"))
    assert (A, b"4") in worker.runs


def test_a_full_queue_of_a_client_with_too_many_waiting_runs_does_not_keep_others_from_free_slots():
    bench = Bench(max_waiting_per_client=1, max_queued=2, max_queued_per_client=2)
    worker = bench.add_worker(b"w", slots=1)
    for id in (b"1", b"2"):
        bench.send(A, "run", id)
        waits(bench, worker, id)
    for id in (b"3", b"4", b"5"):
        bench.send(A, "run", id)
    assert error_type(bench.replies(A, b"5")) == "overloaded"
    bench.send(B, "run", b"1")
    assert (B, b"1") in worker.runs


def test_reports_about_runs_that_a_worker_does_not_have_are_ignored():
    bench = Bench()
    worker, other = bench.add_worker(b"w", slots=1), bench.add_worker(b"x", slots=1)
    bench.send(A, "run", b"1")
    [holder] = bench.holders((A, b"1"))
    [stranger] = {worker.identity, other.identity} - {holder.identity}
    bench.feed_control(bench.workers[stranger], b"waiting", client=A, id=b"1")
    continues(bench, holder, b"1")
    bench.feed_control(holder, b"waiting", client=A, id=b"unknown")
    assert state(bench, (A, b"1")) is RunState.RUNNING
    bench.finish(holder, (A, b"1"))
    waits_after_its_end = [bench.feed_control(holder, b"waiting", client=A, id=b"1")]
    assert waits_after_its_end == [None]
    bench.assert_idle()


def test_a_worker_that_reconnects_reports_which_runs_wait():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=2)
    for id in (b"1", b"2"):
        bench.send(A, "run", id)
    waits(bench, worker, b"1")
    held = {"client": A, "kind": "run", "digest": b"", "deadline": 1e9, "keep": False, "seq": 1, "ended": False}
    bench.register(worker, [{**held, "id": b"1"}, {**held, "id": b"2", "waiting": True}])
    assert state(bench, (A, b"1")) is RunState.RUNNING
    assert state(bench, (A, b"2")) is RunState.WAITING


def test_a_waiting_run_of_an_earlier_broker_occupies_no_slot():
    bench = Bench()
    held = {"client": A, "kind": "run", "digest": b"", "deadline": 1e9, "keep": True, "seq": 1, "ended": False}
    worker = bench.add_worker(b"w", slots=1, holds=[{**held, "id": b"1", "waiting": True}])
    bench.send(B, "run", b"2")
    assert (B, b"2") in worker.runs


def test_waiting_runs_of_a_lost_worker_end():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1", {"max_attempts": 3})
    waits(bench, worker, b"1")
    bench.lose(worker)
    assert error_type(bench.replies(A, b"1")[1:]) == "worker_lost"
    bench.add_worker(b"x", slots=1)
    bench.assert_idle()
    assert not any(len(pool.shares) for pool in bench.broker.workers.all_pools())


def test_a_waiting_run_can_be_cancelled_and_its_late_reports_change_nothing():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1")
    waits(bench, worker, b"1")
    bench.send(A, "cancel", b"1")
    assert worker.asked_to_end == [(b"1", "cancelled")]
    continues(bench, worker, b"1")  # it was sent before the worker read `end`
    assert state(bench, (A, b"1")) is RunState.ENDING
    bench.finish(worker, (A, b"1"), b"error")
    bench.assert_idle()


def test_waiting_runs_of_a_client_that_does_not_read_end_as_slow_consumer():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1")
    waits(bench, worker, b"1")
    bench.client_blocked(A)
    assert worker.asked_to_end == [(b"1", "slow_consumer")]


def test_a_kept_run_that_waits_ends_max_keep_ms_after_its_client_is_gone():
    bench = Bench(max_keep_ms=60_000)
    worker = bench.add_worker(b"w", slots=2)
    for id in (b"waits", b"works"):
        bench.send(A, "run", id, {"on_disconnect": "keep", "timeout_ms": 600_000})
    waits(bench, worker, b"waits")
    bench.pass_time(100.0)  # the client is connected, so this time does not count
    bench.client_gone(A)
    for _ in range(29):
        bench.pass_time(2.0)
    assert worker.asked_to_end == []
    for _ in range(3):
        bench.pass_time(2.0)
    assert worker.asked_to_end == [(b"waits", "kept_too_long")]


def test_the_time_of_a_kept_run_counts_from_the_moment_at_which_it_waits():
    bench = Bench(max_keep_ms=60_000)
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1", {"on_disconnect": "keep", "timeout_ms": 600_000})
    bench.client_gone(A)
    for _ in range(50):
        bench.pass_time(2.0)
    waits(bench, worker, b"1")
    for _ in range(29):
        bench.pass_time(2.0)
    assert worker.asked_to_end == []
    for _ in range(3):
        bench.pass_time(2.0)
    assert worker.asked_to_end == [(b"1", "kept_too_long")]
