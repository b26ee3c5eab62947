"""A process that crashes again and again waits before it starts work once more.

supervisord waits between starts that fail at once; one that lived a while it starts again without end and without
a pause. So each process of ours notes its starts in the run directory, and waits by itself.
It imports nothing of the package, as `lifeline`: what is wrong may be there.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

WINDOW = 60.0
"""Seconds within which starts count."""
FREE = 3
"""Starts within the window that need not wait: the first, and two after a crash."""
LONGEST = 30.0
"""Seconds of the longest wait."""


def pause(run_dir: Path, name: str) -> float:
    """Wait as long as the recent starts ask for; how many seconds that was.

    Only under supervisord, which tells its children so: nobody else starts a process again at once.

    Args:
        run_dir: Where the starts are noted.
        name: The program's.
    """
    if "SUPERVISOR_ENABLED" not in os.environ:
        return 0.0
    starts = _note(_file(run_dir, name))
    seconds = delay(len(starts))
    if seconds:
        said = f"{name} was started {len(starts)} times within {WINDOW:.0f} s and ended without being asked to"
        print(f"{said}: waits {seconds:.0f} s", file=sys.stderr, flush=True)
        time.sleep(seconds)
    return seconds


def delay(starts: int) -> float:
    """Seconds to wait before the last of so many starts within the window: 0, 0, 0, 1, 2, 4 … 30."""
    return min(LONGEST, 2.0 ** (starts - FREE - 1)) if starts > FREE else 0.0


def ended_in_order(run_dir: Path, name: str) -> None:
    """The process was asked to end: its next start is the first."""
    with suppress(OSError):
        _file(run_dir, name).unlink()


def _file(run_dir: Path, name: str) -> Path:
    return run_dir / f"{name.replace('/', '_')}.starts"


def _note(file: Path) -> list[float]:
    """Add this start; all that count. Where nothing can be noted, nobody waits."""
    now = time.monotonic()
    try:
        earlier = [float(line) for line in file.read_text().split()]
    except (OSError, ValueError):
        earlier = []
    starts = [*(start for start in earlier if now - WINDOW < start <= now), now]
    with suppress(OSError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write("".join(f"{start}\n" for start in starts[-20:]))
    return starts
