"""The messages of one run, numbered and kept for replay."""

from __future__ import annotations

import pytest

from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo

WHO = RunInfo("run", b"digest", 1.0, keep=False)


def test_messages_are_numbered_and_replayed_from_the_requested_seq():
    outbox = ReplayBuffer(pack, WHO)
    sent = [outbox.put(b"chunk", {"data": word}) for word in "abc"]
    assert [unpack(body, "it")["seq"] for body in sent] == [1, 2, 3]
    replay = outbox.replay(2)
    assert (replay.start, replay.gap, [m.body for m in replay.messages]) == (2, False, sent[1:])
    assert outbox.replay(4) == (4, False, [])


def test_a_replay_reports_a_gap_for_dropped_messages():
    outbox = ReplayBuffer(pack, WHO, max_bytes=200)
    for _ in range(10):
        outbox.put(b"chunk", {"data": "x" * 50})
    replay = outbox.replay(1)
    assert replay.gap
    assert replay.start == 10 - len(replay.messages) + 1
    assert outbox.bytes <= 200


def test_a_message_that_cannot_be_packed_uses_no_seq():
    outbox = ReplayBuffer(pack, WHO)
    with pytest.raises(TypeError):
        outbox.put(b"chunk", {"data": object()})
    assert unpack(outbox.put(b"chunk", {}), "it")["seq"] == 1
