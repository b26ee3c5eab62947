"""The worker core in memory: one test for each rule."""

from __future__ import annotations

import gc
import weakref
from typing import Any, TypeVar

import pytest

from axon_zmq.errors import AxonError
from axon_zmq.protocol import kinds
from axon_zmq.protocol.backend import EndReason, Handover, Holds, Lease, Leaving, Progress, Ready, Slots
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.worker.core.active_run import ActiveRun
from axon_zmq.worker.core.concurrency import Slot
from axon_zmq.worker.core.effects import (
    AskToEnd,
    AwaitTurns,
    Control,
    Effect,
    Exit,
    Finish,
    Grant,
    Note,
    ReadHandover,
    Send,
    Start,
    WriteHandover,
)
from axon_zmq.worker.core.events import (
    CodeReturned,
    Completed,
    Connected,
    Event,
    Failed,
    GraceOver,
    HandoverRead,
    HandoverWritten,
    Leave,
    MemoryUsed,
    Received,
    Sent,
    Tick,
)
from axon_zmq.worker.core.worker import (
    ANSWER_TIMEOUT_S,
    END_GRACE_S,
    ERRORS,
    LARGE_ANSWER_BYTES,
    LARGE_RUN_BYTES,
    LONGEST_END_GRACE_S,
    MEMORY_FORGOTTEN_S,
    MEMORY_GRACE_S,
    MEMORY_LEAVE_S,
    STUCK_GRACE_S,
    WRITE_TIMEOUT_S,
    Phase,
    WorkerCore,
)
from axon_zmq.worker.delivery.replay_buffer import ReplayBuffer, RunInfo
from axon_zmq.worker.delivery.replay_store import REPLAY_BYTES_PER_WORKER

DRAIN_S = 20.0
E = TypeVar("E")
CLIENT, ID = b"client", b"1"


