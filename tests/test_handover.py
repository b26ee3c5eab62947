"""Ended runs outlive their worker: a leaving one writes them down, another one takes them up."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.process.run_dir import HANDOVER, handover_files
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack
from axon_zmq.protocol.plain import packer
from axon_zmq.worker.delivery import handover
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from axon_zmq.worker.delivery.replay_store import REPLAY_BYTES_PER_WORKER, ReplayStore
from tests.conftest import Daemon, Dealer, running, wait_until

ECHO = {"agent": "echo", "prompt": "one two three"}
LONG = {"agent": {"model": "synthetic:tokens=2000,delay_ms=10"}, "prompt": "x"}
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


def test_what_was_written_is_taken_once_as_it_was(tmp_path: Path):
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


def test_nothing_ended_is_nothing_written(tmp_path: Path):
    assert handover.write(tmp_path, []) is None
    assert files(tmp_path) == []


def test_what_is_out_of_time_or_of_another_boot_is_left_out(tmp_path: Path):
    late, early = outbox(1, NOW - limits.RESUME_WINDOW), outbox(1, NOW + 5)
    name = handover.write(tmp_path, [((b"a", b"1"), late), ((b"a", b"2"), early), ((b"a", b"3"), outbox(1, NOW))])
    assert name is not None
    assert [key for key, _ in handover.take(tmp_path, name, packer(), NOW).runs] == [(b"a", b"3")]


@pytest.mark.parametrize("content", [b"\xc1", pack([1, 2]), pack({"a": 1}), pack([b"a", b"1", 5, 1, 1, 1])])
def test_a_file_that_is_none_of_ours_is_left_out(tmp_path: Path, content):
    (tmp_path / HANDOVER).mkdir()
    (tmp_path / HANDOVER / "odd.msgpack").write_bytes(content)
    assert handover.take(tmp_path, "odd.msgpack", packer(), NOW).runs == []


def test_a_torn_file_gives_what_is_whole(tmp_path: Path):
    name = handover.write(tmp_path, [((b"a", b"1"), outbox(1, NOW)), ((b"a", b"2"), outbox(1, NOW))])
    assert name is not None
    path = tmp_path / HANDOVER / name
    path.write_bytes(path.read_bytes()[:-5])
    assert [key for key, _ in handover.take(tmp_path, name, packer(), NOW).runs] == [(b"a", b"1")]


@pytest.mark.parametrize("name", ["../broker.lock", "/etc/passwd", "missing.msgpack"])
def test_only_files_of_the_folder_are_read(tmp_path: Path, name):
    (tmp_path / "broker.lock").write_text("4711")
    assert handover.take(tmp_path, name, packer(), NOW).runs == []
    assert (tmp_path / "broker.lock").exists()


def test_where_nothing_can_be_written_the_worker_goes_all_the_same(tmp_path: Path):
    assert handover.write(tmp_path / "missing", [((b"a", b"1"), outbox(1, NOW))]) is None


def test_old_files_are_cleared_away(tmp_path: Path):
    handover.write(tmp_path, [((b"a", b"1"), outbox(1, NOW))])
    handover.clear(tmp_path, time.time() - 60)
    assert len(files(tmp_path)) == 1
    handover.clear(tmp_path, time.time() + 60)
    assert files(tmp_path) == []


def test_a_file_that_is_too_large_is_not_deleted_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = handover.write(tmp_path, [((b"a", b"1"), outbox(1, NOW))])
    assert name is not None
    monkeypatch.setattr(handover, "_OVERHEAD", -REPLAY_BYTES_PER_WORKER)
    assert handover.take(tmp_path, name, packer(), NOW) == ([], False)
    assert [path.name for path in files(tmp_path)] == [name]


# --- the shelf -------------------------------------------------------------------------------------

ENDS = st.lists(st.one_of(st.none(), st.floats(NOW - 50, NOW)), max_size=8)


@given(mine=ENDS, theirs=st.lists(st.floats(NOW - 50, NOW), max_size=8), most=st.integers(0, 3000))
def test_after_a_merge_the_first_to_end_is_still_the_first_to_go(mine, theirs, most):
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


def test_a_run_that_is_here_already_is_not_taken_again():
    shelf = ReplayStore()
    mine = outbox(1, None)
    shelf.add((b"a", b"1"), mine)
    assert shelf.merge([((b"a", b"1"), outbox(5, NOW))]) == []
    assert shelf.get((b"a", b"1")) is mine


# --- from worker to worker, for real ---------------------------------------------------------------


def leave(own: Daemon, name: str) -> None:
    """SIGTERM, and its end."""
    process = own.processes.pop(name)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_an_ended_run_is_replayed_by_another_worker_of_any_mode_when_its_own_has_left():
    with running("run_stream", "run") as own, Dealer(own.endpoint) as dealer:
        dealer.send(b"run_stream", b"1", None, ECHO)
        first = dealer.until_end(b"1")
        leave(own, "run_stream-1")
        dealer.send(b"resume", b"1", {"from": 2})
        assert dealer.until_end(b"1")[1:] == first[1:]
        dealer.send(b"run_stream", b"1", None, ECHO)
        again = dealer.until_end(b"1")
        assert [kind for kind, _ in again[:2]] == [b"accepted", b"resumed"]
        assert again[2:] == first
        assert dealer.ask(b"run_stream", b"1", None, {**ECHO, "prompt": "other"})[0] == b"refused"
        assert files(own.run_dir) == []


def test_with_one_worker_in_all_who_asks_waits_for_the_next_one():
    with running("run") as own, Dealer(own.endpoint) as dealer:
        first = dealer.ask(b"run", b"1", None, ECHO)
        leave(own, "run-1")
        dealer.send(b"resume", b"1")
        own.start_worker("run", 2)
        assert dealer.until_end(b"1")[-1] == first


def test_ended_runs_outlive_the_whole_daemon():
    with running("run") as own, Dealer(own.endpoint) as dealer:
        first = dealer.ask(b"run", b"1", None, ECHO)
        leave(own, "run-1")
        own.kill("broker", signal.SIGTERM)
        assert len(files(own.run_dir)) == 1
        dealer.send(b"resume", b"1")
        own.start_worker("run", 2)
        wait_until(lambda: "serves run" in own.log("run-2"), "its start")  # which may take longer than a broker settles
        own.start_broker()
        assert dealer.until_end(b"1")[-1] == first
        assert files(own.run_dir) == []


def test_a_run_that_was_ended_as_shutting_down_is_replayed_elsewhere():
    with running("run_stream", "run_stream", AXON_DRAIN_SECONDS="0.2") as own, Dealer(own.endpoint) as dealer:
        for id in (b"1", b"2"):
            dealer.send(b"run_stream", id, None, LONG)
        wait_until(lambda: dealer.recv()[0] == b"chunk", "a start")
        leave(own, "run_stream-1")
        ended: dict[bytes, dict] = {}
        while not ended:
            kind, id, body = dealer.recv()
            if kind == b"error":
                ended[id] = body
        [(id, body)] = ended.items()
        assert body["error_type"] == "shutting_down"
        dealer.send(b"resume", id, {"from": body["seq"]})
        assert dealer.until_end(id)[-1] == (b"error", body)
