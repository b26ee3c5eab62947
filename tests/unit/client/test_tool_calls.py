"""Tool calls in the client core: rule 7 of the protocol, clause by clause and under random histories."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axon_zmq import RequestError
from axon_zmq.client.core import ClientCore, Run
from axon_zmq.client.tool_calls import FORGOTTEN_ANSWER, ToolCalls
from axon_zmq.events import Accepted, Chunk, Refused, ToolCall, ToolCancelled
from axon_zmq.protocol.msgpack import pack, unpack


def started(core: ClientCore) -> Run:
    run = core.run("run_stream", "echo", "x", {"id": "1"}, 0.0)
    core.outgoing.clear()
    return run


def hear(core: ClientCore, kind: str, **body: Any) -> None:
    core.receive([kind.encode(), b"1", pack(body)], 0.0)


def call(core: ClientCore, seq: int, call_id: str) -> None:
    hear(core, "tool_call", seq=seq, call_id=call_id, name="tool", args={})


def chunk(core: ClientCore, seq: int) -> None:
    hear(core, "chunk", seq=seq, type="text", data="x", step=1, part=0)


def resumed(core: ClientCore, start: int, listed: str, **last: int) -> None:
    open_calls = [{"seq": 1, "call_id": call_id, "name": "tool", "args": {}} for call_id in listed]
    hear(core, "resumed", **{"from": start, "gap": False, "open_calls": open_calls, **last})


def taken(run: Run) -> list[str]:
    """The calls that were passed to the application, with repetitions."""
    return [event.call_id for event in run.inbox if isinstance(event, ToolCall)]


def answers(core: ClientCore) -> list[tuple[str, Any]]:
    sent = [
        (unpack(frames[2], "header")["call_id"], unpack(frames[3], "body"))
        for frames in core.outgoing
        if frames[0] == b"tool_result"
    ]
    core.outgoing.clear()
    return sent


def test_a_call_is_passed_to_the_application_and_its_answer_is_sent():
    core = ClientCore()
    run = started(core)
    call(core, 1, "a")
    assert list(run.inbox) == [ToolCall(1, "a", "tool", {})]
    assert list(core.tool_events) == [(run, run.inbox[0])]
    assert core.answer(b"1", "a", {"result": 5})
    assert list(core.outgoing) == [[b"tool_result", b"1", pack({"call_id": "a"}), pack({"result": 5})]]


def test_an_answer_lost_with_the_broker_is_sent_again_without_running_the_tool_again():
    core = ClientCore()
    run = started(core)
    call(core, 1, "a")
    call(core, 2, "b")
    core.answer(b"1", "a", {"result": "A"})
    core.answer(b"1", "b", {"result": "B"})
    core.outgoing.clear()
    for boot in ("one", "two"):
        core.receive([b"alive", b"", pack({"boot": boot, "open": 1})], 0.0)
    assert [frames[0] for frames in core.outgoing] == [b"resume"]
    core.outgoing.clear()
    resumed(core, 3, "b", last=2)
    assert answers(core) == [("b", {"result": "B"})]
    assert taken(run) == ["a", "b"]
    resumed(core, 3, "", last=2)
    assert answers(core) == []
    assert repr(run.tool_calls) == "<ToolCalls 2, 0 answers of 0 bytes kept>"


def test_a_new_process_runs_only_open_calls_of_a_replay():
    core = ClientCore()
    run = started(core)
    hear(core, "accepted", duplicate=True)
    resumed(core, 1, "c", last=6)
    chunk(core, 1)
    call(core, 2, "a")
    call(core, 3, "b")
    hear(core, "tool_cancelled", seq=4, call_id="b")
    call(core, 5, "c")
    chunk(core, 6)
    call(core, 7, "d")  # new
    hear(core, "tool_cancelled", seq=8, call_id="d")
    assert [type(event) for event in run.inbox] == [Accepted, Chunk, ToolCall, Chunk, ToolCall, ToolCancelled]
    assert taken(run) == ["c", "d"]


def test_calls_replayed_after_a_gap_are_run_only_if_they_are_open():
    core = ClientCore()
    run = started(core)
    chunk(core, 1)
    chunk(core, 5)  # 2 to 4 are missing
    resumed(core, 2, "b", last=6)
    call(core, 2, "a")
    call(core, 3, "b")
    hear(core, "tool_cancelled", seq=4, call_id="a")
    assert taken(run) == ["b"]
    assert not [event for event in run.inbox if isinstance(event, ToolCancelled)]


def test_without_a_last_seq_the_received_messages_decide_which_calls_are_replayed():
    core = ClientCore()
    run = started(core)
    chunk(core, 1)
    chunk(core, 4)
    resumed(core, 2, "b")
    call(core, 2, "a")
    call(core, 3, "b")
    chunk(core, 4)
    call(core, 5, "c")
    assert taken(run) == ["b", "c"]


def test_a_second_resumed_updates_the_open_calls():
    core = ClientCore()
    run = started(core)
    resumed(core, 1, "a", last=2)
    resumed(core, 1, "", last=3)  # answered meanwhile
    call(core, 1, "a")
    assert taken(run) == []


def test_a_call_id_is_passed_to_the_application_once():
    core = ClientCore()
    run = started(core)
    call(core, 1, "a")
    call(core, 2, "a")
    resumed(core, 1, "a", last=2)
    call(core, 1, "a")
    call(core, 3, "a")
    assert taken(run) == ["a"]


def test_a_running_call_is_not_affected_by_resumed():
    core = ClientCore()
    started(core)
    call(core, 1, "a")
    resumed(core, 2, "a", last=1)
    assert answers(core) == []
    core.answer(b"1", "a", {"result": 1})
    assert answers(core) == [("a", {"result": 1})]


def test_a_refused_answer_is_not_sent_again_and_the_call_may_be_answered_again():
    core = ClientCore()
    run = started(core)
    call(core, 1, "a")
    core.answer(b"1", "a", {"result": "wrong"})
    refused = {"of": "tool_result", "error_type": "invalid_request", "message": "no", "call_id": "a"}
    hear(core, "refused", **refused)
    core.outgoing.clear()
    resumed(core, 2, "a", last=1)
    assert answers(core) == []
    core.answer(b"1", "a", {"result": "right"})
    core.outgoing.clear()
    hear(core, "refused", **{**refused, "error_type": "unknown_request"})  # of the first call
    resumed(core, 2, "a", last=1)
    assert answers(core) == [("a", {"result": "right"})]
    assert [event.error_type for event in run.inbox if isinstance(event, Refused)] == [
        "invalid_request",
        "unknown_request",
    ]


def test_a_cancelled_call_is_reported_once_and_its_answer_is_forgotten():
    core = ClientCore()
    run = started(core)
    call(core, 1, "a")
    core.answer(b"1", "a", {"result": 1})
    hear(core, "tool_cancelled", seq=2, call_id="a")
    hear(core, "tool_cancelled", seq=3, call_id="a")
    hear(core, "tool_cancelled", seq=4, call_id="never-made")
    assert repr(run.tool_calls) == "<ToolCalls 1, 0 answers of 0 bytes kept>"
    core.outgoing.clear()
    resumed(core, 5, "a", last=4)
    assert answers(core) == []
    assert [event.seq for event in run.inbox] == [1, 2]


def test_kept_answers_are_bounded_and_a_lost_answer_that_was_not_kept_fails_the_call():
    kept = ToolCalls(max_bytes=100)
    for number in range(1000):
        kept.take(ToolCall(number + 1, str(number), "tool", {}))
        kept.answered(str(number), bytes(60))
    kept.answered("no such call", bytes(60))
    assert repr(kept) == "<ToolCalls 1000, 1 answers of 60 bytes kept>"
    assert kept.resumed(["3", "999"], 1000) == [("3", FORGOTTEN_ANSWER), ("999", bytes(60))]
    assert unpack(FORGOTTEN_ANSWER, "it")["error"]["retry"] is False


def test_answers_and_steering_after_the_end_are_dropped():
    core = ClientCore()
    run = started(core)
    call(core, 1, "a")
    hear(core, "complete", seq=2, result=1)
    assert run.ended
    assert not core.answer(b"1", "a", {"result": 1})
    assert not core.steer(b"1", "more", "asap")
    assert not core.answer(b"never", "a", {"result": 1})
    core.describe(None, 0.0)
    [id] = core.open
    assert not core.steer(id, "more", "asap")
    assert [frames[0] for frames in core.outgoing] == [b"describe"]


def test_a_steer_message_is_sent_unchanged():
    core = ClientCore()
    started(core)
    assert core.steer(b"1", ["a", "b"], "when_idle")
    assert list(core.outgoing) == [[b"steer", b"1", b"", pack({"content": ["a", "b"], "priority": "when_idle"})]]


def test_a_message_over_the_limit_is_not_sent():
    core = ClientCore()
    started(core)
    call(core, 1, "a")
    core.max_body = 10
    with pytest.raises(RequestError, match="at most 10"):
        core.answer(b"1", "a", {"result": "far too long"})
    with pytest.raises(RequestError, match="at most 10"):
        core.steer(b"1", "far too long", "asap")
    assert not core.outgoing


def test_an_id_that_belongs_to_another_run_ends_the_request_and_affects_nothing_else():
    core = ClientCore()
    run = started(core)
    hear(core, "refused", of="cancel", error_type="invalid_request", message="too late")
    assert not run.ended
    hear(core, "refused", of="run_stream", error_type="invalid_request", message="another body under this id")
    assert run.ended
    assert isinstance(run.inbox[-1], RequestError)
    assert not core.outgoing


def test_call_tool_accepts_its_own_options():
    core = ClientCore()
    core.call_tool("add", {"a": 1}, {"id": "1", "agent": "math", "timeout_ms": 5}, 0.0)
    body = pack({"tool": "add", "args": {"a": 1}, "agent": "math"})
    assert list(core.outgoing) == [[b"call_tool", b"1", pack({"timeout_ms": 5}), body]]
    with pytest.raises(TypeError, match="unknown option 'model'"):
        core.call_tool("add", {}, {"model": "echo"}, 0.0)
    with pytest.raises(TypeError, match="unknown option 'logs'"):
        core.run("run", "echo", "x", {"logs": "info"}, 0.0)


class Worker:
    """A run in the daemon: its numbered messages, kept for replay, and its open calls."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.open: dict[str, int] = {}
        self.results: dict[str, list[Any]] = {}

    def say(self, kind: str, **body: Any) -> tuple[str, dict[str, Any]]:
        self.sent.append((kind, {"seq": len(self.sent) + 1, **body}))
        return self.sent[-1]

    def call(self) -> tuple[str, dict[str, Any]]:
        call_id = f"call-{len(self.sent)}"
        self.open[call_id] = len(self.sent) + 1
        return self.say("tool_call", call_id=call_id, name="tool", args={})

    def chunk(self) -> tuple[str, dict[str, Any]]:
        return self.say("chunk", type="text", data="x")

    def cancel(self) -> tuple[str, dict[str, Any]]:
        if not self.open:
            return self.chunk()
        call_id = next(iter(self.open))
        del self.open[call_id]
        return self.say("tool_cancelled", call_id=call_id)

    def take(self, call_id: str, body: dict[str, Any]) -> None:
        if self.open.pop(call_id, None) is not None:
            self.results[call_id] = body["result"]

    def resume(self, start: int) -> list[tuple[str, dict[str, Any]]]:
        listed = [{"seq": seq, "call_id": id, "name": "tool", "args": {}} for id, seq in self.open.items()]
        head = {"from": start, "gap": False, "open_calls": listed, "last": len(self.sent)}
        return [("resumed", head), *self.sent[start - 1 :]]


