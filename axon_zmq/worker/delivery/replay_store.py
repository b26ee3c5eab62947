"""Replay buffers of all runs of a worker, and which are forgotten first. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Final

from axon_zmq.protocol import limits
from axon_zmq.protocol.backend import Held
from axon_zmq.protocol.frames import RunKey
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer

REPLAY_BYTES_PER_WORKER: Final = 128 * limits.MIB
"""Bytes of all runs' messages that are kept; the runs that ended first are forgotten first."""


class ReplayStore:
    """All replay buffers of a worker: those of open runs, and of ended ones until their resume window has passed."""

    def __init__(self, most_bytes: int = REPLAY_BYTES_PER_WORKER) -> None:
        self._buffers: OrderedDict[RunKey, ReplayBuffer] = OrderedDict()
        self._most_bytes = most_bytes
        self.forgot_at = 0.0
        """When an ended run was last forgotten before its window had passed, for want of room."""

    def __len__(self) -> int:
        return len(self._buffers)

    def __repr__(self) -> str:
        return f"<ReplayStore {len(self._buffers)} runs>"

    def __iter__(self) -> Iterator[tuple[RunKey, ReplayBuffer]]:
        return iter(self._buffers.items())

    def get(self, key: RunKey) -> ReplayBuffer | None:
        """The buffer of a run, if it is still kept."""
        return self._buffers.get(key)

    def add(self, key: RunKey, buffer: ReplayBuffer) -> None:
        """Keep the buffer of a new run."""
        self._buffers[key] = buffer

    def end(self, key: RunKey, now: float) -> None:
        """A run has ended: its buffer is kept for the resume window, behind those that ended before."""
        self._buffers[key].ended_at = now
        self._buffers.move_to_end(key)

    def held(self, keys: Iterable[RunKey] | None = None) -> tuple[Held, ...]:
        """What a broker must know of the kept runs: of all, or of those with these keys."""
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
            )
            for (client, id), buffer in self
            if (client, id) in wanted
        )

    def ended(self, now: float) -> Iterator[tuple[RunKey, ReplayBuffer]]:
        """The ended runs whose window has not passed, those that ended first in front."""
        return (
            (key, box) for key, box in self if box.ended_at is not None and now < box.ended_at + limits.RESUME_WINDOW
        )

    def merge(self, ended: Iterable[tuple[RunKey, ReplayBuffer]]) -> list[RunKey]:
        """Take over runs that ended in another process, each in its place by the time of its end; those taken."""
        new = {key: buffer for key, buffer in ended if key not in self._buffers}
        by_end = sorted({**self._buffers, **new}.items(), key=lambda item: item[1].ended_at or 0.0)
        self._buffers = OrderedDict(by_end)
        return list(new)

    def tidy(self, now: float) -> None:
        """Forget ended runs whose window has passed, and what is over the bound of all together.

        The runs that ended first go first; then the largest of the open ones lose their older half.
        """
        total = sum(buffer.bytes for buffer in self._buffers.values())
        for key, buffer in list(self._buffers.items()):
            if buffer.ended_at is None:
                continue
            if now < buffer.ended_at + limits.RESUME_WINDOW:
                if total <= self._most_bytes:
                    break
                self.forgot_at = now
            total -= buffer.bytes
            del self._buffers[key]
        for buffer in sorted(self._buffers.values(), key=lambda buffer: -buffer.bytes):
            if total <= self._most_bytes:
                break
            before = buffer.bytes
            buffer.trim(before // 2)
            total -= before - buffer.bytes
