"""Replay buffers of all runs of a worker, bounded in bytes. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Final

from axon_zmq.protocol import limits
from axon_zmq.protocol.backend import Held
from axon_zmq.protocol.frames import RunKey
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer

REPLAY_BYTES_PER_WORKER: Final = 128 * limits.MIB
"""Maximum number of bytes in the kept messages of all runs of a worker; the runs that ended first are forgotten
first."""


class ReplayStore:
    """All replay buffers of a worker: of open runs, and of ended runs within their resume window.

    Ended runs are in the order of their end, because `end` moves a run behind all others. The run that must be
    forgotten first is therefore found without sorting.
    """

    def __init__(self, max_bytes: int = REPLAY_BYTES_PER_WORKER) -> None:
        self._buffers: OrderedDict[RunKey, ReplayBuffer] = OrderedDict()
        self._max_bytes = max_bytes
        self.forgot_at = 0.0
        """When an ended run was last forgotten within its resume window, in seconds of the monotonic clock.

        The broker uses it to decide whether it may say that a request never ran.
        """

    def __len__(self) -> int:
        return len(self._buffers)

    def __repr__(self) -> str:
        return f"<ReplayStore {len(self._buffers)} runs>"

    def __iter__(self) -> Iterator[tuple[RunKey, ReplayBuffer]]:
        return iter(self._buffers.items())

    def get(self, key: RunKey) -> ReplayBuffer | None:
        """Return the buffer of a run, if it is still kept."""
        return self._buffers.get(key)

    def add(self, key: RunKey, buffer: ReplayBuffer) -> None:
        """Keep the buffer of a new run."""
        self._buffers[key] = buffer

    def end(self, key: RunKey, now: float) -> None:
        """Record that a run has ended; its buffer is kept for the resume window."""
        self._buffers[key].ended_at = now
        self._buffers.move_to_end(key)

    def held(
        self,
        keys: Iterable[RunKey] | None = None,
        waiting: AbstractSet[RunKey] = frozenset(),
        sizes: Mapping[RunKey, int] = MappingProxyType({}),
    ) -> tuple[Held, ...]:
        """Return descriptions of kept runs for a registration.

        Args:
            keys: Keys of the runs; None: all runs.
            waiting: Keys of the runs that only wait for tools of their clients.
            sizes: Bytes of the bodies that were received for each open run.
        """
        wanted = self._buffers if keys is None else set(keys)
        return tuple(
            Held(
                client=client,
                id=id,
                kind=buffer.info.kind,
                digest=buffer.info.digest,
                deadline=buffer.info.deadline,
                keep=buffer.info.keep,
                seq=buffer.seq,
                ended=buffer.ended_at is not None,
                waiting=(client, id) in waiting,
                size=sizes.get((client, id), 0),
            )
            for (client, id), buffer in self
            if (client, id) in wanted
        )

    def ended(self, now: float) -> Iterator[tuple[RunKey, ReplayBuffer]]:
        """Return the ended runs within their resume window, in the order of their end."""
        return (
            (key, buffer)
            for key, buffer in self
            if buffer.ended_at is not None and now < buffer.ended_at + limits.RESUME_WINDOW
        )

    def merge(self, ended: Iterable[tuple[RunKey, ReplayBuffer]]) -> list[RunKey]:
        """Add runs that ended in another process, in the order of their end.

        Returns:
            The keys of the runs that were added.
        """
        # A file never replaces the buffer of a run that this worker has itself.
        new = {key: buffer for key, buffer in ended if key not in self._buffers}
        # The sort is stable, and open runs come first: the ended ones are again in the order of their end.
        by_end = sorted({**self._buffers, **new}.items(), key=lambda item: item[1].ended_at or 0.0)
        self._buffers = OrderedDict(by_end)
        return list(new)

    def tidy(self, now: float) -> None:
        """Forget ended runs whose resume window has closed, and enforce the limit on the bytes of all runs.

        The runs that ended first are forgotten first. If that is not enough, the largest open runs lose the older half
        of their messages: a later replay of them has a gap, but no run is ended for lack of memory.
        """
        total = sum(buffer.bytes for buffer in self._buffers.values())
        for key, buffer in list(self._buffers.items()):
            if buffer.ended_at is None:
                continue
            if now < buffer.ended_at + limits.RESUME_WINDOW:
                if total <= self._max_bytes:
                    break  # all ended runs that follow have ended later
                self.forgot_at = now
            total -= buffer.bytes
            del self._buffers[key]
        for buffer in sorted(self._buffers.values(), key=lambda buffer: -buffer.bytes):
            if total <= self._max_bytes:
                break
            before = buffer.bytes
            buffer.trim(before // 2)  # half of it, so that not every call trims the same run
            total -= before - buffer.bytes
