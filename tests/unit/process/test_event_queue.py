"""Events reach a core one at a time, and none after an exception."""

from __future__ import annotations

import pytest

from axon_zmq.process.event_queue import EventQueue


def test_an_event_caused_by_an_effect_waits_until_the_other_effects_are_applied():
    order: list[str] = []

    def apply(effect: str) -> None:
        order.append(effect)
        if effect == "first effect":
            queue.put("second event")

    def receive(event: str, now: float) -> list[str]:
        order.append(f"{event} at {now:g}")
        return ["first effect", "second effect"] if event == "first event" else []

    queue = EventQueue(receive, lambda: 5.0, apply)
    queue.put("first event")
    assert order == ["first event at 5", "first effect", "second effect", "second event at 5"]


@pytest.mark.parametrize("place", ["core", "effect"])
def test_after_an_exception_the_core_receives_no_more_events(place: str):
    taken: list[str] = []

    def receive(event: str, _now: float) -> list[str]:
        taken.append(event)
        if place == "core":
            raise KeyError(event)
        return ["effect"]

    def apply(effect: str) -> None:
        raise KeyError(effect)

    queue = EventQueue(receive, lambda: 0.0, apply)
    with pytest.raises(KeyError):
        queue.put("first")
    queue.put("second")
    assert taken == ["first"]
