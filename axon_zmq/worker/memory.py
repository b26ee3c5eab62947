"""Memory of a worker process: returns what ended runs leave behind, and keeps the process below `AXON_WORKER_MEMORY`.

The limit has three stages:

1. A run is refused as `overloaded` if reading its body could exceed 7/8 of the limit (`Memory.admit`).
2. Above 7/8 of the limit, garbage is collected. If that is not enough, the worker core ends the largest run as
   `out_of_memory`, and after some seconds the worker leaves: its other runs may finish, and supervisord starts a fresh
   process.
3. At the limit, the kernel refuses further memory. The code that asks for it gets a MemoryError, and its run ends as
   `out_of_memory`. This is the only stage that stops a single allocation of any size.

Internal: may change in any release.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from contextvars import copy_context
from typing import Final

from axon_zmq.errors import UnavailableError
from axon_zmq.process import memory
from axon_zmq.protocol import limits
from axon_zmq.worker.core.events import MemoryUsed

log = logging.getLogger(__name__)

COLLECT_BYTES: Final = 4 * limits.MIB
"""Bytes of ended runs' bodies and answers after which garbage is collected. pydantic-ai's runs contain reference
cycles, and Python starts a full collection by the number of objects only: a hundred texts of 16 MiB are few objects."""
COLLECT_DELAY_S: Final = 2.0
"""Seconds from then to the collection, so that there is one for many runs. It takes about 20 ms for 100,000 objects."""
SAMPLE_INTERVAL_S: Final = 0.25
"""Seconds between two measurements of the memory in use."""
SMALL_BODY_BYTES: Final = 4 * limits.KIB
"""Size in bytes up to which a body is read without an estimate of the memory that it needs."""
LARGE_BODY_BYTES: Final = 64 * limits.KIB
"""Size in bytes above which a body may not use the last quarter of the memory, which is kept for smaller ones."""
BYTES_PER_BODY_BYTE: Final = 8
"""Upper estimate of the memory that a run needs for each byte of its body, with its answer."""
ITEMS_BYTES: Final = 64 * limits.MIB
"""Upper estimate of the additional memory for the items of a body, if it has as many as `MAX_ITEMS` allows."""
BYTES_PER_ITEM: Final = ITEMS_BYTES // limits.MAX_ITEMS
"""Upper estimate of the memory for one item, which may have only one byte in the body."""
RETRY_AFTER_MS: Final = 1000
"""`retry_after_ms` of a run that is refused for lack of memory."""


class Memory:
    """The memory of this process; to be used on the event loop of the link only.

    Args:
        limit: `AXON_WORKER_MEMORY` in bytes; 0 if there is no limit.
        put: Passes an event to the worker core.
        process: The memory of this process.
    """

    def __init__(
        self, limit: int, put: Callable[[MemoryUsed], None], process: memory.ProcessMemory | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        """The context of the process. Runs end in their own context, which holds all their data: a timer in it would
        keep the data of the last run alive during the collection."""
        self._put = put
        self._process = process or memory.ProcessMemory()
        self._limit = limit if self._process.is_known else 0
        if limit and not self._limit:
            log.warning("AXON_WORKER_MEMORY has no effect: this system does not report how much memory a process uses")
        self._soft = self._limit // 8 * 7
        """Bytes above which runs are refused or ended."""
        self._left_behind = 0
        """Bytes of bodies and answers of runs that ended since the last collection."""
        self._collection: asyncio.TimerHandle | None = None
        self._collected_at = 0.0
        """When garbage was last collected, in seconds of the loop's clock."""
        self._reserved = 0
        """Estimated bytes for bodies that are being read."""
        self._sample: asyncio.TimerHandle | None = None
        if self._limit:
            self._measure()

    def __repr__(self) -> str:
        used = self._process.used() // limits.MIB
        return f"<Memory {used} MiB in use, limit {self._limit // limits.MIB} MiB, {self._reserved} bytes reserved>"

    def close(self) -> None:
        """Stop measuring."""
        for timer in (self._sample, self._collection):
            if timer is not None:
                timer.cancel()

    # --- stage 1: bodies ---------------------------------------------------------------------------------

    def admit(self, size: int, is_alone: bool) -> int:
        """Reserve memory for reading a body.

        Args:
            size: Size of the body in bytes.
            is_alone: Whether no other run executes. A body is then admitted whatever its size, because waiting would
                not help; the kernel still enforces the limit.

        Returns:
            The number of bytes to pass to `was_read` when the body was read.

        Raises:
            UnavailableError: `overloaded` if the body might need more memory than there is.
        """
        if not self._limit or size <= SMALL_BODY_BYTES:
            return 0
        need = BYTES_PER_BODY_BYTE * size + min(ITEMS_BYTES, BYTES_PER_ITEM * size)
        most = self._soft // 4 * 3 if size > LARGE_BODY_BYTES else self._soft
        if not is_alone and self._used_with(need) > most:
            self._collect_if_late()
            if (total := self._used_with(need)) > most:
                raise UnavailableError(
                    "overloaded",
                    f"the worker has too little memory for a body of {size} bytes now: it would use up to {total} "
                    f"bytes, of which such bodies may use {most} (AXON_WORKER_MEMORY is {self._limit}); retry in "
                    f"{RETRY_AFTER_MS} ms",
                    {"retry_after_ms": RETRY_AFTER_MS},
                )
        self._reserved += need
        return need

    def was_read(self, reserved: int) -> None:
        """Release the reservation for a body, whose memory is now in use and therefore measured."""
        self._reserved -= reserved

    def _used_with(self, more: int) -> int:
        return self._process.used() + self._reserved + more

    # --- stages 2 and 3: measuring -----------------------------------------------------------------------

    def _measure(self) -> None:
        self._sample = self._loop.call_later(SAMPLE_INTERVAL_S, self._measure)
        used = self._process.used()
        if used > self._soft:
            self._collect_if_late()
            used = self._process.used()
        self._process.limit_growth(self._limit - used)
        if used > self._soft:
            self._put(MemoryUsed(used, self._soft))

    # --- garbage -----------------------------------------------------------------------------------------

    def run_ended(self, size: int) -> None:
        """Record that a run has ended.

        Args:
            size: Bytes of its body and of its messages that are kept.
        """
        self._left_behind += size
        if self._left_behind >= COLLECT_BYTES and self._collection is None:
            self._collection = self._loop.call_later(COLLECT_DELAY_S, self._collect, context=self._context)

    def _collect_if_late(self) -> None:
        if self._loop.time() - self._collected_at >= COLLECT_DELAY_S:
            self._collect()

    def _collect(self) -> None:
        if self._collection is not None:
            self._collection.cancel()
            self._collection = None
        self._left_behind = 0
        gc.collect()
        self._process.return_free()
        self._collected_at = self._loop.time()
