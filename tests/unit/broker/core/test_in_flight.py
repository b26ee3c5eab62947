"""Bounds on the bytes of request bodies that workers have."""

from __future__ import annotations

from axon_zmq.broker.core.in_flight import SMALL_BODY_BYTES
from axon_zmq.broker.core.pools import SUSPECTS_PER_WORKER
from tests.support.broker_helpers import Bench, error_type

A, B, C = b"client-a", b"client-b", b"client-c"
UNIT = SMALL_BODY_BYTES + 1
"""Size of the smallest body that counts."""
LARGE = b"x" * UNIT
SMALL = b"x" * SMALL_BODY_BYTES


def started(bench: Bench) -> list[bytes]:
    """The ids of the runs that were dispatched, in order."""
    return [key[1] for _, key, _ in bench.dispatched]


def test_a_run_over_the_workers_bound_waits_until_a_run_with_a_large_body_has_ended():
    bench = Bench(max_in_flight_bytes=2 * UNIT)
    worker = bench.add_worker(b"w", slots=10)
    for client, id in ((A, b"1"), (B, b"2"), (C, b"3")):
        bench.send(client, "run", id, None, LARGE)
    assert started(bench) == [b"1", b"2"]
    bench.send(A, "run", b"small", None, SMALL)  # does not wait behind the large one
    assert started(bench) == [b"1", b"2", b"small"]
    bench.finish(worker, (A, b"small"))
    assert started(bench) == [b"1", b"2", b"small"]
    bench.finish(worker, (A, b"1"))
    assert started(bench) == [b"1", b"2", b"small", b"3"]
    bench.finish(worker, (B, b"2"))
    bench.finish(worker, (C, b"3"))
    bench.assert_idle()
    bench.send(A, "run", b"4", None, LARGE)
    bench.send(A, "run", b"5", None, LARGE)
    assert started(bench)[-2:] == [b"4", b"5"]  # nothing of the ended runs is counted any more


def test_the_bound_of_a_client_counts_all_modes_and_leaves_room_for_others():
    bench = Bench(max_in_flight_bytes_per_client=UNIT)
    run = bench.add_worker(b"w", slots=10)
    bench.add_worker(b"s", "run_stream", slots=10)
    bench.send(A, "run", b"a1", None, LARGE)
    bench.send(A, "run_stream", b"a2", None, LARGE)
    bench.send(A, "run", b"a3", None, LARGE)
    bench.send(B, "run", b"b1", None, LARGE)
    assert started(bench) == [b"a1", b"b1"]
    bench.finish(run, (A, b"a1"))
    assert len(started(bench)) == 3  # one of the two, whichever mode it has
    assert started(bench)[-1] in (b"a2", b"a3")


def test_another_worker_with_room_is_chosen():
    bench = Bench(max_in_flight_bytes=UNIT)
    bench.add_worker(b"most-free", slots=10)
    bench.add_worker(b"other", slots=2)
    bench.send(A, "run", b"1", None, LARGE)
    bench.send(B, "run", b"2", None, LARGE)
    assert [worker for worker, _, _ in bench.dispatched] == [b"most-free", b"other"]


def test_tool_results_of_one_client_leave_room_for_the_large_bodies_of_others():
    bench = Bench(max_in_flight_bytes=4 * UNIT, max_in_flight_bytes_per_client=2 * UNIT)
    worker = bench.add_worker(b"w", slots=10)
    for id in (b"1", b"2"):
        bench.send(A, "run", id)
        for number in range(5):
            bench.send(A, "tool_result", id, {"call_id": f"{number}"}, LARGE)
    bench.send(A, "run", b"3", None, LARGE)  # waits for the client's own bytes
    for id in (b"4", b"5"):
        bench.send(B, "run", id, None, LARGE)
    bench.send(C, "run", b"6", None, LARGE)
    assert started(bench) == [b"1", b"2", b"4", b"5"]
    bench.finish(worker, (A, b"1"))
    assert started(bench) == [b"1", b"2", b"4", b"5"]  # the rest of A's bytes are still more than its bound
    bench.finish(worker, (A, b"2"))
    for client, id in ((B, b"4"), (B, b"5"), (C, b"6"), (A, b"3")):
        bench.finish(worker, (client, id))
    assert not len(bench.broker.runs.in_flight)


def test_the_next_broker_counts_the_bytes_of_adopted_runs():
    bench = Bench(max_in_flight_bytes_per_client=UNIT)
    held = {"client": A, "kind": "run", "digest": b"", "deadline": 1e9, "keep": True, "seq": 1, "ended": False}
    ended = {**held, "id": b"0", "ended": True, "size": UNIT}
    worker = bench.add_worker(b"w", slots=10, holds=[{**held, "id": b"1", "size": UNIT}, ended])
    worker.runs[A, b"1"] = 1
    bench.send(A, "run", b"2", None, LARGE)
    assert started(bench) == []
    bench.finish(worker, (A, b"1"))
    assert started(bench) == [b"2"]


def test_one_client_can_fill_only_half_of_the_bytes_of_the_queues():
    bench = Bench(max_in_flight_bytes=UNIT, max_queued_bytes=4 * UNIT)
    bench.add_worker(b"w", slots=10)
    for number in range(4):
        bench.send(A, "run", b"%d" % number, None, LARGE)
    [refused] = bench.replies(A, b"3")
    assert refused[1]["error_type"] == "overloaded"
    assert f"of this client have {2 * UNIT} bytes" in refused[1]["message"]
    for client in (B, C):
        bench.send(client, "run", b"1", None, LARGE)
        assert bench.replies(client, b"1") == []
    bench.send(C, "run", b"2", None, LARGE)
    assert error_type(bench.replies(C, b"2")) == "overloaded"  # now all bytes of the queues are used
    bench.send(A, "cancel", b"1")
    bench.send(C, "run", b"3", None, LARGE)
    assert bench.replies(C, b"3") == []


