"""Handover files: written by a leaving worker, read by its successor."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.process.run_dir import HANDOVER, clear_handover_files, handover_files
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack
from axon_zmq.protocol.plain import packer
from axon_zmq.worker.delivery import handover
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from axon_zmq.worker.delivery.replay_store import REPLAY_BYTES_PER_WORKER, ReplayStore

NOW = 1000.0


def outbox(messages: int, ended_at: float | None, most_bytes: int = limits.REPLAY_BYTES_PER_RUN) -> ReplayBuffer:
    made = ReplayBuffer(packer(), RunInfo("run", b"digest", NOW + 60, False), most_bytes)
    for _ in range(messages):
        made.put(b"chunk", {"data": "x" * 100})
    made.ended_at = ended_at
    return made


def files(run_dir: Path) -> list[Path]:
    return list((run_dir / HANDOVER).glob("*"))


# --- the file --------------------------------------------------------------------------------------


def test_a_handover_file_is_read_once_with_its_original_content(tmp_path: Path):
    whole, cut = outbox(3, NOW - 5), outbox(9, NOW - 1, most_bytes=250)
    name = handover.write(tmp_path, [((b"a", b"1"), whole), ((b"b", b"2"), cut)])
    assert name is not None
    assert [path.name for path in files(tmp_path)] == [name]
    assert files(tmp_path)[0].stat().st_mode & 0o777 == 0o600
    assert (tmp_path / HANDOVER).stat().st_mode & 0o777 == 0o700
    assert handover_files(tmp_path) == (name,)
    taken = dict(handover.take(tmp_path, name, packer(), NOW).runs)
    for key, before in (((b"a", b"1"), whole), ((b"b", b"2"), cut)):
        after = taken[key]
        assert (after.seq, after.ended_at, after.info) == (before.seq, before.ended_at, before.info)
        assert after.replay(1) == before.replay(1)
    assert files(tmp_path) == []
    assert handover.take(tmp_path, name, packer(), NOW).runs == []


def test_no_file_is_written_without_ended_runs(tmp_path: Path):
    assert handover.write(tmp_path, []) is None
    assert files(tmp_path) == []


def test_expired_runs_and_runs_of_another_boot_are_skipped(tmp_path: Path):
    late, early = outbox(1, NOW - limits.RESUME_WINDOW), outbox(1, NOW + 5)
    name = handover.write(tmp_path, [((b"a", b"1"), late), ((b"a", b"2"), early), ((b"a", b"3"), outbox(1, NOW))])
    assert name is not None
    assert [key for key, _ in handover.take(tmp_path, name, packer(), NOW).runs] == [(b"a", b"3")]


@pytest.mark.parametrize("content", [b"\xc1", pack([1, 2]), pack({"a": 1}), pack([b"a", b"1", 5, 1, 1, 1])])
def test_a_file_with_an_unknown_format_is_skipped(tmp_path: Path, content):
    (tmp_path / HANDOVER).mkdir()
    (tmp_path / HANDOVER / "odd.msgpack").write_bytes(content)
    assert handover.take(tmp_path, "odd.msgpack", packer(), NOW).runs == []


def test_a_truncated_file_yields_its_complete_runs(tmp_path: Path):
    name = handover.write(tmp_path, [((b"a", b"1"), outbox(1, NOW)), ((b"a", b"2"), outbox(1, NOW))])
    assert name is not None
    path = tmp_path / HANDOVER / name
    path.write_bytes(path.read_bytes()[:-5])
    assert [key for key, _ in handover.take(tmp_path, name, packer(), NOW).runs] == [(b"a", b"1")]


@pytest.mark.parametrize("name", ["../broker.lock", "/etc/passwd", "missing.msgpack"])
def test_only_files_in_the_handover_folder_are_read(tmp_path: Path, name):
    (tmp_path / "broker.lock").write_text("4711")
    assert handover.take(tmp_path, name, packer(), NOW).runs == []
    assert (tmp_path / "broker.lock").exists()


def test_a_worker_exits_even_if_the_handover_file_cannot_be_written(tmp_path: Path):
    assert handover.write(tmp_path / "missing", [((b"a", b"1"), outbox(1, NOW))]) is None


def test_old_files_are_deleted(tmp_path: Path):
    handover.write(tmp_path, [((b"a", b"1"), outbox(1, NOW))])
    (tmp_path / HANDOVER / "half.msgpack.new").write_bytes(b"of a worker that was killed while it wrote this")
    clear_handover_files(tmp_path, limits.RESUME_WINDOW)
    assert len(files(tmp_path)) == 2
    for seconds in (-limits.RESUME_WINDOW - 1, 3600.0):  # an hour in the future: the clock was set back
        for path in files(tmp_path):
            os.utime(path, times=(time.time() + seconds,) * 2)
        clear_handover_files(tmp_path, limits.RESUME_WINDOW)
        assert files(tmp_path) == []
        handover.write(tmp_path, [((b"a", b"1"), outbox(1, NOW))])


def test_a_handover_file_that_is_a_symbolic_link_is_neither_read_nor_deleted(tmp_path: Path):
    name = handover.write(tmp_path, [((b"a", b"1"), outbox(1, NOW))])
    assert name is not None
    moved = files(tmp_path)[0].rename(tmp_path / "elsewhere")
    (tmp_path / HANDOVER / name).symlink_to(moved)
    assert handover.take(tmp_path, name, packer(), NOW) == ([], False)
    assert moved.exists()


def test_a_file_over_the_size_limit_is_not_read_and_not_deleted(tmp_path: Path):
    name = handover.write(tmp_path, [((b"a", b"1"), outbox(1, NOW))])
    assert name is not None
    os.truncate(files(tmp_path)[0], 2 * REPLAY_BYTES_PER_WORKER)  # sparse: it takes no space
    assert handover.take(tmp_path, name, packer(), NOW) == ([], False)
    assert [path.name for path in files(tmp_path)] == [name]


# --- the replay store ------------------------------------------------------------------------------

ENDS = st.lists(st.one_of(st.none(), st.floats(NOW - 50, NOW)), max_size=8)


@given(mine=ENDS, theirs=st.lists(st.floats(NOW - 50, NOW), max_size=8), most=st.integers(0, 3000))
def test_the_oldest_ended_run_is_still_dropped_first_after_a_merge(mine, theirs, most):
    shelf = ReplayStore(most)
    for number, end in sorted(enumerate(mine), key=lambda pair: pair[1] or 0.0):
        shelf.add((b"mine", b"%d" % number), outbox(1, None))
        if end is not None:
            shelf.end((b"mine", b"%d" % number), end)
    taken = shelf.merge(((b"theirs", b"%d" % number), outbox(1, end)) for number, end in enumerate(theirs))
    assert len(taken) == len(theirs)
    before = [box.ended_at for _, box in shelf if box.ended_at is not None]
    assert before == sorted(before)
    shelf.tidy(NOW)
    after = [box.ended_at for _, box in shelf if box.ended_at is not None]
    assert after == before[len(before) - len(after) :]
    assert sum(box.bytes for _, box in shelf) <= most or not after
    assert (shelf.forgot_at == NOW) == (len(after) < len(before))


def test_a_run_that_is_already_in_the_store_is_not_taken_again():
    shelf = ReplayStore()
    mine = outbox(1, None)
    shelf.add((b"a", b"1"), mine)
    assert shelf.merge([((b"a", b"1"), outbox(5, NOW))]) == []
    assert shelf.get((b"a", b"1")) is mine
