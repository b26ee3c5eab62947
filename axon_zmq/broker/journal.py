"""What the next broker must know should this one die: which runs only wait, and which workers there are.

Only names are written, no bodies: a client has its request, and sends it again once it is told that it may.
The file need outlive a killed process, not the machine: what is written is in the kernel's hands at once. Where
it cannot be written or read, nothing is claimed: clients are then told that their runs may have run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import msgpack

from axon_zmq.broker.core.effects import Dequeued, Enqueued, JournalEffect, Registered, Unregistered
from axon_zmq.broker.core.recovery import PreviousState
from axon_zmq.protocol.frames import RunKey
from axon_zmq.protocol.msgpack import pack

log = logging.getLogger(__name__)

JOURNAL_FILE: Final = "journal"
"""Its name in the run directory."""
_BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
_MAX_STALE_RECORDS: Final = 10_000
"""Records that mean nothing any more, until the file is written anew."""
_MACHINE_RECORD: Final = "machine"
"""The first record's name: the machine's boot."""


class Record(IntEnum):
    """The first element of each record after the first: what it says."""

    QUEUED = 0
    """A run waits: client, id."""
    DEQUEUED = 1
    """It waits no longer: client, id."""
    WORKER = 2
    """A worker is registered: routing id, pid."""
    WORKER_GONE = 3
    """It is no longer: routing id."""
    LOST_AT = 4
    """When runs were last lost with a worker: seconds of the machine's monotonic clock."""


Entry = tuple[Any, ...]
"""A record and what it is about, as it is packed."""


class JournalState:
    """What the next broker will be told.

    Args:
        previous: What this broker was told. Workers that it waits for stay until they register, or are given up.
        now: Seconds of the machine's monotonic clock.
    """

    def __init__(self, previous: PreviousState, now: float) -> None:
        self.waiting: set[RunKey] = set(previous.waiting)
        self.workers: dict[bytes, int] = dict(previous.workers or {})
        self.lost_at = now if previous.workers is None else previous.lost_at

    def remember(self, effect: JournalEffect) -> list[Entry]:
        """Take note; what has to be written for it, in this order."""
        match effect:
            case Enqueued(client, id):
                self.waiting.add((client, id))
                return [(Record.QUEUED, client, id)]
            case Dequeued(client, id):
                self.waiting.discard((client, id))
                return [(Record.DEQUEUED, client, id)]
            case Registered(worker, pid):
                self.workers[worker] = pid
                return [(Record.WORKER, worker, pid)]
            case Unregistered(worker, lost_at):
                self.workers.pop(worker, None)
                self.lost_at = max(self.lost_at, lost_at)
                return [(Record.LOST_AT, self.lost_at), (Record.WORKER_GONE, worker)]

    def records(self) -> list[Entry]:
        """All of it."""
        return [
            (Record.LOST_AT, self.lost_at),
            *((Record.WORKER, worker, pid) for worker, pid in self.workers.items()),
            *((Record.QUEUED, *key) for key in self.waiting),
        ]

    def previous_state(self, handover_files: tuple[str, ...]) -> PreviousState:
        """As the next broker reads it."""
        return PreviousState(
            waiting=frozenset(self.waiting),
            workers=dict(self.workers),
            lost_at=self.lost_at,
            handover_files=handover_files,
        )


class Journal:
    """The file, open for appending.

    Args:
        path: Where; what an earlier broker wrote there is in `previous`.
        handover_files: See `PreviousState`.
        now: Seconds of the machine's monotonic clock.
    """

    def __init__(self, path: Path, handover_files: tuple[str, ...], now: float) -> None:
        self.previous = _read(path, handover_files)
        self._path = path
        self._state = JournalState(self.previous, now)
        self._stale = 0
        self._file = -1
        self._rewrite()

    def __repr__(self) -> str:
        return f"<Journal {len(self._state.waiting)} wait, {len(self._state.workers)} workers>"

    def remember(self, effect: JournalEffect) -> None:
        """Write it down; what goes on is written before it is given to anybody."""
        records = self._state.remember(effect)
        if self._file < 0:
            return
        try:
            _write(self._file, records)
        except OSError as fault:
            self._give_up(fault)
            return
        self._stale += isinstance(effect, Dequeued | Unregistered) * 2
        if self._stale > _MAX_STALE_RECORDS + len(self._state.waiting):
            self._rewrite()

    def close(self) -> None:
        """Leave it to the next broker."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _rewrite(self) -> None:
        new = self._path.with_suffix(".new")
        try:
            file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            try:
                _write(file, [(_MACHINE_RECORD, _boot_id()), *self._state.records()])
                new.replace(self._path)
            except OSError:
                os.close(file)
                raise
        except OSError as fault:
            self._give_up(fault)
            return
        self.close()
        self._file = file
        self._stale = 0

    def _give_up(self, fault: OSError) -> None:
        """What is there is no longer so: nobody shall believe it."""
        log.warning("cannot write %s: %s; it is not kept", self._path, fault.strerror)
        self.close()
        with suppress(OSError):
            os.truncate(self._path, 0)
        with suppress(OSError):
            self._path.unlink()


def _write(file: int, records: list[Entry]) -> None:
    """Write records whole.

    Raises:
        OSError: There was no room for all of them.
    """
    packed = b"".join(pack(record) for record in records)
    if os.write(file, packed) < len(packed):
        raise OSError(0, "no room is left")


def _boot_id() -> str:
    """The machine's boot: what was written before another one is not to be believed."""
    try:
        return _BOOT_ID_FILE.read_text().strip()
    except OSError:
        return ""


def _read(path: Path, handover_files: tuple[str, ...]) -> PreviousState:
    waiting: set[RunKey] = set()
    workers: dict[bytes, int] = {}
    lost_at = 0.0
    try:
        with path.open("rb") as file:
            records: Iterator[Any] = iter(msgpack.Unpacker(file))
            if next(records, None) != [_MACHINE_RECORD, _boot_id()] or not _boot_id():
                return PreviousState(handover_files=handover_files)
            for record in records:
                match record:
                    case [Record.QUEUED, client, id]:
                        waiting.add((client, id))
                    case [Record.DEQUEUED, client, id]:
                        waiting.discard((client, id))
                    case [Record.WORKER, worker, pid]:
                        workers[worker] = pid
                    case [Record.WORKER_GONE, worker]:
                        workers.pop(worker, None)
                    case [Record.LOST_AT, at]:
                        lost_at = float(at)
                    case _:
                        raise ValueError(f"unknown record {record!r:.200}")
    except FileNotFoundError:
        return PreviousState(handover_files=handover_files)
    except (OSError, ValueError, TypeError, msgpack.UnpackException) as fault:
        log.warning("%s cannot be read: %r", path, fault)
        return PreviousState(handover_files=handover_files)
    return PreviousState(waiting=frozenset(waiting), workers=workers, lost_at=lost_at, handover_files=handover_files)
