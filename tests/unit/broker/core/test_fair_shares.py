"""While other clients wait, no new work starts for a client that holds half of a mode's slots."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axon_zmq.broker.core.pools import DESCRIBES_PER_WORKER
from axon_zmq.broker.core.workers import HOUSEKEEPING_S
from axon_zmq.protocol import limits
from tests.support.broker_helpers import Bench, FakeWorker, Key, error_type

A, B, C = b"a", b"b", b"c"
Step = tuple[str, bytes, int]


def running(worker: FakeWorker, client: bytes) -> list[Key]:
    return [key for key in worker.runs if key[0] == client]


def numbers(bench: Bench, client: bytes) -> list[bytes]:
    """Request ids of a client in the order in which they were dispatched."""
    return [key[1] for _, key, _ in bench.dispatched if key[0] == client]


@settings(max_examples=settings.default.max_examples * 3)
@given(
    slots=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send", "send", "send", "finish", "finish", "cancel"]),
            st.sampled_from([A, A, A, B, C]),
            st.integers(0, 99),
        ),
        min_size=10,
        max_size=60,
    ),
)
def test_in_any_history_shares_are_fair_and_no_slot_is_idle(slots: list[int], steps: list[Step]):
    bench = Bench()
    workers = [bench.add_worker(b"w%d" % number, slots=count) for number, count in enumerate(slots)]
    held: Counter[bytes] = Counter()
    queued: dict[bytes, deque[bytes]] = {A: deque(), B: deque(), C: deque()}
    for number, (action, client, choice) in enumerate(steps):
        before, id = len(bench.dispatched), b"%d" % number
        open_runs = [(worker, key) for worker in workers for key in running(worker, client)]
        if action == "send":
            queued[client].append(id)
            bench.send(client, "run", id)
        elif action == "finish" and open_runs:
            held[client] -= 1
            bench.finish(*open_runs[choice % len(open_runs)])
        elif action == "cancel" and queued[client]:
            bench.send(client, "cancel", queued[client].pop())
        for _, (owner, started), _ in bench.dispatched[before:]:
            others_wait = any(queued[other] for other in queued if other != owner)
            assert not others_wait or 2 * held[owner] < sum(slots), "started above half while others wait"
            assert queued[owner].popleft() == started, "first in, first out for each client"
            held[owner] += 1
        assert not any(queued.values()) or sum(held.values()) == sum(slots), "work waits although a slot is free"


def test_a_client_that_holds_half_of_the_slots_is_held_back_only_while_others_wait():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=4)
    for number in range(8):
        bench.send(A, "run", b"%d" % number)
    assert len(running(worker, A)) == 4  # alone, it may use all slots
    for number in range(3):
        bench.send(B, "run", b"%d" % number)
    for expected in (1, 2, 3):  # two of them are B's by the rule; then A has one left and B holds half
        bench.finish(worker, running(worker, A)[0])
        assert len(running(worker, B)) == min(expected, 2)
    assert (len(running(worker, A)), len(running(worker, B))) == (2, 2)


def test_a_single_slot_is_given_to_clients_in_turn():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    for number in range(3):
        bench.send(A, "run", b"%d" % number)
    bench.send(B, "call_tool", b"9")  # it is executed by mode `run`, too
    for _ in range(4):
        [key] = worker.runs
        bench.finish(worker, key)
    assert [key for _, key, _ in bench.dispatched] == [(A, b"0"), (A, b"1"), (B, b"9"), (A, b"2")]


def test_slots_of_a_lost_worker_no_longer_count_as_held():
    bench = Bench()
    lost, kept = bench.add_worker(b"w1", slots=2), bench.add_worker(b"w2", slots=2)
    for number in range(4):
        bench.send(A, "run", b"%d" % number)
    bench.lose(lost)
    bench.finish(kept, running(kept, A)[0])
    bench.send(B, "run", b"0")
    assert (len(running(kept, A)), len(running(kept, B))) == (1, 1)
    bench.finish(kept, running(kept, A)[0])
    bench.send(A, "run", b"5")
    assert numbers(bench, A)[-1] == b"5"


@pytest.mark.parametrize("workers", [1, 3])
def test_one_client_gets_half_of_the_places_for_describes(workers: int):
    bench = Bench()
    all_workers = [bench.add_worker(b"w%d" % number, slots=1) for number in range(workers)]
    for number in range(50):
        bench.send(A, "describe", b"%d" % number)
    places = DESCRIBES_PER_WORKER * workers
    assert numbers(bench, A) == [b"%d" % number for number in range(places // 2)]
    assert max(len(worker.runs) for worker in all_workers) == 1  # on different workers
    for client in (B, C):
        bench.send(client, "describe", b"d")
    assert numbers(bench, B) == [b"d"]
    worker, key = next((worker, key) for worker in all_workers for key in running(worker, A))
    bench.finish(worker, key, b"catalog")
    assert len(numbers(bench, A)) == places // 2 + 1


def test_describes_beyond_the_queue_are_refused_and_the_others_answered():
    bench = Bench(max_queued_per_client=3)
    worker = bench.add_worker(b"w")
    for number in range(8):
        bench.send(A, "describe", b"%d" % number)
    answers = [bench.replies(A, b"%d" % number) for number in range(8)]
    refused = [
        number for number, replies in enumerate(answers) if replies and replies[0][1]["error_type"] == "overloaded"
    ]
    assert refused == [4, 5, 6, 7]
    while worker.runs:
        bench.finish(worker, next(iter(worker.runs)), b"catalog")
    assert numbers(bench, A) == [b"0", b"1", b"2", b"3"]


def test_a_describe_of_a_client_that_is_held_back_goes_to_another_mode_or_waits():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1")
    bench.send(B, "run", b"1")
    bench.send(A, "describe", b"d")
    assert numbers(bench, A) == [b"1"]  # its only worker is of the mode in which A is held back
    other = bench.add_worker(b"s", mode="run_sync")
    assert list(other.runs) == [(A, b"d")]
    bench.send(A, "describe", b"e")
    bench.finish(worker, (A, b"1"))
    assert numbers(bench, A) == [b"1", b"d", b"e"]


def test_a_describe_that_is_held_back_is_answered_when_no_other_client_waits_any_more():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1", {"timeout_ms": 600_000})
    bench.send(B, "run", b"1", {"timeout_ms": 1000})
    bench.send(A, "describe", b"d")
    assert (A, b"d") not in worker.runs
    for _ in range(3):
        bench.pass_time(HOUSEKEEPING_S)
    assert error_type(bench.replies(B, b"1")) == "deadline_exceeded"
    assert (A, b"d") in worker.runs


def resumed(bench: Bench, worker: FakeWorker) -> list[tuple[Key, int]]:
    taken, worker.resumed = worker.resumed, []
    return taken


def test_replays_for_a_client_that_is_held_back_wait_and_the_newest_request_counts():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=2)
    bench.send(A, "run", b"1")
    bench.finish(worker, (A, b"1"))
    for id in (b"2", b"3"):
        bench.send(A, "run", id)
    bench.send(A, "resume", b"1", {"from": 1})
    assert resumed(bench, worker) == [((A, b"1"), 1)]  # nobody waits
    for id in (b"1", b"2"):
        bench.send(B, "run", id)
    for start in (2, 3):
        assert bench.send(A, "resume", b"1", {"from": start}) == []
    assert bench.send(A, "run", b"1") == bench.to_clients[-1:]  # `accepted`; its replay from the start is the newest
    assert resumed(bench, worker) == []
    bench.finish(worker, (A, b"2"))  # now A and B hold half each, and B waits
    bench.send(B, "cancel", b"2")
    bench.pass_time(HOUSEKEEPING_S)
    assert resumed(bench, worker) == [((A, b"1"), 1)]


def test_a_replay_of_an_open_run_never_waits_because_its_client_may_have_to_answer():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1")
    bench.send(B, "run", b"1")
    bench.send(A, "resume", b"1")
    assert resumed(bench, worker) == [((A, b"1"), 1)]


def test_a_waiting_replay_of_a_forgotten_run_is_answered():
    bench = Bench()
    worker = bench.add_worker(b"w", slots=1)
    bench.send(A, "run", b"1")
    bench.finish(worker, (A, b"1"))
    bench.send(A, "run", b"2", {"timeout_ms": 600_000})
    bench.send(B, "run", b"1", {"timeout_ms": 600_000})
    bench.send(A, "resume", b"1")
    bench.pass_time(limits.RESUME_WINDOW + 1)
    assert [kind for kind, _ in bench.replies(A, b"1")] == ["complete", "error"]
    assert resumed(bench, worker) == []
