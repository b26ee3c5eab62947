"""The slots of a worker, and the order in which runs get them."""

from __future__ import annotations

from axon_zmq.protocol.msgpack import pack
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.core.concurrency import Slot, Slots
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo


def run_of(client: bytes, id: bytes = b"1") -> ActiveRun:
    buffer = ReplayBuffer(pack, RunInfo("run", b"digest", 0.0, keep=False))
    return ActiveRun(client=client, id=id, kind=b"run", buffer=buffer, deadline=0.0, started=0.0)


def granted(slots: Slots) -> list[ActiveRun]:
    found: list[ActiveRun] = []
    while (run := slots.grant()) is not None:
        found.append(run)
    return found


def test_runs_get_slots_as_long_as_there_are_any():
    slots = Slots(2)
    runs = [run_of(b"a"), run_of(b"b"), run_of(b"c")]
    assert [slots.start(run) for run in runs] == [True, True, False]
    slots.end(runs[0])
    assert granted(slots) == [runs[2]]
    assert slots.held == 2


def test_clients_take_turns_among_runs_that_continue():
    slots = Slots(1)
    waiting = [run_of(b"a", b"1"), run_of(b"a", b"2"), run_of(b"a", b"3"), run_of(b"b", b"4")]
    for run in waiting:
        slots.start(run)
        slots.leave(run)
    executing = run_of(b"c")
    slots.start(executing)
    assert [slots.take_again(run) for run in waiting] == [False] * 4
    order: list[bytes] = []
    while executing is not None:
        slots.end(executing)
        executing = slots.grant()
        order += [] if executing is None else [executing.id]
    assert order == [b"1", b"4", b"2", b"3"]


def test_a_run_that_ends_no_longer_waits_for_a_slot():
    slots = Slots(1)
    executing, waiting = run_of(b"a"), run_of(b"b")
    slots.start(executing)
    slots.start(waiting)
    slots.end(waiting)
    slots.end(executing)
    assert granted(slots) == []
    assert (slots.held, slots.of(waiting)) == (0, Slot.NONE)


def test_one_run_executes_even_if_all_slots_are_stuck():
    slots = Slots(1)
    slots.change_stuck(1)
    assert slots.available == 0
    assert slots.start(run_of(b"a"))
    assert not slots.start(run_of(b"b"))
    slots.change_stuck(1)  # a run that had left its slot
    assert slots.available == 0
