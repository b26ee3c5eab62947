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
from pathlib import Path
from typing import Any, Final

import msgpack

from axon_zmq.broker.core.effects import Dequeued, Enqueued, Registered, Remember, Unregistered
from axon_zmq.broker.core.pools import PreviousState
from axon_zmq.protocol.frames import RunKey
from axon_zmq.protocol.msgpack import pack

log = logging.getLogger(__name__)

FILE: Final = "journal"
"""Its name in the run directory."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST_STALE: Final = 10_000
"""Records that mean nothing any more, until the file is written anew."""
_MACHINE: Final = "machine"
"""The first record's name: the machine's boot."""
_WAITS, _GOES_ON, _WORKER, _WORKER_GONE, _LOST_AT = range(5)

Record = tuple[Any, ...]


class JournalState:
    """What the next broker will be told.

    Args:
        past: What this one was told. Workers that it awaits stay until they have come, or are given up.
        now: Seconds of the machine's monotonic clock.
    """

    def __init__(self, past: PreviousState, now: float) -> None:
        self.waiting: set[RunKey] = set(past.waiting)
        self.workers: dict[bytes, int] = dict(past.workers or {})
        self.lost_at = now if past.workers is None else past.lost_at

    def remember(self, effect: Remember) -> list[Record]:
        """Take note; what has to be written for it, in this order."""
        match effect:
            case Enqueued(client, id):
                self.waiting.add((client, id))
                return [(_WAITS, client, id)]
            case Dequeued(client, id):
                self.waiting.discard((client, id))
                return [(_GOES_ON, client, id)]
            case Registered(worker, pid):
                self.workers[worker] = pid
                return [(_WORKER, worker, pid)]
            case Unregistered(worker, lost_at):
                self.workers.pop(worker, None)
                self.lost_at = max(self.lost_at, lost_at)
                return [(_LOST_AT, self.lost_at), (_WORKER_GONE, worker)]

    def records(self) -> list[Record]:
        """All of it."""
        return [
            (_LOST_AT, self.lost_at),
            *((_WORKER, worker, pid) for worker, pid in self.workers.items()),
            *((_WAITS, *key) for key in self.waiting),
        ]

    def past(self, legacies: tuple[str, ...]) -> PreviousState:
        """As the next broker is told of it; see `PreviousState`."""
        return PreviousState(frozenset(self.waiting), dict(self.workers), self.lost_at, legacies)


class Journal:
    """The file, open for appending.

    Args:
        path: Where; what an earlier broker wrote there is in `past`.
        legacies: See `PreviousState`.
        now: Seconds of the machine's monotonic clock.
    """

    def __init__(self, path: Path, legacies: tuple[str, ...], now: float) -> None:
        self.past = _read(path, legacies)
        self._path = path
        self._ledger = JournalState(self.past, now)
        self._stale = 0
        self._file = -1
        self._write_anew()

    def __repr__(self) -> str:
        return f"<Journal {len(self._ledger.waiting)} wait, {len(self._ledger.workers)} workers>"

    def remember(self, effect: Remember) -> None:
        """Write it down; what goes on is written before it is given to anybody."""
        records = self._ledger.remember(effect)
        if self._file < 0:
            return
        try:
            _write(self._file, records)
        except OSError as fault:
            self._give_up(fault)
            return
        self._stale += isinstance(effect, Dequeued | Unregistered) * 2
        if self._stale > _MOST_STALE + len(self._ledger.waiting):
            self._write_anew()

    def close(self) -> None:
        """Leave it to the next broker."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write_anew(self) -> None:
        new = self._path.with_suffix(".new")
        try:
            file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            try:
                _write(file, [(_MACHINE, _machine()), *self._ledger.records()])
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


def _write(file: int, records: list[Record]) -> None:
    """Write records whole.

    Raises:
        OSError: There was no room for all of them.
    """
    packed = b"".join(pack(record) for record in records)
    if os.write(file, packed) < len(packed):
        raise OSError(0, "no room is left")


def _machine() -> str:
    """The machine's boot: what was written before another one is not to be believed."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _read(path: Path, legacies: tuple[str, ...]) -> PreviousState:
    waiting: set[RunKey] = set()
    workers: dict[bytes, int] = {}
    lost_at = 0.0
    try:
        with path.open("rb") as file:
            records: Iterator[Any] = iter(msgpack.Unpacker(file))
            if next(records, None) != [_MACHINE, _machine()] or not _machine():
                return PreviousState(legacies=legacies)
            for record in records:
                match record:
                    case [0, client, id]:
                        waiting.add((client, id))
                    case [1, client, id]:
                        waiting.discard((client, id))
                    case [2, worker, pid]:
                        workers[worker] = pid
                    case [3, worker]:
                        workers.pop(worker, None)
                    case [4, at]:
                        lost_at = float(at)
                    case _:
                        raise ValueError(f"nothing is known of {record!r}")
    except FileNotFoundError:
        return PreviousState(legacies=legacies)
    except (OSError, ValueError, TypeError, msgpack.UnpackException) as fault:
        log.warning("%s cannot be read: %r", path, fault)
        return PreviousState(legacies=legacies)
    return PreviousState(frozenset(waiting), workers, lost_at, legacies)