def test_a_single_body_may_be_larger_than_half_of_the_bytes_of_the_queues():
    bench = Bench(max_in_flight_bytes=UNIT, max_queued_bytes=4 * UNIT)
    bench.add_worker(b"w", slots=10)
    bench.send(A, "run", b"1", None, LARGE)
    bench.send(A, "run", b"2", None, b"x" * 3 * UNIT)
    bench.send(A, "credit", b"2", {"upto": 5}, b"")
    assert bench.replies(A, b"2") == []


def test_a_body_over_the_bound_is_dispatched_if_nothing_else_is_in_flight():
    bench = Bench(max_in_flight_bytes=1, max_in_flight_bytes_per_client=1)
    worker = bench.add_worker(b"w", slots=10)
    bench.send(A, "run", b"1", None, LARGE * 3)
    bench.send(B, "run", b"2", None, LARGE)
    assert started(bench) == [b"1"]
    bench.finish(worker, (A, b"1"))
    assert started(bench) == [b"1", b"2"]


def test_held_runs_are_served_round_robin_over_clients():
    bench = Bench(max_in_flight_bytes=UNIT)
    worker = bench.add_worker(b"w", slots=10)
    for client, ids in ((A, (b"a1", b"a2", b"a3")), (B, (b"b1", b"b2"))):
        for id in ids:
            bench.send(client, "run", id, None, LARGE)
    while worker.runs:
        [key] = worker.runs
        bench.finish(worker, key)
    assert started(bench) == [b"a1", b"a2", b"b1", b"a3", b"b2"]


def test_a_held_run_starts_if_only_runs_wait_that_no_worker_may_take():
    bench = Bench(max_in_flight_bytes_per_client=UNIT)
    bench.add_worker(b"dies")
    bench.send(B, "run", b"0", None, b"suspect")
    bench.lose(bench.workers[b"dies"])
    worker = bench.add_worker(b"w", slots=3 * SUSPECTS_PER_WORKER)
    for number in range(SUSPECTS_PER_WORKER + 1):  # the last one waits, because the worker executes enough suspects
        bench.send(B, "run", b"b%d" % number, None, b"suspect")
    bench.send(A, "run", b"large", None, LARGE)
    for number in range(6):
        bench.send(A, "run", b"a%d" % number)
    bench.send(A, "run", b"held", None, LARGE)
    assert (B, b"b4") not in worker.runs
    assert len(worker.runs) == 11
    bench.finish(worker, (A, b"large"))
    assert (A, b"held") in worker.runs  # although A has half of the slots and B waits


def test_held_runs_can_be_cancelled_and_count_as_queued():
    bench = Bench(max_in_flight_bytes=UNIT, max_queued_per_client=1)
    worker = bench.add_worker(b"w", slots=10)
    bench.send(A, "run", b"1", None, LARGE)
    bench.send(A, "run", b"2", None, LARGE)
    assert bench.pong()["modes"]["run"]["queued"] == 1
    bench.send(A, "run", b"3", None, LARGE)
    assert bench.terminals((A, b"3"))[0][1]["error_type"] == "overloaded"
    assert not bench.send(A, "run", b"small", None, SMALL)  # it does not wait, so no limit of the queue applies
    bench.send(A, "cancel", b"2")
    assert bench.terminals((A, b"2"))[0][1]["error_type"] == "cancelled"
    bench.finish(worker, (A, b"1"))
    bench.finish(worker, (A, b"small"))
    bench.assert_idle()


def test_a_held_run_ends_at_its_deadline():
    bench = Bench(max_in_flight_bytes=UNIT)
    bench.add_worker(b"w", slots=10)
    bench.send(A, "run", b"1", None, LARGE)
    bench.send(B, "run", b"2", {"timeout_ms": 1000}, LARGE)
    bench.pass_time(2)
    assert bench.terminals((B, b"2"))[0][1]["error_type"] == "deadline_exceeded"


def test_a_lost_worker_frees_its_bytes():
    bench = Bench(max_in_flight_bytes_per_client=UNIT)
    bench.add_worker(b"first", slots=1)
    bench.send(A, "run", b"1", {"max_attempts": 2}, LARGE)
    bench.send(A, "run", b"2", None, LARGE)
    second = bench.add_worker(b"second", slots=2)
    assert not second.runs
    bench.lose(bench.workers[b"first"])
    assert list(second.runs) == [(A, b"1")]
    bench.finish(second, (A, b"1"))
    assert list(second.runs) == [(A, b"2")]


def test_tool_results_count_and_are_refused_above_the_limit_of_a_run():
    limit = 64 * 1024 * 1024
    bench = Bench(max_in_flight_bytes=limit, max_body=limit // 4)
    worker = bench.add_worker(b"w", slots=10)
    bench.send(A, "run", b"1", None, LARGE)
    part = b"x" * (limit // 4)
    for number in range(3):
        assert not bench.send(A, "tool_result", b"1", {"call_id": f"{number}"}, part)
    [refused] = bench.send(A, "tool_result", b"1", {"call_id": "last"}, part)
    [(_, body)] = bench.replies(A, b"1")
    assert refused.kind == b"refused"
    assert (body["error_type"], body["call_id"]) == ("too_large", "last")
    assert f"{UNIT + limit} bytes, the limit is {limit}" in body["message"]
    bench.send(B, "run", b"2", None, part)
    assert started(bench) == [b"1"]
    bench.finish(worker, (A, b"1"))
    assert started(bench) == [b"1", b"2"]
