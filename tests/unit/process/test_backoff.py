"""Growing delays before the starts of a process that crashes repeatedly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axon_zmq.process import backoff


def test_the_delay_grows_up_to_a_maximum():
    assert [backoff.delay(starts) for starts in range(1, 11)] == [0, 0, 1, 2, 4, 8, 16, 30, 30, 30]


class Clock:
    """A clock that advances only while the code sleeps."""

    def __init__(self, monkeypatch: Any) -> None:
        self.now = 1000.0
        monkeypatch.setenv("SUPERVISOR_PROCESS_NAME", "run-1")
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_only_starts_under_supervisord_that_ended_unexpectedly_count_as_crashes(tmp_path: Path, monkeypatch: Any):
    monkeypatch.delenv("SUPERVISOR_PROCESS_NAME", raising=False)
    assert [backoff.pause(tmp_path, "run-1") for _ in range(5)] == [0.0] * 5
    Clock(monkeypatch)
    assert [backoff.pause(tmp_path, "run-1") for _ in range(5)] == [0, 0, 1, 2, 4]
    assert (tmp_path / "run-1.starts").stat().st_mode & 0o777 == 0o600
    backoff.forget_starts(tmp_path, "run-1")
    assert backoff.pause(tmp_path, "run-1") == 0.0
    assert backoff.pause(tmp_path / "missing", "run-1") == 0.0  # no start can be recorded


def test_a_process_that_crashes_at_each_start_waits_longest(tmp_path: Path, monkeypatch: Any):
    clock = Clock(monkeypatch)
    waits = []
    for _ in range(40):
        waits.append(backoff.pause(tmp_path, "run-1"))
        clock.sleep(1.0)
    assert waits[:8] == [0, 0, 1, 2, 4, 8, 16, 30]
    assert set(waits[8:]) == {30.0}
    clock.sleep(backoff.WINDOW_S)
    for _ in range(10):
        assert backoff.pause(tmp_path, "run-1") == 0.0
        clock.sleep(40.0)


def test_starts_under_another_supervisord_and_invalid_files_do_not_count(tmp_path: Path, monkeypatch: Any):
    Clock(monkeypatch)
    for _ in range(4):
        backoff.pause(tmp_path, "run-1")
    monkeypatch.setattr("os.getppid", lambda: 4711)
    assert [backoff.pause(tmp_path, "run-1") for _ in range(3)] == [0, 0, 1]
    for odd in (b"", b"\n", b"4711 soon", b"\xff\xfe"):
        (tmp_path / "run-1.starts").write_bytes(odd)
        assert backoff.pause(tmp_path, "run-1") == 0.0
