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
def test_every_state_is_reachable_and_only_final_states_have_no_exit(table, first, last):
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


def test_no_transition_leaves_a_final_state():
    for event in RunEvent:
        with pytest.raises(IllegalTransitionError, match="in state ENDED"):
            step(states.RUN, RunState.ENDED, event)
    for event in WorkerEvent:
        with pytest.raises(IllegalTransitionError, match="in state LOST"):
            step(states.WORKER, WorkerState.LOST, event)


def test_a_killed_or_exited_worker_never_becomes_ready_again():
    for state in (WorkerState.KILLED, WorkerState.EXITED, WorkerState.LOST):
        assert WorkerState.READY not in {then for (at, _), then in states.WORKER.items() if at is state}
