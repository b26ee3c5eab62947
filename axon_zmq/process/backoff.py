"""Backoff for crash loops: a process that has crashed repeatedly waits before it starts work again.

supervisord's own backoff applies only to programs that exit within `startsecs`. A program that crashes later is
restarted forever and without a delay. Each process of the daemon therefore records its starts in a file of the run
directory and waits by itself.

Like `lifeline`, this module imports nothing from the package, so that it works even if the package cannot be imported.
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
"""Seconds for which a start counts. Time spent waiting here is not included."""
FREE_STARTS = 2
"""Starts within the window that are not delayed: the first start, and one restart after a crash."""
LONGEST_PAUSE_S = 30.0
"""Upper bound of the delay, in seconds."""
KEPT_STARTS = 20
"""Number of starts that are recorded. The delay reaches its upper bound at 8 starts, so more records are not needed."""


def pause(run_dir: Path, name: str) -> float:
    """Wait if this process was started repeatedly; return the delay in seconds.

    Without supervisord the process never waits, because nothing restarts it. SIGTERM ends the wait and the process.

    Args:
        run_dir: The run directory, where starts are recorded.
        name: Name of the supervisord program.
    """
    # supervisord sets this variable in its child processes.
    if "SUPERVISOR_PROCESS_NAME" not in os.environ:
        return 0.0
    file = _file(run_dir, name)
    earlier = _starts(file)
    count = len(earlier) + 1
    seconds = delay(count)
    # Adding the delay to all times keeps the waiting out of the window. Otherwise earlier starts would expire during a
    # long delay, and the next restart would not be delayed.
    _record(file, [*(start + seconds for start in earlier), time.monotonic() + seconds])
    if seconds:

        def leave(_number: int, _frame: FrameType | None) -> None:
            forget_starts(run_dir, name)
            raise SystemExit(0)

        before = signal.signal(signal.SIGTERM, leave)
        text = "%s was started %d times within %.0f s, after crashes: waiting %.0f s; see the errors above"
        log.error(text, name, count, WINDOW_S, seconds)
        time.sleep(seconds)
        signal.signal(signal.SIGTERM, before)
    return seconds


def delay(starts: int) -> float:
    """Seconds by which the latest of `starts` starts within the window is delayed: 0, 0, 1, 2, 4 … 30."""
    return min(LONGEST_PAUSE_S, 2.0 ** (starts - FREE_STARTS - 1)) if starts > FREE_STARTS else 0.0


def forget_starts(run_dir: Path, name: str) -> None:
    """Delete the recorded starts: this process was asked to stop, so its next start is not a restart after a crash."""
    with suppress(OSError):
        _file(run_dir, name).unlink()


def _file(run_dir: Path, name: str) -> Path:
    return run_dir / f"{name.replace('/', '_')}.starts"


def _starts(file: Path) -> list[float]:
    """The recorded starts within the window. Starts by an earlier supervisord do not count."""
    now = time.monotonic()
    try:
        supervisor, *starts = map(float, file.read_text().split())
    except (OSError, ValueError):
        return []
    # Recorded times include the delay, so they can be in the future. A time that is even later is from an earlier boot
    # of the machine, whose monotonic clock had run for longer.
    return (
        [start for start in starts if now - WINDOW_S < start <= now + LONGEST_PAUSE_S]
        if supervisor == os.getppid()
        else []
    )


def _record(file: Path, starts: list[float]) -> None:
    """Write the starts. If the file cannot be written, starts are not delayed: backoff never prevents a start."""
    with suppress(OSError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.writelines(f"{each}\n" for each in (os.getppid(), *starts[-KEPT_STARTS:]))
