"""Which runs wait in the broker's queues, on disk: so that after its death they are known never to have run.

Only names are written, no bodies: the client has those, and sends the run again once it is told that it may.
The file need outlive a killed process, not the machine: what is written is in the kernel's hands at once. Where
it cannot be written or read, nothing is claimed: a client is then told that its run may have run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack

from axon_zmq import wire
from axon_zmq.wire import RunKey

log = logging.getLogger(__name__)

FILE: Final = "queued"
"""Its name in the run directory."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST_STALE: Final = 10_000
"""Records that mean nothing any more, until the file is written anew."""


class Journal:
    """The file, open for appending.

    Args:
        path: Where; what an earlier broker wrote is in `was_queued`.
    """

    def __init__(self, path: Path) -> None:
        self.was_queued = _read(path)
        """Runs that waited when an earlier broker died."""
        self._path = path
        self._live = set(self.was_queued)
        self._stale = 0
        self._file = -1
        self._write_anew()

    def __repr__(self) -> str:
        return f"<Journal {len(self._live)} wait>"

    def add(self, key: RunKey) -> None:
        """A run waits."""
        self._live.add(key)
        self._append([True, *key])

    def remove(self, key: RunKey) -> None:
        """It waits no longer; written before it is given to anybody."""
        self._live.discard(key)
        self._stale += 2
        self._append([False, *key])
        if self._stale > _MOST_STALE + len(self._live):
            self._write_anew()

    def close(self) -> None:
        """Leave it to the next broker."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, record: list[object]) -> None:
        if self._file < 0:
            return
        try:
            os.write(self._file, wire.pack(record))
        except OSError as fault:
            log.warning("cannot write %s: %s; what waits is not noted any more", self._path, fault.strerror)
            os.ftruncate(self._file, 0)
            self.close()

    def _write_anew(self) -> None:
        new = self._path.with_suffix(".new")
        try:
            file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            os.write(file, wire.pack([_machine()]) + b"".join(wire.pack([True, *key]) for key in self._live))
            new.replace(self._path)
        except OSError as fault:
            log.warning("cannot write %s: %s; what waits is not noted", self._path, fault.strerror)
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


def _read(path: Path) -> set[RunKey]:
    waiting: set[RunKey] = set()
    try:
        with path.open("rb") as file:
            records: Iterator[Any] = iter(msgpack.Unpacker(file))
            [machine] = next(records, [""])
            if machine and machine == _machine():
                for is_added, client, id in records:
                    (waiting.add if is_added else waiting.discard)((client, id))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError, msgpack.UnpackException) as fault:
        log.warning("%s cannot be read: %r", path, fault)
        return set()
    return waiting