class History:
    """A worker and successive client processes, whose messages may be lost."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.process = 0
        self.runs: list[tuple[int, str]] = []
        """Each call that was passed to the application, with its process."""
        self._begin()

    def _begin(self) -> None:
        self.core = ClientCore()
        self.run = started(self.core)
        self.waiting: list[str] = []

    def step(self, what: str, arrives: bool) -> None:
        match what:
            case "call" | "cancel" | "chunk":
                message = getattr(self.worker, what)()
                self.deliver([message] if arrives else [])
            case "answer" if self.waiting:
                self.answer(self.waiting.pop(0))
            case "resume" if arrives:
                self.resume()
            case "fresh":
                self.process += 1
                self._begin()
            case _:
                pass
        self.send(arrives)

    def answer(self, call_id: str) -> None:
        self.core.answer(b"1", call_id, {"result": self.process})

    def resume(self) -> None:
        self.deliver(self.worker.resume(self.run.last_seq + 1))

    def deliver(self, messages: list[tuple[str, dict[str, Any]]]) -> None:
        for kind, body in messages:
            hear(self.core, kind, **body)
        while self.core.tool_events:
            _, event = self.core.tool_events.popleft()
            if isinstance(event, ToolCall):
                self.waiting.append(event.call_id)
                self.runs.append((self.process, event.call_id))
            elif event.call_id in self.waiting:
                self.waiting.remove(event.call_id)

    def send(self, arrives: bool) -> None:
        for call_id, body in answers(self.core):
            if arrives:
                self.worker.take(call_id, body)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "cancel", "chunk", "answer", "answer", "resume", "fresh"]), st.booleans()
    ),
    max_size=40,
)


@given(STEPS)
def test_in_any_history_no_call_is_run_twice_by_one_process_and_none_stays_open(steps):
    history = History()
    for what, arrives in steps:
        history.step(what, arrives)

    history.resume()  # from now on no message is lost
    for call_id in history.waiting:
        history.answer(call_id)
    history.send(True)
    worker, runs = history.worker, history.runs
    assert history.run.last_seq == len(worker.sent)
    assert not worker.open
    assert len(runs) == len(set(runs))
    assert {(made, call_id) for call_id, made in worker.results.items()} <= set(runs)
    assert not [run for run in runs if run[0] > worker.results.get(run[1], run[0])], "run after it was answered"
