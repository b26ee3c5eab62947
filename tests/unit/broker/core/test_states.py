"""Properties of the transition tables of runs, workers and clients."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest

from axon_zmq.broker.core import states
from axon_zmq.broker.core.states import (
    ClientState,
    IllegalTransitionError,
    RunEvent,
    RunState,
    WorkerEvent,
    WorkerState,
    step,
)
from tests.support import pictures


@pytest.mark.parametrize(
    ("table", "first", "last"),
    [
        (states.RUN, RunState.QUEUED, {RunState.ENDED}),
        (states.WORKER, WorkerState.READY, {WorkerState.LOST}),
        (states.CLIENT, ClientState.IDLE, set()),
    ],
)
def test_every_state_is_reached_and_has_a_way_on(table, first, last):
    reached, new = {first}, {first}
    while new:
        new = {then for (state, _), then in table.items() if state in new} - reached
        reached |= new
    assert reached == set(type(first))
    assert {state for state, _ in table} == reached - last


@pytest.mark.parametrize("table", pictures.TABLES.values())
def test_every_event_of_a_table_is_used(table: Mapping[tuple[Any, Any], Enum]):
    used = {event for _, event in table}
    assert used == set(type(next(iter(used))))


def test_nothing_comes_after_the_end():
    for event in RunEvent:
        with pytest.raises(IllegalTransitionError, match="in state ENDED"):
            step(states.RUN, RunState.ENDED, event)
    for event in WorkerEvent:
        with pytest.raises(IllegalTransitionError, match="in state LOST"):
            step(states.WORKER, WorkerState.LOST, event)


def test_a_worker_from_which_the_end_was_heard_never_works_again():
    for state in (WorkerState.KILLED, WorkerState.EXITED, WorkerState.LOST):
        assert WorkerState.READY not in {then for (at, _), then in states.WORKER.items() if at is state}
