"""Memory of a worker process: returns what ended runs leave behind, and keeps the process below `AXON_WORKER_MEMORY`.

Internal: may change in any release.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

from axon_zmq.process import memory
from axon_zmq.protocol import limits

COLLECT_BYTES: Final = 4 * limits.MIB
"""Bytes of ended runs' bodies and answers after which garbage is collected. pydantic-ai's runs contain reference cycles,
and Python starts a full collection by the number of objects only: a hundred texts of 16 MiB are few objects."""
COLLECT_DELAY_S: Final = 2.0
"""Seconds from then to the collection, so that there is one for many runs. It takes about 20 ms for 100,000 objects."""


class Memory:
    """The memory of this process; to be used on the event loop of the link only."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._left_behind = 0
        """Bytes of bodies and answers of runs that ended since the last collection."""
        self._collection: asyncio.TimerHandle | None = None

    def run_ended(self, size: int) -> None:
        """Record that a run has ended.

        Args:
            size: Bytes of its body and of its messages that are kept.
        """
        self._left_behind += size
        if self._left_behind >= COLLECT_BYTES and self._collection is None:
            self._collection = self._loop.call_later(COLLECT_DELAY_S, self._collect)

    def _collect(self) -> None:
        self._collection = None
        self._left_behind = 0
        gc.collect()
        memory.return_free_memory()
