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
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

log = logging.getLogger("axon_zmq.backoff")

WINDOW_S = 60.0
"""Seconds for which a start counts. Time spent waiting here is not included."""
KEPT_STARTS = 20
"""Number of starts that are recorded. The delays reach their upper bounds at fewer starts."""


class Policy(NamedTuple):
    """How the restarts of one kind of process are delayed: from which start on, and for how long at most."""

    free_starts: int
    """Starts within the window that are not delayed."""
    longest_pause_s: float
    """Upper bound of the delay, in seconds."""


WORKER = Policy(free_starts=2, longest_pause_s=30.0)
"""The first start and one restart after a crash are not delayed; the mode's other workers continue."""
BROKER = Policy(free_starts=10, longest_pause_s=5.0)
"""All clients wait for the broker, so it restarts at once several times a minute, and never waits for long. If it
crashes at each start, it starts at most 24 times within 60 s."""


def pause(run_dir: Path, name: str, policy: Policy) -> float:
    """Wait if this process was started repeatedly; return the delay in seconds.

    Without supervisord the process never waits, because nothing restarts it. SIGTERM ends the wait and the process.

    Args:
        run_dir: The run directory, where starts are recorded.
        name: Name of the supervisord program.
        policy: Which starts are delayed, and for how long.
    """
    if not is_supervised():
        return 0.0
    file = _file(run_dir, name)
    starts = [*_starts(file), time.monotonic()]
    seconds = delay(len(starts), policy)
    _record(file, starts)
    if seconds:
        text = "%s was started %d times within %.0f s, after crashes: waiting %.0f s; see the errors above"
        with _ended_by_sigterm(run_dir, name):
            log.error(text, name, len(starts), WINDOW_S, seconds)
            time.sleep(seconds)
        # Adding the delay to all times keeps the waiting out of the window. Otherwise earlier starts would expire
        # during a long delay, and the next restart would not be delayed. If the process is killed while it waits, the
        # recorded times are those above, so that the file never contains a time in the future.
        _record(file, [start + seconds for start in starts])
    return seconds


def pause_before_exit(run_dir: Path, name: str, policy: Policy) -> None:
    """Wait before a process ends that supervisord restarts at once, because its configuration is invalid.

    Such a process may be unable to record its starts, so the delay is always the longest one. SIGTERM ends the wait and
    the process.
    """
    if is_supervised():
        with _ended_by_sigterm(run_dir, name):
            time.sleep(policy.longest_pause_s)


def is_supervised() -> bool:
    """Whether supervisord has started this process and would restart it."""
    return "SUPERVISOR_PROCESS_NAME" in os.environ


def delay(starts: int, policy: Policy) -> float:
    """Seconds by which the latest of `starts` starts within the window is delayed: 0 for free starts, then 1, 2, 4 …"""
    delayed = starts - policy.free_starts
    return min(policy.longest_pause_s, 2.0 ** (delayed - 1)) if delayed > 0 else 0.0


@contextmanager
def _ended_by_sigterm(run_dir: Path, name: str) -> Generator[None]:
    def leave(_number: int, _frame: FrameType | None) -> None:
        forget_starts(run_dir, name)
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    # A time in the future is from an earlier boot of the machine, whose monotonic clock had run for longer.
    return [start for start in starts if now - WINDOW_S < start <= now] if supervisor == os.getppid() else []


def _record(file: Path, starts: list[float]) -> None:
    """Write the starts. If the file cannot be written, starts are not delayed: backoff never prevents a start."""
    with suppress(OSError):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.writelines(f"{each}\n" for each in (os.getppid(), *starts[-KEPT_STARTS:]))
