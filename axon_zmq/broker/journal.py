"""The journal: a file from which the next broker learns which runs were queued and which workers were registered.

If this broker dies, workers report the runs that they hold, but only the journal shows that a run was queued and never
started. It contains ids and no bodies, because each client still has its request and can send it again.

The file must survive a killed process, but not a crash of the machine. Records are therefore written without fsync:
after `write` they are in the kernel's page cache, which a dying process does not affect. If the file cannot be written
or read, the next broker knows nothing about earlier runs and tells clients that their runs may have been executed.
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
from axon_zmq.process.files import open_private
from axon_zmq.protocol.frames import RunKey
from axon_zmq.protocol.msgpack import pack

log = logging.getLogger(__name__)

JOURNAL_FILE: Final = "journal"
"""Name of the file in the run directory."""
_BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
_MAX_STALE_RECORDS: Final = 10_000
"""The file is rewritten when it contains more obsolete records than this number plus the number of queued runs."""
_MACHINE_RECORD: Final = "machine"
"""First element of the first record; the second is the boot id of the machine."""


class Record(IntEnum):
    """Types of all records except the first one.

    The type is the first element of a record; the docstrings list the other elements.
    """

    QUEUED = 0
    """A run is queued: client, request id."""
    DEQUEUED = 1
    """A run is no longer queued: client, request id."""
    WORKER = 2
    """A worker registered: routing id, pid."""
    WORKER_GONE = 3
    """A worker is no longer registered: routing id."""
    LOST_AT = 4
    """Runs were lost with a worker: when, in seconds of the machine's monotonic clock. The last such record counts."""


Entry = tuple[Any, ...]
"""A record as it is packed: a `Record` followed by its elements."""


class JournalState:
    """The content of the journal, in memory.

    Args:
        previous: The state that this broker read from its predecessor's journal. Workers in it remain until they
            register with this broker or count as lost.
        now: Seconds of the machine's monotonic clock.
    """

    def __init__(self, previous: PreviousState, now: float) -> None:
        self.waiting: set[RunKey] = set(previous.waiting)
        self.workers: dict[bytes, int] = dict(previous.workers or {})
        # Without a journal of the predecessor, any run from before now may have been lost.
        self.lost_at = now if previous.workers is None else previous.lost_at

    def remember(self, effect: JournalEffect) -> list[Entry]:
        """Apply an effect; return the records to write for it, in order."""
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
        """The records that express the whole content."""
        return [
            (Record.LOST_AT, self.lost_at),
            *((Record.WORKER, worker, pid) for worker, pid in self.workers.items()),
            *((Record.QUEUED, *key) for key in self.waiting),
        ]

    def previous_state(self, handover_files: tuple[str, ...]) -> PreviousState:
        """The content as the next broker will read it."""
        return PreviousState(
            waiting=frozenset(self.waiting),
            workers=dict(self.workers),
            lost_at=self.lost_at,
            handover_files=handover_files,
        )


class Journal:
    """The journal file, open for appending.

    Args:
        path: Path of the file. The content that an earlier broker left there is in `previous`.
        handover_files: Names of the handover files in the run directory, see `PreviousState`.
        now: Seconds of the machine's monotonic clock.
    """

    def __init__(self, path: Path, handover_files: tuple[str, ...], now: float) -> None:
        self.previous = _read(path, handover_files)
        self._path = path
        self._state = JournalState(self.previous, now)
        self._stale = 0
        """Number of obsolete records in the file."""
        self._file = -1
        """File descriptor; -1 if the journal is closed or could not be written."""
        self._rewrite()

    def __repr__(self) -> str:
        return f"<Journal {len(self._state.waiting)} queued runs, {len(self._state.workers)} workers>"

    def remember(self, effect: JournalEffect) -> None:
        """Write the records for an effect.

        The core returns `Dequeued` before the effect that sends a run to its worker, and effects are applied in order.
        If the broker dies between the two, the journal therefore does not list the dispatched run as queued.
        """
        records = self._state.remember(effect)
        if self._file < 0:
            return
        try:
            _write(self._file, records)
        except OSError as fault:
            self._give_up(fault)
            return
        # Each of these effects makes two records obsolete: the earlier one that it cancels, and its own.
        self._stale += isinstance(effect, Dequeued | Unregistered) * 2
        # A rewrite takes time in proportion to the queue, so a longer queue is rewritten less often.
        if self._stale > _MAX_STALE_RECORDS + len(self._state.waiting):
            self._rewrite()

    def close(self) -> None:
        """Close the file; its content stays for the next broker."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _rewrite(self) -> None:
        # A new file replaces the old one in one step, so a broker that dies here leaves one complete journal.
        new = self._path.with_suffix(".new")
        try:
            file = open_private(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
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
        """Delete the file, because its content no longer matches the broker's state."""
        log.warning(
            "cannot write the journal %s: %s; if this broker crashes, clients cannot learn that their queued runs were "
            "never started; fix the cause and restart the broker",
            self._path,
            fault.strerror,
        )
        self.close()
        # Truncate first: it succeeds even if the directory is not writable, in which case unlink fails.
        with suppress(OSError):
            os.close(open_private(self._path, os.O_WRONLY | os.O_TRUNC))
        with suppress(OSError):
            self._path.unlink()


def _write(file: int, records: list[Entry]) -> None:
    """Write records in one call.

    Raises:
        OSError: They could not be written completely.
    """
    packed = b"".join(pack(record) for record in records)
    if os.write(file, packed) < len(packed):
        raise OSError(0, "the disk is full")


def _boot_id() -> str:
    """The machine's boot id, or an empty string if the system has none.

    A journal from another boot is invalid: its times are of another monotonic clock, and no worker has survived.
    """
    try:
        return _BOOT_ID_FILE.read_text().strip()
    except OSError:
        return ""


def _read(path: Path, handover_files: tuple[str, ...]) -> PreviousState:
    waiting: set[RunKey] = set()
    workers: dict[bytes, int] = {}
    lost_at = 0.0
    try:
        with open(path, "rb", opener=open_private) as file:
            records: Iterator[Any] = iter(msgpack.Unpacker(file))
            # Without a boot id, a journal from an earlier boot could not be recognized, so none is used.
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
        log.warning("cannot read the journal %s: %r; treating all earlier runs as unknown", path, fault)
        return PreviousState(handover_files=handover_files)
    return PreviousState(waiting=frozenset(waiting), workers=workers, lost_at=lost_at, handover_files=handover_files)
