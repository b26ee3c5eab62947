"""The life cycles: properties of the transition tables, and that the docs show what the code defines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from textwrap import dedent
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
from axon_zmq.worker.core import worker as core
from tests import pictures, snippets


@pytest.mark.parametrize("name", pictures.TABLES)
def test_the_pictures_are_drawn_from_the_tables(name):
    assert pictures.drawn_from(name) == pictures.source(name), "run python -m tests.pictures"
    assert f"states/{name}.svg" in (pictures.FOLDER.parent / "states.md").read_text()


def test_the_phases_of_a_leaving_worker_are_shown_as_its_core_documents_them():
    page = (pictures.FOLDER.parent / "states.md").read_text()
    *_, shown = (block.code for block in snippets.blocks(pictures.FOLDER.parent / "states.md"))
    assert core.__doc__ is not None
    assert dedent(shown) in dedent(core.__doc__.replace("\n    ", "\n"))
    assert {phase.name for phase in core.Phase} <= set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert f"{core.LONGEST_END_GRACE_S + 2 * core.END_GRACE_S:.1f} s" in page


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
