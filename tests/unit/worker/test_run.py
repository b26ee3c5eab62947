"""A worker that is late merges chunks instead of queueing more of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Any

import pytest

from axon_zmq.protocol.msgpack import unpack
from axon_zmq.protocol.plain import packer
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.delivery.credit import Credit
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from axon_zmq.worker.run import HOLD_FACTOR, LATE_THRESHOLD_S, MAX_HELD_BYTES, MAX_HOLD_S, Run


class FakeLink:
    """A link on an event loop with a given lateness."""

    def __init__(self) -> None:
        self.is_late = 0.0
        self.sent: list[tuple[str, Any]] = []
        self.due: list[tuple[float, Callable[[], None]]] = []

    def late(self) -> float:
        return self.is_late

    def congested(self) -> bool:
        return False

    async def room(self) -> None:
        pass

    def call_at(self, when: float, function: Callable[[], None]) -> None:
        self.due.append((when, function))

    def send(self, _client: bytes, kind: bytes, _id: bytes, body: bytes) -> None:
        told = unpack(body, "the body")
        self.sent.append((kind.decode(), told.get("data", told.get("result"))))

    send_soon = send

    def pass_time(self) -> None:
        due, self.due = self.due, []
        for _, function in due:
            function()


def run_of(link: Any, upto: int | None = None) -> Run:
    pack = packer()
    buffer = ReplayBuffer(pack, RunInfo("run_stream", b"digest", 0.0, keep=False))
    credit = Credit(upto, lambda body: len(pack(body)))
    active = ActiveRun(client=b"c", id=b"1", kind=b"run_stream", buffer=buffer, deadline=0.0, started=0.0)
    return Run(
        active=active,
        header={},
        body=b"",
        link=link,
        loop=asyncio.get_running_loop(),
        credit=credit,
        only_waits=lambda: None,
        answered=lambda: None,
    )


def chunks(run: Run, *words: str, part: int = 0) -> None:
    for word in words:
        run.chunk("text", word, 1, part)


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


def played(play: Callable[[], None]) -> None:
    async def run() -> None:
        play()

    asyncio.run(run())


class Colour(StrEnum):
    RED = "red"


ODD = [
    (float("nan"), None),
    (Colour.RED, "red"),
    ({1: {2**70}}, {"1": [str(2**70)]}),
    ({"when": datetime(2026, 1, 1)}, {"when": "2026-01-01T00:00:00"}),
    (b"\xff", b"\xff"),
    ("\ud800", "?"),
]


@pytest.mark.parametrize(("value", "shown"), ODD, ids=lambda value: ascii(value))
def test_a_chunk_is_converted_to_plain_values_and_never_ends_the_run(value, shown, link):
    held: list[Any] = []
    held.append(held)

    def play() -> None:
        run = run_of(link)
        for data in (value, {"deep": [value]}, held):
            run.chunk("tool_finished", data, 1, 0)

    played(play)
    assert [data for _, data in link.sent[:2]] == [shown, {"deep": [shown]}]
    assert "contains itself" in repr(link.sent[2])


def test_a_worker_on_time_sends_each_delta(link):
    def play() -> None:
        link.is_late = LATE_THRESHOLD_S / 2
        chunks(run_of(link), "a", "b", "c")

    played(play)
    assert link.sent == [("chunk", "a"), ("chunk", "b"), ("chunk", "c")]
    assert link.due == []


def test_a_late_worker_merges_the_deltas_that_arrive_meanwhile(link):
    def play() -> None:
        run = run_of(link)
        chunks(run, "a")
        link.is_late = 2 * LATE_THRESHOLD_S
        start = run.loop.time()
        chunks(run, "b", "c", "d")
        assert [data for _, data in link.sent] == ["a"]
        [(when, _)] = link.due
        assert 0 <= when - start - HOLD_FACTOR * 2 * LATE_THRESHOLD_S < 1
        link.pass_time()
        assert [data for _, data in link.sent] == ["a", "bcd"]
        link.is_late = 10.0
        chunks(run, "e")
        assert link.due[0][0] - run.loop.time() <= MAX_HOLD_S
        link.is_late = 0.0
        chunks(run, "f")
        link.pass_time()
        chunks(run, "g")

    played(play)
    assert [data for _, data in link.sent] == ["a", "bcd", "ef", "g"]


def test_other_chunks_are_sent_at_once_after_the_waiting_text(link):
    def play() -> None:
        link.is_late = 2 * LATE_THRESHOLD_S
        run = run_of(link)
        chunks(run, "a", "b")
        chunks(run, "c", part=1)
        run.send(b"complete", {"result": "abc"})
        run.active.ended = True
        link.pass_time()

    played(play)
    assert link.sent == [("chunk", "ab"), ("chunk", "c"), ("complete", "abc")]


def test_large_chunks_do_not_wait_to_be_merged(link):
    def play() -> None:
        link.is_late = 2 * LATE_THRESHOLD_S
        run = run_of(link)
        chunks(run, "a" * (MAX_HELD_BYTES - 1), "b", "c" * MAX_HELD_BYTES)

    played(play)
    assert [len(data) for _, data in link.sent] == [MAX_HELD_BYTES, MAX_HELD_BYTES]


def test_waiting_text_respects_the_credit(link):
    def play() -> None:
        link.is_late = 2 * LATE_THRESHOLD_S
        run = run_of(link, upto=1)
        chunks(run, "a", "b")
        chunks(run, "c", part=1)
        run.grant(1)
        assert link.sent == []
        link.pass_time()
        assert [data for _, data in link.sent] == ["ab"]
        run.grant(2)

    played(play)
    assert [data for _, data in link.sent] == ["ab", "c"]
