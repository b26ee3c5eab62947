"""The ended runs of a worker that leaves, as a file in the run directory that another worker takes up.

One msgpack list for each run, one after the other, so that neither side needs all of it twice in memory. The
file is its owner's alone, and deleted by who has read it. Times are of the machine's monotonic clock, which is
the same for all its processes; what comes from another boot is seen as out of time.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from axon_zmq.process.run_dir import HANDOVER, open_private
from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import RunKey
from axon_zmq.protocol.msgpack import pack as pack_value
from axon_zmq.worker.delivery.replay_buffer import Message, ReplayBuffer, RunInfo
from axon_zmq.worker.delivery.replay_store import REPLAY_BYTES_PER_WORKER

log = logging.getLogger(__name__)

_OVERHEAD: Final = 64 * limits.MIB
"""Bytes that a file may have over the messages in it."""


def write(run_dir: Path, ended: Iterable[tuple[RunKey, ReplayBuffer]]) -> str | None:
    """Write runs down; the file's name, or None where there is nothing to write, or no way to.

    Args:
        run_dir: The file lies in its folder `handover`.
        ended: Runs that have ended, those that did so first in front.
    """
    folder = run_dir / HANDOVER
    name = f"{secrets.token_hex(8)}.msgpack"
    new = folder / f"{name}.new"
    count = 0
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with open(new, "xb", opener=open_private) as file:
            for (client, id), buffer in ended:
                messages = [list(message) for message in buffer.kept]
                file.write(pack_value([client, id, list(buffer.info), buffer.ended_at, buffer.seq, messages]))
                count += 1
        if count:
            new.rename(folder / name)
        else:
            new.unlink()
    except OSError as fault:
        log.error("cannot hand over %d ended runs: %s", count, fault.strerror)
        return None
    return name if count else None


class Taken(NamedTuple):
    """What was in a file."""

    runs: list[tuple[RunKey, ReplayBuffer]]
    """Those whose resume window has not passed."""
    whole: bool
    """Whether all of it could be read."""


def take(run_dir: Path, name: str, pack: Callable[[Any], bytes], now: float) -> Taken:
    """Read a file and delete it.

    Args:
        run_dir: Where `write` was told to write.
        name: As `write` returned it.
        pack: For the bufferes; nothing more is put into them.
        now: Seconds of the monotonic clock.
    """
    path = run_dir / HANDOVER / name
    taken: list[tuple[RunKey, ReplayBuffer]] = []
    if path.name != name:
        log.error("%r is no name of a file with ended runs", name)
        return Taken(taken, whole=False)
    try:
        with path.open("rb") as file:
            entries = _entries(file)
            path.unlink()
            for entry in entries:
                key, buffer = _restored(entry, pack)
                if buffer.ended_at is not None and buffer.ended_at <= now < buffer.ended_at + limits.RESUME_WINDOW:
                    taken.append((key, buffer))
    except (OSError, ValueError, TypeError, AttributeError, msgpack.UnpackException) as fault:
        log.error("%s: %r; %d ended runs are taken over", name, fault, len(taken))
        return Taken(taken, whole=False)
    return Taken(taken, whole=True)


def _entries(file: Any) -> Iterator[list[Any]]:
    if os.fstat(file.fileno()).st_size > REPLAY_BYTES_PER_WORKER + _OVERHEAD:
        raise ValueError("it is larger than a worker writes them")
    return iter(msgpack.Unpacker(file, max_buffer_size=REPLAY_BYTES_PER_WORKER + _OVERHEAD))


def _restored(entry: list[Any], pack: Callable[[Any], bytes]) -> tuple[RunKey, ReplayBuffer]:
    client, id, info, ended_at, seq, messages = entry
    buffer = ReplayBuffer(pack, RunInfo(*info))
    buffer.restore(seq, ended_at, [Message(*message) for message in messages])
    return (bytes(client), bytes(id)), buffer


def clear(run_dir: Path, before: float) -> None:
    """Delete files that were written before a time of the wall clock, and nobody came for."""
    for path in (run_dir / HANDOVER).glob("*"):
        with suppress(OSError):
            if path.stat().st_mtime < before:
                path.unlink()
