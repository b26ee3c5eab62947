"""Handover files: the ended runs of a leaving worker, which its successor reads.

The runs are passed on in a file, of which the broker sees only the name: up to 128 MiB of messages do not go through
the broker, and if no successor is running, the file waits for the next worker, even after a restart of the daemon.

A file contains one msgpack list for each run, so that neither side has all runs in memory twice. Only the daemon's user
can read it, and the successor deletes it. If no worker reads it, `clear_handover_files` in `process/run_dir.py` deletes
it after the resume window. Its times are of the machine's monotonic clock, which all processes share. If the machine
has booted since, the times do not fit, and the runs are dropped as if their resume windows had closed.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from axon_zmq.process.files import open_private
from axon_zmq.process.run_dir import HANDOVER
from axon_zmq.protocol import limits
from axon_zmq.protocol.frames import RunKey
from axon_zmq.protocol.msgpack import pack as pack_value
from axon_zmq.worker.delivery.replay_buffer import Message, ReplayBuffer, RunInfo
from axon_zmq.worker.delivery.replay_store import REPLAY_BYTES_PER_WORKER

log = logging.getLogger(__name__)

_OVERHEAD: Final = 64 * limits.MIB
"""Bytes that a file may have in addition to the messages in it: run infos, and the framing of messages."""


def write(run_dir: Path, ended: Iterable[tuple[RunKey, ReplayBuffer]]) -> str | None:
    """Write runs into a handover file.

    Args:
        run_dir: The run directory; the file is created in its folder `handover`.
        ended: Ended runs, in the order of their end.

    Returns:
        The name of the file; None if `ended` is empty, or if the file cannot be written.
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
        # Renamed when complete: a crash never leaves an incomplete file under the final name.
        if count:
            new.rename(folder / name)
        else:
            new.unlink()
    except OSError as error:
        log.error("cannot write handover file %s with %d ended runs: %s", folder / name, count, error.strerror)
        return None
    return name if count else None


class Taken(NamedTuple):
    """The contents of a handover file."""

    runs: list[tuple[RunKey, ReplayBuffer]]
    """The runs whose resume window has not closed."""
    is_whole: bool
    """Whether the whole file could be read."""


def take(run_dir: Path, name: str, pack: Callable[[Any], bytes], now: float) -> Taken:
    """Read a handover file and delete it.

    Args:
        run_dir: The run directory, as in `write`.
        name: The name that `write` returned.
        pack: Packing function for the replay buffers. It is never called, because the runs have ended.
        now: Seconds of the monotonic clock.
    """
    path = run_dir / HANDOVER / name
    taken: list[tuple[RunKey, ReplayBuffer]] = []
    if path.name != name:
        log.error("invalid name of a handover file %r: expected a file name without a directory", name)
        return Taken(taken, is_whole=False)
    try:
        with open(path, "rb", opener=open_private) as file:
            entries = _entries(file)
            # Deleted before it is read: no second worker can take over the same runs, even if this one is killed here.
            # A file that is too large is not deleted, since `_entries` has raised an exception.
            path.unlink()
            for entry in entries:
                key, buffer = _restored(entry, pack)
                if buffer.ended_at is not None and buffer.ended_at <= now < buffer.ended_at + limits.RESUME_WINDOW:
                    taken.append((key, buffer))
    except FileNotFoundError:
        # Broker and workers delete unread files after the resume window; nobody can resume the runs in them by then.
        log.warning("handover file %s does not exist any more: its ended runs cannot be resumed", name)
        return Taken(taken, is_whole=False)
    except (OSError, ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
        log.error("cannot read handover file %s after %d ended runs, the rest are lost: %r", name, len(taken), error)
        return Taken(taken, is_whole=False)
    return Taken(taken, is_whole=True)


def _entries(file: Any) -> Iterator[list[Any]]:
    size, limit = os.fstat(file.fileno()).st_size, REPLAY_BYTES_PER_WORKER + _OVERHEAD
    if size > limit:
        raise ValueError(f"it has {size} bytes; a worker writes at most {limit}")
    return iter(msgpack.Unpacker(file, max_buffer_size=REPLAY_BYTES_PER_WORKER + _OVERHEAD))


def _restored(entry: list[Any], pack: Callable[[Any], bytes]) -> tuple[RunKey, ReplayBuffer]:
    client, id, info, ended_at, seq, messages = entry
    buffer = ReplayBuffer(pack, RunInfo(*info))
    buffer.restore(seq, ended_at, [Message(*message) for message in messages])
    return (bytes(client), bytes(id)), buffer
