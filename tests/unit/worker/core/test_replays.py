"""Replays are sent in parts, in turn for each client, and each client receives its messages in order."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from axon_zmq.protocol import kinds
from axon_zmq.protocol.backend import EndReason, Handover, Lease, Replayed
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.core.effects import Control, Effect, Finish, Grant, ReplayComplete, Send, Start, WriteHandover
from axon_zmq.worker.core.events import CodeReturned, Completed, Event, HandoverWritten, Leave, Received, Sent, Tick
from axon_zmq.worker.core.replays import PART_BYTES, PART_MESSAGES
from axon_zmq.worker.core.worker import ANSWER_TIMEOUT_S, MORE_TIMEOUT_S, WorkerCore

A, B = b"a", b"b"
PART = 4


class Bench:
    """A worker core whose runs send messages as the host does, and the messages that it has sent."""

    def __init__(self, part_messages: int = PART) -> None:
        self.now = 1000.0
        self.core = WorkerCore(
            name="run-1",
            mode="run",
            served=frozenset((kinds.RUN,)),
            slots=10,
            pid=1,
            broken=None,
            drain_s=60.0,
            pack_body=pack,
            now=self.now,
            part_messages=part_messages,
        )
        self.sent: list[tuple[bytes, bytes, bytes, dict[str, Any]]] = []
        """Client, kind, id and body of each message of a run."""
        self.effects: list[Effect] = []
        self.asked = 0
        """Number of parts that the broker has not acknowledged."""

    def feed(self, event: Event) -> list[Effect]:
        self.effects = self.core.receive(event, self.now)
        for effect in list(self.effects):
            match effect:
                case Send(client, kind, id, body):
                    self.sent.append((client, kind, id, unpack(body, "a message")))
                case Control(Replayed()):
                    self.asked += 1
                case Finish(run, kind, bodies):
                    self.put(run, kind, bodies[0])
                    self.feed(Sent(run))
                case _:
                    pass
        return self.effects

    def start(self, client: bytes, id: bytes, messages: int = 0) -> ActiveRun:
        lease = Lease(self.now + 3600, 1, b"digest").pack()
        effects = self.feed(Received([client, b"run", id, pack({}), b"", lease]))
        [run] = [effect.run for effect in effects if type(effect) is Start]
        for _ in range(messages):
            self.put(run)
        self.sent.clear()
        return run

    def put(self, run: ActiveRun, kind: bytes = kinds.CHUNK, body: dict[str, Any] | None = None) -> None:
        """Send a message of a run, as `Run.send` does."""
        packed = run.buffer.put(kind, body or {})
        if not run.is_replaying:
            self.sent.append((run.client, kind, run.id, unpack(packed, "a message")))

    def end(self, run: ActiveRun) -> None:
        self.feed(Completed(run, {"result": 1}))
        self.feed(CodeReturned(run))

    def resume(self, client: bytes, id: bytes, **header: int) -> list[Effect]:
        return self.feed(Received([client, b"resume", id, pack(header), b""]))

    def more(self) -> list[Effect]:
        self.asked -= 1
        return self.feed(Received([b"", b"more", b"", b""]))

    def to(self, client: bytes, id: bytes) -> list[int | str]:
        """What a client received for a run: `resumed`, and the `seq` of all other messages."""
        messages = [(kind, body) for to, kind, of, body in self.sent if (to, of) == (client, id)]
        return ["resumed" if kind == kinds.RESUMED else body["seq"] for kind, body in messages]


def test_a_replay_is_sent_in_parts_and_waits_for_the_broker():
    bench = Bench()
    bench.end(bench.start(A, b"1", 8))
    bench.sent.clear()
    bench.resume(A, b"1")
    assert (bench.to(A, b"1"), bench.asked) == (["resumed", 1, 2, 3], 1)
    bench.more()
    assert bench.to(A, b"1") == ["resumed", 1, 2, 3, 4, 5, 6, 7]
    bench.more()
    assert (bench.to(A, b"1"), bench.asked) == (["resumed", *range(1, 10)], 0)


def test_a_short_replay_is_sent_at_once():
    bench = Bench(PART_MESSAGES)
    bench.end(bench.start(A, b"1", 3))
    bench.sent.clear()
    bench.resume(A, b"1", **{"from": 2})
    assert (bench.to(A, b"1"), bench.asked) == (["resumed", 2, 3, 4], 0)


def test_large_messages_fill_a_part_by_their_bytes():
    bench = Bench(PART_MESSAGES)
    run = bench.start(A, b"1")
    for _ in range(8):
        bench.put(run, body={"data": b"x" * (PART_BYTES // 2)})
    bench.sent.clear()
    bench.resume(A, b"1")
    assert (bench.to(A, b"1"), bench.asked) == (["resumed", 1, 2], 1)


def test_clients_take_turns_so_that_no_replay_waits_for_all_of_another_client():
    bench = Bench(PART_MESSAGES)
    for number in range(10):
        bench.start(A, b"%d" % number, 1000)
    bench.start(B, b"1", 10)
    for number in range(10):
        bench.resume(A, b"%d" % number)
    bench.resume(B, b"1")
    bench.more()
    assert bench.to(B, b"1") == ["resumed", *range(1, 11)]


def test_messages_of_an_open_run_follow_its_replay_in_order():
    bench = Bench()
    run = bench.start(A, b"1", 6)
    bench.resume(A, b"1", upto=99)
    bench.put(run)  # numbered 7, while 4 to 6 were not sent
    assert bench.to(A, b"1") == ["resumed", 1, 2, 3]
    effects = bench.more()
    assert bench.to(A, b"1") == ["resumed", *range(1, 8)]
    assert [each for each in effects if isinstance(each, ReplayComplete | Grant)] == [
        ReplayComplete(run),
        Grant(run, 99),
    ]
    bench.put(run)
    assert bench.to(A, b"1")[-1] == 8


def test_many_requests_for_one_run_become_one_replay_after_the_current_one():
    bench = Bench()
    bench.start(A, b"1", 6)
    for start in (1, 2, 3, 6):
        bench.resume(A, b"1", **{"from": start})
    while bench.asked:
        bench.more()
    assert bench.to(A, b"1") == ["resumed", 1, 2, 3, 4, 5, 6, "resumed", 6]


def test_a_broker_that_does_not_answer_delays_the_next_part_only_for_a_moment():
    bench = Bench()
    bench.start(A, b"1", 6)
    bench.resume(A, b"1")
    assert bench.core.next_timer() <= bench.now + MORE_TIMEOUT_S
    bench.now += MORE_TIMEOUT_S
    bench.feed(Tick())
    assert bench.to(A, b"1") == ["resumed", *range(1, 7)]
    bench.feed(Received([b"", b"more", b"", b""]))  # late answers are harmless
    assert len(bench.to(A, b"1")) == 7


def test_a_new_run_with_the_same_id_ends_the_replay_of_the_old_one():
    bench = Bench()
    bench.end(bench.start(A, b"1", 8))
    bench.resume(A, b"1")
    bench.start(A, b"1", 2)
    bench.more()
    assert bench.to(A, b"1") == []
    bench.resume(A, b"1")
    assert bench.to(A, b"1") == ["resumed", 1, 2]


def test_a_leaving_worker_completes_its_replays_before_it_hands_over():
    bench = Bench()
    run = bench.start(A, b"1", 8)
    bench.resume(A, b"1")
    bench.feed(Leave())
    bench.feed(Received([b"", b"left", b"", b""]))
    bench.end(run)
    bench.feed(Tick())
    assert [each for each in bench.effects if isinstance(each, WriteHandover)] or bench.core.next_timer()
    assert bench.to(A, b"1") == ["resumed", *range(1, 10)]
    bench.sent.clear()
    bench.resume(A, b"1")
    assert bench.to(A, b"1") == ["resumed", *range(1, 10)]
    effects = bench.feed(HandoverWritten("file"))
    assert any(isinstance(each, Control) and isinstance(each.message, Handover) for each in effects)
    assert bench.core.next_timer() <= bench.now + ANSWER_TIMEOUT_S


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "resume", "more", "timeout", "end", "cancel"]),
            st.sampled_from([A, B]),
            st.integers(1, 12),
        ),
        max_size=60,
    )
)
def test_in_any_history_each_client_receives_all_messages_in_order(steps: list[tuple[str, bytes, int]]):
    bench = Bench()
    runs = {client: bench.start(client, b"1") for client in (A, B)}
    for action, client, number in steps:
        run = runs[client]
        match action:
            case "put" if not run.ended:
                bench.put(run)
            case "resume":
                bench.resume(client, b"1", **{"from": number})
            case "more" if bench.asked:
                bench.more()
            case "timeout":
                bench.now += MORE_TIMEOUT_S
                bench.feed(Tick())
            case "end" if not run.ended and run.reason is None:
                bench.end(run)
            case "cancel" if not run.ended:
                bench.feed(Received([client, b"end", b"1", pack({"reason": EndReason.CLIENT_GONE.value})]))
            case _:
                pass
    while bench.asked:
        bench.more()
    for client, run in runs.items():
        assert not run.is_replaying
        last = 0
        for each in bench.to(client, b"1"):
            if each == "resumed":
                last = -1  # the next message may have any number
            else:
                assert last == -1 or each == last + 1
                last = int(each)
        received = {each for each in bench.to(client, b"1") if each != "resumed"}
        assert received == set(range(1, run.buffer.seq + 1))
