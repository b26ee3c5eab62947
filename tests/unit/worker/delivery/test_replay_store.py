"""All replay buffers of a worker."""

from __future__ import annotations

from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from axon_zmq.worker.delivery.replay_store import ReplayStore

WHO = RunInfo("run", b"digest", 1.0, keep=False)


def test_ended_runs_are_kept_for_the_resume_window_and_within_the_byte_limit():
    shelf = ReplayStore(max_bytes=1000)
    for number in range(5):
        outbox = ReplayBuffer(pack, WHO)
        outbox.put(b"chunk", {"data": "x" * 300})
        shelf.add((b"a", b"%d" % number), outbox)
    for number in range(4):
        shelf.end((b"a", b"%d" % number), float(number))
    shelf.tidy(4.0)
    assert [key[1] for key, _ in shelf] == [b"4", b"2", b"3"]  # the open run and the one that ended last
    shelf.tidy(limits.RESUME_WINDOW + 2.5)
    assert [key[1] for key, _ in shelf] == [b"4", b"3"]


def test_open_runs_drop_their_oldest_messages_when_the_store_is_full():
    shelf = ReplayStore(max_bytes=10_000)
    for number in range(4):
        outbox = ReplayBuffer(pack, WHO)
        for _ in range(10):
            outbox.put(b"chunk", {"data": "x" * 500})
        shelf.add((b"a", b"%d" % number), outbox)
    shelf.tidy(0.0)
    assert sum(outbox.bytes for _, outbox in shelf) <= 11_000
    assert all(outbox.replay(10).messages for _, outbox in shelf)