class Bench:
    """A worker core under test, with the effects of the last event."""

    def __init__(self, slots: int = 2) -> None:
        self.now = 1000.0
        self.core = WorkerCore(
            name="run-1",
            mode="run",
            served=frozenset((kinds.RUN,)),
            slots=slots,
            pid=4711,
            broken=None,
            drain_s=DRAIN_S,
            pack_body=pack,
            now=self.now,
        )
        self.effects: list[Effect] = []

    def feed(self, *events: Event) -> list[Effect]:
        self.effects = [effect for event in events for effect in self.core.receive(event, self.now)]
        return self.effects

    def receive(self, *frames: bytes) -> list[Effect]:
        return self.feed(Received(frames))

    def control(self, kind: bytes, **body: Any) -> list[Effect]:
        return self.receive(b"", kind, b"", pack(body))

    def start(self, id: bytes = ID, seconds: float = 60.0, body: bytes = b"") -> ActiveRun:
        lease = Lease(self.now + seconds, 1, b"digest")
        [started] = [
            each for each in self.receive(CLIENT, b"run", id, pack({}), body, lease.pack()) if type(each) is Start
        ]
        return started.run

    def end(self, id: bytes = ID, reason: EndReason = EndReason.CANCELLED) -> list[Effect]:
        return self.receive(CLIENT, b"end", id, pack({"reason": reason.value}))

    def complete(self, run: ActiveRun) -> None:
        [finish] = self.feed(Completed(run, {"result": 1}))
        self.finish(finish)
        self.feed(CodeReturned(run))

    def finish(self, effect: Effect) -> None:
        assert isinstance(effect, Finish)
        effect.run.buffer.put(effect.kind, effect.bodies[0])
        self.feed(Sent(effect.run))

    def tick(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.feed(Tick())

    def of(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def told(self) -> list[object]:
        """Control messages to the broker."""
        return [effect.message for effect in self.of(Control)]

    def stick(self) -> ActiveRun:
        """A run whose code did not end in time, and whose terminal message was sent."""
        run = self.start()
        self.end()
        self.tick(END_GRACE_S)
        self.feed(GraceOver(run))
        effects = self.effects
        self.finish(self.of(Finish)[0])
        self.effects = effects
        return run


def ready(bench: Bench) -> Ready:
    bench.feed(Connected())
    message = bench.told()[0]
    assert isinstance(message, Ready)
    return message


def test_a_worker_registers_with_the_runs_that_it_holds():
    bench = Bench()
    assert (ready(bench).slots, ready(bench).holds, ready(bench).pid) == (2, (), 4711)
    run = bench.start()
    [held] = ready(bench).holds
    assert (held.client, held.id, held.kind, held.digest, held.ended) == (CLIENT, ID, "run", b"digest", False)
    bench.complete(run)
    [held] = ready(bench).holds
    assert (held.seq, held.ended) == (1, True)


def test_a_leaving_worker_reports_leaving_at_each_registration():
    bench = Bench()
    bench.feed(Leave())
    assert bench.told() == [Leaving()]
    bench.feed(Connected())
    assert [type(message) for message in bench.told()] == [Ready, Leaving]


def test_a_run_ends_once_with_the_result_of_its_code():
    bench = Bench()
    run = bench.start()
    assert bench.core.open_runs == 1
    bench.complete(run)
    assert (bench.core.open_runs, bench.core.kept_runs) == (0, 1)
    assert bench.feed(Completed(run, {}), Failed(run, AxonError.of("internal", ""))) == []


@pytest.mark.parametrize("reason", EndReason)
def test_a_run_that_was_asked_to_end_reports_the_reason(reason: EndReason):
    bench = Bench()
    run = bench.start()
    assert bench.end(reason=reason) == [AskToEnd(run)]
    assert bench.end(reason=EndReason.SUPERSEDED) == []
    bench.feed(Failed(run, AxonError.of("model_error", "it was torn down", {"partial": "text"})))
    [finish] = bench.of(Finish)
    body = finish.bodies[0]
    assert (body["error_type"], body["message"], body["details"]) == (*ERRORS[reason], {"partial": "text"})
    assert len(finish.bodies) == 3


def test_a_run_ends_at_its_deadline():
    bench = Bench()
    run = bench.start(seconds=5.0)
    assert AskToEnd(run) not in bench.tick(4.9)
    assert AskToEnd(run) in bench.tick(0.1)
    assert run.reason is EndReason.DEADLINE


def test_a_stuck_run_is_answered_after_its_slot_was_reported_as_occupied():
    bench = Bench()
    run = bench.start()
    bench.end()
    assert bench.tick(END_GRACE_S / 2) == []
    [turns] = bench.tick(END_GRACE_S / 2)
    assert isinstance(turns, AwaitTurns)
    assert turns.give_up == pytest.approx(bench.now - END_GRACE_S + LONGEST_END_GRACE_S)
    slots, finish = bench.feed(GraceOver(run))
    assert slots == Control(Slots(1))
    assert isinstance(finish, Finish)


def test_code_that_ends_within_the_grace_period_is_not_stuck():
    bench = Bench()
    run = bench.start()
    bench.end()
    bench.complete(run)
    assert bench.tick(END_GRACE_S) == []
    assert bench.feed(GraceOver(run)) == []


def test_code_that_returns_late_frees_its_slot():
    bench = Bench()
    run = bench.stick()
    assert ready(bench).slots == 1
    assert bench.feed(CodeReturned(run)) == [Control(Slots(2))]
    bench.tick(STUCK_GRACE_S)
    assert bench.core.phase is Phase.SERVING


def test_a_run_that_is_asked_to_end_no_longer_waits_for_a_slot():
    bench = Bench(slots=1)
    first = bench.start(b"1")
    second = bench.start(b"2")
    third = bench.start(b"3")
    bench.end(b"2")
    bench.complete(first)
    assert [bench.core.slot_of(each) for each in (second, third)] == [Slot.NONE, Slot.HELD]


def test_a_worker_leaves_if_its_code_stays_stuck():
    bench = Bench()
    bench.stick()
    bench.tick(STUCK_GRACE_S)
    assert Leaving() in bench.told()


def test_a_replay_starts_at_the_requested_seq_and_reports_open_calls_and_credit():
    bench = Bench()
    run = bench.start()
    run.open_calls = lambda: [{"call_id": "c", "seq": 2}]
    for number in range(3):
        run.buffer.put(kinds.CHUNK, {"data": number})
    resumed, *chunks, grant = bench.receive(CLIENT, b"resume", ID, pack({"from": 2, "upto": 9}), b"")
    assert isinstance(resumed, Send)
    expected = {"from": 2, "gap": False, "open_calls": [{"call_id": "c", "seq": 2}], "last": 3}
    assert unpack(resumed.body, "resumed") == expected
    assert [unpack(chunk.body, "it")["seq"] for chunk in chunks if isinstance(chunk, Send)] == [2, 3]
    assert grant == Grant(run, 9)
    run.buffer.trim(0)
    bench.receive(CLIENT, b"resume", ID, pack({}), b"")
    body = unpack(bench.of(Send)[0].body, "resumed")
    assert (body["from"], body["gap"]) == (3, True)


def test_a_resume_of_an_unknown_run_fails_with_an_error():
    bench = Bench()
    [sent] = bench.receive(CLIENT, b"resume", ID, pack({}), b"")
    assert isinstance(sent, Send)
    assert (sent.kind, unpack(sent.body, "error")["error_type"]) == (kinds.ERROR, "unknown_request")


@pytest.mark.parametrize("is_found", [True, False])
def test_a_resume_waits_for_a_handover_file_that_is_being_read(is_found: bool):
    before = Bench()
    before.complete(before.start())
    bench = Bench()
    assert bench.control(b"take", file="f") == [ReadHandover("f")]
    assert bench.receive(CLIENT, b"resume", ID, pack({}), b"") == []
    before.feed(Leave())
    before.control(b"left")
    [written] = before.of(WriteHandover)
    bench.feed(HandoverRead(written.runs if is_found else [], is_whole=is_found))
    [holds] = bench.told()
    assert isinstance(holds, Holds)
    assert (len(holds.holds), holds.forgot_at) == ((1, 0.0) if is_found else (0, bench.now))
    assert [sent.kind for sent in bench.of(Send)] == ([b"resumed", b"complete"] if is_found else [b"error"])


def test_messages_about_an_ended_run_are_refused():
    bench = Bench()
    bench.complete(bench.start())
    assert [each.kind for each in bench.end() if isinstance(each, Send)] == [kinds.REFUSED]
    assert bench.end(reason=EndReason.CLIENT_GONE) == []
    [refused] = bench.receive(CLIENT, b"tool_result", ID, pack({"call_id": "c"}), b"")
    assert isinstance(refused, Send)
    assert unpack(refused.body, "refused")["call_id"] == "c"


@pytest.mark.parametrize(
    "frames",
    [(), (b"c",), (b"c", b"end", b"1", b"\xc1"), (b"c", b"resume", b"1"), (b"c", b"gone"), (b"", b"take", b"", b"")],
)
def test_a_malformed_message_is_logged_and_changes_nothing(frames: tuple[bytes, ...]):
    bench = Bench()
    assert [type(effect) for effect in bench.receive(*frames)] == [Note]


def test_a_malformed_run_request_is_answered_with_an_error():
    bench = Bench()
    bench.receive(CLIENT, b"run", ID, pack({}), b"", b"\xc1")
    [sent] = bench.of(Send)
    assert (sent.client, sent.kind, sent.id) == (CLIENT, kinds.ERROR, ID)
    assert unpack(sent.body, "error")["error_type"] == "internal"


def test_a_second_start_of_an_open_run_is_ignored_and_the_run_ends_as_usual():
    # It replaced the replay buffer of the run, whose end then ended the process.
    bench = Bench()
    run = bench.start()
    lease = Lease(bench.now + 60.0, 2, b"digest")
    assert [type(effect) for effect in bench.receive(CLIENT, b"run", ID, pack({}), b"", lease.pack())] == [Note]
    bench.complete(run)
    assert bench.core.open_runs == 0
    bench.tick(61.0)
    assert bench.start() is not run


def leaving(phase: Phase) -> Bench:
    """A worker with one ended run, in the given phase of leaving."""
    bench = Bench()
    bench.complete(bench.start())
    run = bench.start(b"2")
    bench.feed(Leave())
    if phase is not Phase.ANNOUNCING:
        bench.control(b"left")
    if phase in (Phase.ENDING, Phase.HANDING_OVER, Phase.WRITING):
        bench.tick(DRAIN_S)
        assert AskToEnd(run) in bench.effects
    if phase is Phase.HANDING_OVER:
        bench.control(b"take", file="f")
    if phase in (Phase.HANDING_OVER, Phase.WRITING):
        [finish] = bench.feed(Failed(run, AxonError.of("cancelled", "")))
        assert isinstance(finish, Finish)
        run.buffer.put(finish.kind, finish.bodies[0])
        bench.feed(Sent(run))
    assert bench.core.phase is phase
    return bench


@pytest.mark.parametrize(
    ("phase", "timeout", "following"),
    [
        (Phase.ANNOUNCING, ANSWER_TIMEOUT_S, Phase.DRAINING),
        (Phase.DRAINING, DRAIN_S, Phase.ENDING),
        (Phase.ENDING, LONGEST_END_GRACE_S + 2 * END_GRACE_S, Phase.WRITING),
        (Phase.HANDING_OVER, ANSWER_TIMEOUT_S, Phase.WRITING),
        (Phase.WRITING, WRITE_TIMEOUT_S, Phase.GONE),
    ],
)
def test_each_phase_of_leaving_has_a_time_limit(phase: Phase, timeout: float, following: Phase):
    bench = leaving(phase)
    bench.tick(timeout - 0.01)
    assert bench.core.phase is phase
    bench.tick(0.02)
    assert bench.core.phase is following


@pytest.mark.parametrize("is_confirmed", [True, False])
def test_a_worker_exits_when_its_handover_file_is_confirmed_or_after_a_timeout(is_confirmed: bool):
    bench = leaving(Phase.WRITING)
    assert len(bench.of(WriteHandover)[0].runs) == 2
    bench.feed(HandoverWritten("f"))
    assert bench.told() == [Handover("f", 0.0)]
    bench.control(b"handed") if is_confirmed else bench.tick(ANSWER_TIMEOUT_S)
    assert bench.of(Exit)
    assert bench.core.phase is Phase.GONE


def test_a_worker_without_a_handover_file_exits_at_once():
    bench = leaving(Phase.WRITING)
    assert bench.feed(HandoverWritten(None)) == [Exit()]


def test_a_worker_names_its_handover_file_again_when_it_registers_again():
    bench = leaving(Phase.WRITING)
    bench.feed(HandoverWritten("f"))
    bench.feed(Connected())
    assert [type(message) for message in bench.told()] == [Ready, Leaving, Handover]


def test_a_file_taken_after_the_workers_own_file_was_written_is_handed_over_too():
    bench = leaving(Phase.WRITING)
    bench.feed(HandoverWritten("f"))
    assert bench.control(b"take", file="f") == [ReadHandover("f")]
    assert not bench.control(b"handed")
    bench.feed(HandoverRead([], is_whole=True))
    assert len(bench.of(WriteHandover)[0].runs) == 2


def test_no_effect_follows_the_exit():
    bench = leaving(Phase.WRITING)
    bench.feed(HandoverWritten(None))
    bench.feed(Leave(), HandoverWritten("late"))
    assert not bench.effects
    bench.tick(100.0)
    assert [type(message) for message in bench.told()] == [Progress]
    assert not bench.of(Exit)


def test_timers_of_short_runs_do_not_accumulate():
    bench = Bench()
    bench.complete(bench.start(b"first", seconds=3600.0))
    first = bench.core.next_timer()
    for number in range(10_000):
        bench.complete(bench.start(b"%d" % number, seconds=3600.0))
    assert bench.core.next_timer() == first
    assert bench.core.open_runs == 0
    assert bench.core.timers < 500


def test_a_file_that_was_read_late_is_handed_over_too():
    bench = leaving(Phase.HANDING_OVER)
    bench.tick(ANSWER_TIMEOUT_S)
    assert len(bench.of(WriteHandover)[0].runs) == 2
    buffer = ReplayBuffer(pack, RunInfo("run", b"digest", bench.now + 60, keep=False))
    buffer.ended_at = bench.now
    bench.feed(HandoverWritten("f"), HandoverRead([((CLIENT, b"3"), buffer)], is_whole=True))
    assert len(bench.of(WriteHandover)[0].runs) == 3


def test_an_ended_run_keeps_only_its_messages_alive():
    """The deadline may be an hour away, and the code of a run holds its request, which may have many megabytes."""

    class Shell:
        def listed(self) -> list[dict[str, Any]]:
            return []

    bench, shell = Bench(), Shell()
    run = bench.start(seconds=3600.0)
    run.open_calls = shell.listed
    bench.complete(run)
    shell_reference, run_reference = weakref.ref(shell), weakref.ref(run)
    bench.effects = []
    del shell, run
    gc.collect()
    assert shell_reference() is None
    assert run_reference() is None


def test_a_result_counts_even_if_the_run_was_asked_to_end_before():
    bench = Bench()
    run = bench.start()
    bench.end()
    [finish] = bench.feed(Completed(run, {"result": 1}))
    assert isinstance(finish, Finish)
    assert finish.kind == kinds.COMPLETE


def test_a_run_of_an_unsupported_kind_is_answered_with_an_error():
    bench = Bench()
    lease = Lease(bench.now + 60, 1, b"digest")
    [sent] = bench.receive(CLIENT, b"run_stream", ID, pack({}), b"", lease.pack())
    assert isinstance(sent, Send)
    assert unpack(sent.body, "error")["message"] == "the worker run-1 does not execute run_stream"


# --- memory -----------------------------------------------------------------------------------------

TOO_MUCH = MemoryUsed(200, 100)


def test_with_too_much_memory_the_largest_runs_are_ended_one_after_another():
    bench = Bench(slots=3)
    small, large, larger = (
        bench.start(b"%d" % number, body=b"x" * size)
        for number, size in enumerate((LARGE_RUN_BYTES - 1, LARGE_RUN_BYTES, LARGE_RUN_BYTES + 1))
    )
    bench.feed(TOO_MUCH)
    assert bench.of(AskToEnd) == [AskToEnd(larger)]
    assert "ending this run of 65537 bytes, the largest" in bench.of(Note)[0].text
    bench.feed(TOO_MUCH)
    assert not bench.of(AskToEnd)  # its memory gets time to become free
    bench.now += MEMORY_GRACE_S
    bench.feed(TOO_MUCH)
    assert bench.of(AskToEnd) == [AskToEnd(large)]
    bench.now += MEMORY_GRACE_S
    bench.feed(TOO_MUCH)
    assert not bench.effects
    assert small.reason is None
    [finish] = bench.feed(Failed(larger, AxonError.of("internal", "")))
    assert isinstance(finish, Finish)
    assert finish.bodies[0]["error_type"] == "out_of_memory"


def test_messages_to_a_run_and_its_own_count_as_its_size():
    bench = Bench()
    bench.start(b"1", body=b"x" * LARGE_RUN_BYTES)
    run = bench.start(b"2")
    run.buffer.put(kinds.CHUNK, {"data": "x" * LARGE_RUN_BYTES})
    bench.receive(CLIENT, b"steer", b"2", pack({}), b"x" * 100)
    bench.feed(TOO_MUCH)
    assert bench.of(AskToEnd) == [AskToEnd(run)]


def test_a_worker_that_uses_too_much_memory_for_long_leaves_and_its_runs_may_finish():
    bench = Bench()
    run = bench.start()
    for _ in range(4):
        assert bench.core.phase is Phase.SERVING
        bench.feed(TOO_MUCH)
        bench.now += MEMORY_LEAVE_S / 4
    bench.feed(TOO_MUCH)
    assert bench.core.phase is Phase.ANNOUNCING
    assert Leaving() in bench.told()
    assert "raise AXON_WORKER_MEMORY" in bench.of(Note)[0].text
    assert run.reason is None


def test_a_short_lack_of_memory_does_not_replace_the_worker():
    bench = Bench()
    for _ in range(5):
        bench.feed(TOO_MUCH)
        bench.now += max(MEMORY_LEAVE_S, MEMORY_FORGOTTEN_S) + 0.1
    assert bench.core.phase is Phase.SERVING


def test_the_limit_of_all_kept_messages_holds_at_once_after_a_large_answer():
    bench = Bench(slots=9)
    size = REPLAY_BYTES_PER_WORKER // 3
    assert size > LARGE_ANSWER_BYTES
    for number in range(4):
        run = bench.start(b"%d" % number)
        [finish] = bench.feed(Completed(run, {"result": b"x" * size}))
        bench.finish(finish)
        bench.feed(CodeReturned(run))
    assert bench.core.kept_runs == 2
