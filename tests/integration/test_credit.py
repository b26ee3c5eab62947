"""Rule 9: a client receives no more than its credit, loses nothing, and the model waits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from axon_zmq import AxonError, Client
from axon_zmq.events import Chunk
from axon_zmq.protocol import limits
from tests.support.client_tools import MODE_KINDS, WEATHER, answer, asking, calls, until
from tests.support.daemon import Dealer

PACED = {"agent": {"model": "synthetic:tokens=40,delay_ms=10"}, "prompt": "x"}
FAST = {"model": "synthetic:tokens=300,delay_ms=0,size=5"}


def chunks_until(dealer: Dealer, *kinds: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The chunks before a message of one of these kinds, and that message's body."""
    found = []
    while True:
        kind, _, body = dealer.recv()
        if kind in kinds:
            return found, body
        assert kind == b"chunk", (kind, body)
        found.append(body)


def barrier(dealer: Dealer, id: bytes) -> list[dict[str, Any]]:
    """All messages that the worker has sent: the refusal of an invalid message follows them in order."""
    dealer.send(b"steer", id, None, {"content": "x", "priority": "never"})
    return chunks_until(dealer, b"refused")[0]


def test_no_chunks_beyond_the_credit_are_sent_and_the_rest_is_merged_and_complete(dealer):
    dealer.send(b"run_stream", b"1", {"credit": 2}, PACED)
    first, second = (dealer.recv()[2] for _ in range(2))
    assert [first["seq"], second["seq"]] == [1, 2]
    assert barrier(dealer, b"1") == []
    dealer.send(b"credit", b"1", {"upto": 3})
    third = until(dealer, b"chunk")
    assert barrier(dealer, b"1") == []
    dealer.send(b"credit", b"1", {"upto": 1})  # credit only grows
    rest, done = chunks_until(dealer, b"complete")
    text = "".join(each["data"] for each in (first, second, third, *rest))
    assert text == done["result"]
    assert len(rest) == 1  # flushed before the terminal message, which needs no credit
    assert done["seq"] == 5


def test_a_model_is_not_read_while_its_client_gives_no_credit(dealer):
    agent = {"model": "synthetic:tokens=40000,delay_ms=0,size=100"}
    dealer.send(b"run_stream", b"1", {"credit": 1}, {"agent": agent, "prompt": "x"})
    assert len(dealer.recv()[2]["data"]) == 100
    for upto in range(2, 12):
        dealer.send(b"credit", b"1", {"upto": upto})
        size = len(until(dealer, b"chunk")["data"])
        assert size <= limits.WAITING_BYTES + 100  # never more than the limit of waiting text, however long it waited
    dealer.send(b"cancel", b"1")
    rest, error = chunks_until(dealer, b"error")
    assert error["error_type"] == "cancelled"
    assert error["details"]["partial"]["text"]  # sent by the code of the run
    assert sum(len(each["data"]) for each in rest) <= limits.WAITING_BYTES + 100


def test_a_run_without_credit_ends_at_its_deadline(dealer):
    agent = {"model": "synthetic:tokens=40000,delay_ms=0,size=100"}
    dealer.send(b"run_stream", b"1", {"credit": 0, "timeout_ms": 500}, {"agent": agent, "prompt": "x"})
    chunks, error = chunks_until(dealer, b"error")
    assert error["error_type"] == "deadline_exceeded"
    assert error["details"]["partial"]["text"]  # sent by the code of the run
    assert sum(len(each["data"]) for each in chunks) <= limits.WAITING_BYTES + 100


def test_tool_calls_need_no_credit_and_follow_the_waiting_chunks(dealer):
    dealer.send(b"run_stream", b"1", {"credit": 0}, asking(calls("weather", place="Oslo"), WEATHER))
    chunks, call = chunks_until(dealer, b"tool_call")
    assert [each["type"] for each in chunks] == ["tool_started"]
    answer(dealer, b"1", call, result=1)
    chunks, done = chunks_until(dealer, b"complete")
    assert [each["type"] for each in chunks] == ["tool_finished", "text"]
    assert json.loads(done["result"]) == [1]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_logs_wait_for_credit_too(dealer, mode):
    dealer.send(mode, b"1", {"credit": 0}, {"agent": "logging", "prompt": "Oslo", "log": "info"})
    messages = dealer.until_end(b"1")
    assert next(body["message"] for kind, body in messages if kind == b"log") == "asked for Oslo"
    assert [body["seq"] for _, body in messages] == list(range(1, len(messages) + 1))


def test_invalid_credit_is_refused(dealer):
    dealer.send(b"run", b"1", None, asking(calls("weather", place="Oslo"), WEATHER))
    call = until(dealer, b"tool_call")
    dealer.send(b"credit", b"1", {"upto": 5})
    assert "without credit" in until(dealer, b"refused")["message"]
    dealer.send(b"credit", b"1")
    assert "'upto' is missing" in until(dealer, b"refused")["message"]
    answer(dealer, b"1", call, result=1)
    until(dealer, b"complete")
    dealer.send(b"credit", b"1", {"upto": 5})
    assert "already ended" in until(dealer, b"refused")["message"]


def test_a_resume_may_carry_credit(dealer):
    dealer.send(b"run_stream", b"1", {"credit": 1}, PACED)
    until(dealer, b"chunk")
    assert barrier(dealer, b"1") == []
    dealer.send(b"resume", b"1", {"from": 2, "upto": 2})
    until(dealer, b"resumed")
    assert until(dealer, b"chunk")["seq"] == 2


# --- the Python client ------------------------------------------------------------------------------


def test_a_slow_reader_receives_everything_and_the_worker_waits_for_it(client: Client):
    with client.stream({"model": "synthetic:tokens=40000,delay_ms=0,size=100"}, "x", credit=4) as events:
        seen = [event for event, _ in zip(events, range(40), strict=False) if isinstance(event, Chunk)]
        assert "".join(each.data for each in seen).startswith("0" * 98 + "0 ")
        events.cancel()
        late = 0
        with pytest.raises(AxonError, match="cancelled"):
            for _ in events:
                late += 1
        assert late <= 40  # credit allows 4 and a few more before the cancel arrives; a run without credit is far ahead
    [*chunks, done] = client.stream(FAST, "x", credit=2)
    assert "".join(each.data for each in chunks) == done.result


def test_a_stream_without_credit_is_complete_and_an_invalid_credit_is_rejected(client: Client):
    # A late worker merges deltas, so their number varies; tests/unit/worker/test_run.py checks the merging.
    [*chunks, done] = client.stream(FAST, "x", credit=None)
    assert "".join(each.data for each in chunks) == done.result
    with pytest.raises(ValueError, match="invalid credit 0: expected at least 1"):
        client.stream(FAST, "x", credit=0)
