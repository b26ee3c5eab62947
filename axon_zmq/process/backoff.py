"""A process that crashes again and again waits before it starts work once more.

supervisord waits between starts that fail at once; one that lived a while it starts again without end and without
a pause. So each process of ours notes its starts in the run directory, and waits by itself.
It imports nothing of the package, as `lifeline`: what is wrong may be there.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

log = logging.getLogger("axon_zmq.backoff")

WINDOW_S = 60.0
"""Seconds within which earlier starts count. Time that was spent waiting is not part of them."""
FREE_STARTS = 2
"""Starts within the window that do not wait: the first one, and one after a crash."""
LONGEST_PAUSE_S = 30.0
"""Upper bound of the wait, in seconds."""
KEPT_STARTS = 20
"""Starts that are remembered. With this many, the wait has long reached its upper bound."""


def pause(run_dir: Path, name: str) -> float:
    """Wait as long as the recent starts ask for; how many seconds that was.

    Only under supervisord, which names its children's programs to them: nobody else starts a process again at once.
    SIGTERM ends the wait, and with it the process, in order.

    Args:
        run_dir: Where the starts are noted.
        name: The program's.
    """
    if "SUPERVISOR_PROCESS_NAME" not in os.environ:
        return 0.0
    file = _file(run_dir, name)
    earlier = _starts(file)
    count = len(earlier) + 1
    seconds = delay(count)
    _note(file, [*(start + seconds for start in earlier), time.monotonic() + seconds])
    if seconds:

        def leave(_number: int, _frame: FrameType | None) -> None:
            forget_starts(run_dir, name)
            raise SystemExit(0)

        before = signal.signal(signal.SIGTERM, leave)
        said = f"{name} was started {count} times within {WINDOW_S:.0f} s and ended without being asked to"
        log.error("%s: waits %.0f s", said, seconds)
        time.sleep(seconds)
        signal.signal(signal.SIGTERM, before)
    return seconds


def delay(starts: int) -> float:
    """Seconds to wait before the last of so many starts within the window: 0, 0, 1, 2, 4 … 30."""
    return min(LONGEST_PAUSE_S, 2.0 ** (starts - FREE_STARTS - 1)) if starts > FREE_STARTS else 0.0


def forget_starts(run_dir: Path, name: str) -> None:
    """The process was asked to end: its next start is the first."""
    with suppress(OSError):
        _file(run_dir, name).unlink()


def _file(run_dir: Path, name: str) -> Path:
    return run_dir / f"{name.replace('/', '_')}.starts"


def _starts(file: Path) -> list[float]:
    """The starts that count: those by the same supervisord, within the window."""
    now = time.monotonic()
    try:
        supervisor, *starts = map(float, file.read_text().split())
    except (OSError, ValueError):
        return []
    return (
        [start for start in starts if now - WINDOW_S < start <= now + LONGEST_PAUSE_S]
        if supervisor == os.getppid()
        else []
    )


def _note(file: Path, starts: list[float]) -> None:
    """Where nothing can be noted, nobody waits."""
    with suppress(OSError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.writelines(f"{each}\n" for each in (os.getppid(), *starts[-KEPT_STARTS:]))
