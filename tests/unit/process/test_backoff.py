"""Growing delays before the starts of a process that crashes repeatedly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from axon_zmq.process import backoff

WORKER, BROKER = backoff.WORKER, backoff.BROKER


def test_the_delay_grows_up_to_a_maximum():
    assert [backoff.delay(starts, WORKER) for starts in range(1, 11)] == [0, 0, 1, 2, 4, 8, 16, 30, 30, 30]
    assert [backoff.delay(starts, BROKER) for starts in range(1, 17)] == [0] * 10 + [1, 2, 4, 5, 5, 5]


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
    assert [backoff.pause(tmp_path, "run-1", WORKER) for _ in range(5)] == [0.0] * 5
    Clock(monkeypatch)
    assert [backoff.pause(tmp_path, "run-1", WORKER) for _ in range(5)] == [0, 0, 1, 2, 4]
    assert (tmp_path / "run-1.starts").stat().st_mode & 0o777 == 0o600
    backoff.forget_starts(tmp_path, "run-1")
    assert backoff.pause(tmp_path, "run-1", WORKER) == 0.0
    assert backoff.pause(tmp_path / "missing", "run-1", WORKER) == 0.0  # no start can be recorded


def test_a_process_that_crashes_at_each_start_waits_longest(tmp_path: Path, monkeypatch: Any):
    clock = Clock(monkeypatch)
    waits = []
    for _ in range(40):
        waits.append(backoff.pause(tmp_path, "run-1", WORKER))
        clock.sleep(1.0)
    assert waits[:8] == [0, 0, 1, 2, 4, 8, 16, 30]
    assert set(waits[8:]) == {30.0}
    clock.sleep(backoff.WINDOW_S)
    for _ in range(10):
        assert backoff.pause(tmp_path, "run-1", WORKER) == 0.0
        clock.sleep(40.0)


def test_starts_under_another_supervisord_and_invalid_files_do_not_count(tmp_path: Path, monkeypatch: Any):
    Clock(monkeypatch)
    for _ in range(4):
        backoff.pause(tmp_path, "run-1", WORKER)
    monkeypatch.setattr("os.getppid", lambda: 4711)
    assert [backoff.pause(tmp_path, "run-1", WORKER) for _ in range(3)] == [0, 0, 1]
    for odd in (b"", b"\n", b"4711 soon", b"\xff\xfe"):
        (tmp_path / "run-1.starts").write_bytes(odd)
        assert backoff.pause(tmp_path, "run-1", WORKER) == 0.0


def test_a_broker_that_crashes_at_once_restarts_without_delay_at_first_and_a_bounded_number_of_times(
    tmp_path: Path, monkeypatch: Any
):
    clock = Clock(monkeypatch)
    starts: list[float] = []
    waits: list[float] = []
    while clock.now < 1600.0:
        waits.append(backoff.pause(tmp_path, "broker", BROKER))
        starts.append(clock.now)
        clock.sleep(0.1)  # the broker serves for this time, then it is killed
    assert waits[: BROKER.free_starts] == [0.0] * BROKER.free_starts
    assert set(waits[BROKER.free_starts + 3 :]) == {BROKER.longest_pause_s}
    most = max(sum(start <= other < start + 60 for other in starts) for start in starts)
    print(f"{most} starts within 60 s")
    assert most <= 24


def test_a_process_that_is_killed_while_it_waits_is_still_delayed_at_its_next_start(tmp_path: Path, monkeypatch: Any):
    clock = Clock(monkeypatch)
    for _ in range(7):
        backoff.pause(tmp_path, "run-1", WORKER)

    def killed(_seconds: float) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        monkeypatch.setattr("time.sleep", killed)
        with pytest.raises(KeyboardInterrupt):
            backoff.pause(tmp_path, "run-1", WORKER)
        clock.now += 0.5
    monkeypatch.setattr("time.sleep", clock.sleep)
    assert backoff.pause(tmp_path, "run-1", WORKER) == WORKER.longest_pause_s


def test_starts_are_not_recorded_through_a_symbolic_link(tmp_path: Path, monkeypatch: Any):
    Clock(monkeypatch)
    (tmp_path / "precious").write_text("unchanged")
    (tmp_path / "run-1.starts").symlink_to(tmp_path / "precious")
    assert backoff.pause(tmp_path, "run-1", WORKER) == 0.0
    assert (tmp_path / "precious").read_text() == "unchanged"


def test_a_supervised_process_with_an_invalid_configuration_waits_before_it_ends(tmp_path: Path, monkeypatch: Any):
    clock = Clock(monkeypatch)
    backoff.pause_before_exit(tmp_path / "missing", "broker", BROKER)
    assert clock.now == 1000.0 + BROKER.longest_pause_s
    monkeypatch.delenv("SUPERVISOR_PROCESS_NAME")
    backoff.pause_before_exit(tmp_path / "missing", "broker", BROKER)
    assert clock.now == 1000.0 + BROKER.longest_pause_s
