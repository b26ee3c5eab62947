"""The memory limit of a worker, with a simulated process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from axon_zmq.errors import UnavailableError
from axon_zmq.process.memory import ProcessMemory
from axon_zmq.protocol.limits import KIB, MIB
from axon_zmq.worker.core.events import MemoryUsed
from axon_zmq.worker.memory import BYTES_PER_BODY_BYTE, ITEMS_BYTES, Memory

LIMIT = 800 * MIB
SOFT = 700 * MIB


class FakeProcess(ProcessMemory):
    """A process whose memory the test sets."""

    def __init__(self, used: int = 100 * MIB) -> None:
        self.in_use = used
        self.garbage = 0
        """Bytes that `return_free` returns."""
        self.room: list[int] = []
        self.measured = asyncio.Event()
        """Set at the second measurement."""
        self.returned = 0
        self.has_returned = asyncio.Event()

    @property
    def is_known(self) -> bool:
        return True

    def used(self) -> int:
        return self.in_use

    def limit_growth(self, more: int) -> None:
        if self.room:
            self.measured.set()
        self.room.append(more)

    def return_free(self) -> None:
        self.returned += 1
        self.has_returned.set()
        self.in_use -= self.garbage
        self.garbage = 0


def run(play: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(play())  # pyright: ignore[reportArgumentType]


def test_bodies_are_refused_if_their_estimates_exceed_the_memory():
    async def play() -> None:
        process = FakeProcess()
        memory = Memory(LIMIT, [].append, process)
        need = BYTES_PER_BODY_BYTE * 16 * MIB + ITEMS_BYTES
        assert memory.admit(16 * MIB, False) == need
        assert memory.admit(16 * MIB, False) == need
        with pytest.raises(UnavailableError) as caught:
            memory.admit(16 * MIB, False)
        assert caught.value.error_type == "overloaded"
        assert caught.value.details["retry_after_ms"] > 0
        for text in (f"{16 * MIB} bytes", f"{SOFT // 4 * 3}", f"AXON_WORKER_MEMORY is {LIMIT}"):
            assert text in caught.value.message
        assert memory.admit(64 * KIB, False)  # a small one may use the last quarter
        assert memory.admit(16 * MIB, True)  # nothing else executes
        memory.was_read(need)
        memory.was_read(need)
        memory.was_read(need)
        assert memory.admit(16 * MIB, False)
        memory.close()

    run(play)


def test_garbage_is_collected_before_a_body_is_refused():
    async def play() -> None:
        process = FakeProcess(SOFT - MIB)
        memory = Memory(LIMIT, [].append, process)
        process.garbage = 500 * MIB
        assert memory.admit(MIB, False)
        assert process.returned == 1
        memory.close()

    run(play)


def test_small_bodies_and_workers_without_a_limit_need_no_estimate():
    async def play() -> None:
        memory = Memory(LIMIT, [].append, FakeProcess(LIMIT))
        assert memory.admit(4 * KIB, False) == 0
        memory.close()
        unlimited = Memory(0, [].append, FakeProcess(LIMIT))
        assert unlimited.admit(2**40, False) == 0

    run(play)


def test_too_much_memory_is_reported_and_the_kernel_gets_what_is_left():
    async def play() -> None:
        reports: list[MemoryUsed] = []
        process = FakeProcess(SOFT + MIB)
        memory = Memory(LIMIT, reports.append, process)
        assert reports == [MemoryUsed(SOFT + MIB, SOFT)]
        assert process.room == [LIMIT - SOFT - MIB]
        assert process.returned == 1
        process.in_use = SOFT
        await process.measured.wait()
        assert len(reports) == 1
        memory.close()

    run(play)


def test_garbage_is_collected_after_large_runs_only():
    async def play() -> None:
        process = FakeProcess()
        memory = Memory(0, [].append, process)
        memory.run_ended(MIB)
        memory.run_ended(MIB)
        assert "limit 0 MiB" in repr(memory)
        memory.run_ended(4 * MIB)
        memory.run_ended(4 * MIB)
        await process.has_returned.wait()
        memory.close()
        assert process.returned == 1

    run(play)
