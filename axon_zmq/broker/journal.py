"""What the next broker must know should this one die: which runs only wait, and which workers there are.

Only names are written, no bodies: a client has its request, and sends it again once it is told that it may.
The file need outlive a killed process, not the machine: what is written is in the kernel's hands at once. Where
it cannot be written or read, nothing is claimed: clients are then told that their runs may have run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack

from axon_zmq import wire
from axon_zmq.broker.records import Past
from axon_zmq.wire import RunKey

log = logging.getLogger(__name__)

FILE: Final = "journal"
"""Its name in the run directory."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST_STALE: Final = 10_000
"""Records that mean nothing any more, until the file is written anew."""
_WAITS, _GOES_ON, _WORKER, _WORKER_GONE, _LOST_AT, _MACHINE = range(6)


class Journal:
    """The file, open for appending.

    Args:
        path: Where; what an earlier broker wrote there is in `past`.
        legacies: See `Past`.
    """

    def __init__(self, path: Path, legacies: tuple[str, ...] = ()) -> None:
        self.past = _read(path, legacies)
        self._path = path
        self._waiting: set[RunKey] = set(self.past.waiting)
        self._workers: set[bytes] = set()
        self._lost_at = self.past.lost_at
        self._stale = 0
        self._file = -1
        self._write_anew()

    def __repr__(self) -> str:
        return f"<Journal {len(self._waiting)} wait, {len(self._workers)} workers>"

    def enqueued(self, key: RunKey) -> None:
        """A run waits that was never with a worker."""
        self._waiting.add(key)
        self._append(_WAITS, *key)

    def dequeued(self, key: RunKey) -> None:
        """It waits no longer; written before it is given to anybody."""
        self._waiting.discard(key)
        self._append(_GOES_ON, *key)
        self._stale += 2
        if self._stale > _MOST_STALE + len(self._waiting):
            self._write_anew()

    def registered(self, worker: bytes) -> None:
        """A worker is there."""
        self._workers.add(worker)
        self._append(_WORKER, worker)

    def unregistered(self, worker: bytes, lost_at: float | None) -> None:
        """It is there no more; `lost_at` where runs were lost with it."""
        self._workers.discard(worker)
        self._append(_WORKER_GONE, worker)
        if lost_at is not None:
            self._lost_at = lost_at
            self._append(_LOST_AT, lost_at)

    def close(self) -> None:
        """Leave it to the next broker."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, *record: object) -> None:
        if self._file < 0:
            return
        try:
            os.write(self._file, wire.pack(record))
        except OSError as fault:
            log.warning("cannot write %s: %s; it is not kept any more", self._path, fault.strerror)
            os.ftruncate(self._file, 0)
            self.close()

    def _write_anew(self) -> None:
        records = [
            (_MACHINE, _machine()),
            (_LOST_AT, self._lost_at),
            *((_WORKER, worker) for worker in self._workers),
            *((_WAITS, *key) for key in self._waiting),
        ]
        new = self._path.with_suffix(".new")
        try:
            file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            os.write(file, b"".join(wire.pack(record) for record in records))
            new.replace(self._path)
        except OSError as fault:
            log.warning("cannot write %s: %s; it is not kept", self._path, fault.strerror)
            return
        self.close()
        self._file = file
        self._stale = 0


def _machine() -> str:
    """The machine's boot: what was written before another one is not to be believed."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _read(path: Path, legacies: tuple[str, ...]) -> Past:
    waiting: set[RunKey] = set()
    workers: set[bytes] = set()
    lost_at = 0.0
    try:
        with path.open("rb") as file:
            records: Iterator[Any] = iter(msgpack.Unpacker(file))
            if next(records, None) != [_MACHINE, _machine()] or not _machine():
                return Past(legacies=legacies)
            for what, *values in records:
                match what:
                    case 0 | 1:
                        (waiting.add if what == _WAITS else waiting.discard)((values[0], values[1]))
                    case 2 | 3:
                        (workers.add if what == _WORKER else workers.discard)(values[0])
                    case _:
                        lost_at = float(values[0])
    except FileNotFoundError:
        return Past(legacies=legacies)
    except (OSError, ValueError, TypeError, IndexError, msgpack.UnpackException) as fault:
        log.warning("%s cannot be read: %r", path, fault)
        return Past(legacies=legacies)
    return Past(frozenset(waiting), frozenset(workers), lost_at, legacies)
