"""Log records of a run are sent to its client."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from axon_zmq import Client
from axon_zmq.events import Log
from axon_zmq.worker import run_logs
from tests.support.client_tools import MODE_KINDS
from tests.support.daemon import Dealer, running


def logged(dealer: Dealer, mode: bytes, prompt: str, **more: Any) -> list[tuple[bytes, dict[str, Any]]]:
    """All messages of a run whose tool logs."""
    id = secrets.token_hex(8).encode()
    dealer.send(mode, id, None, {"agent": "logging", "prompt": prompt, **more})
    messages = dealer.until_end(id)
    assert [body["seq"] for _, body in messages] == list(range(1, len(messages) + 1))
    return messages


def records(messages: list[tuple[bytes, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [body for kind, body in messages if kind == b"log"]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_log_records_arrive_in_sequence_with_their_fields(dealer, mode):
    dealer.send(mode, b"run-7", None, {"agent": "logging", "prompt": "Oslo", "log": "info"})
    asked, from_a_thread, failed = records(dealer.until_end(b"run-7"))
    assert (asked["level"], asked["message"], asked["logger"]) == ("info", "asked for Oslo", "sample_agents.tools")
    extra = {"place": "Oslo", "when": "2026-01-02", "raw": b"\x00\xff", "big": str(2**70)}
    assert asked["fields"] == {"run": "run-7", **extra}
    assert (from_a_thread["level"], from_a_thread["message"]) == ("warning", "from a thread")
    assert failed["fields"]["exception"] == "ZeroDivisionError: division by zero"


def test_log_records_keep_their_position_between_chunks(dealer):
    kinds = [(kind, body.get("type")) for kind, body in logged(dealer, b"run_stream", "Oslo", log="warning")]
    started, finished = kinds.index((b"chunk", "tool_started")), kinds.index((b"chunk", "tool_finished"))
    places = [index for index, (kind, _) in enumerate(kinds) if kind == b"log"]
    assert len(places) == 2
    assert all(started < place < finished for place in places)


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_finer_level_than_the_operators_is_relayed_and_not_written(dealer, daemon, mode):
    messages = [record["message"] for record in records(logged(dealer, mode, "secret-place", log="debug"))]
    assert "in detail: secret-place" in messages
    assert not any("in detail" in daemon.log(name) for name in daemon.processes)
    assert not any("in detail" in record["message"] for record in records(logged(dealer, mode, "Oslo", log="info")))


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_no_logs_are_sent_unless_requested(dealer, mode):
    assert not records(logged(dealer, mode, "Oslo"))
    assert not records(logged(dealer, mode, "Oslo", log="off"))


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_a_flood_of_log_records_is_bounded_and_the_number_left_out_is_reported(dealer, mode):
    found = records(logged(dealer, mode, "flood", log="info"))
    remarks = [record for record in found if "left_out" in record["fields"]]
    left_out = sum(record["fields"]["left_out"] for record in remarks)
    assert len(found) < 2000
    assert left_out + len(found) - len(remarks) == 5003


def test_log_records_of_one_run_do_not_reach_another(client: Client):
    with client.stream("logging", "Oslo", log="info") as loud, client.stream("logging", "Rome") as quiet:
        assert not [event for event in quiet if isinstance(event, Log)]
        said = [event.message for event in loud if isinstance(event, Log)]
    assert said[0] == "asked for Oslo"
    assert not any("Rome" in message for message in said)


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_log_records_of_other_libraries_are_relayed_from_level_warning(dealer, mode):
    found = records(logged(dealer, mode, "library", log="debug"))
    assert not any("Bearer" in str(record) for record in found)
    assert "the library warns" in [record["message"] for record in found]


@pytest.mark.parametrize("mode", MODE_KINDS)
def test_an_unusual_log_record_is_relayed_as_far_as_possible(dealer, daemon, mode):
    found = records(logged(dealer, mode, "odd", log="debug"))
    [odd] = [record for record in found if "odd" in record["fields"]]
    assert odd["message"] == "%d of %s"  # its arguments do not match its format
    assert odd["fields"]["nested"] == {"blob": b"\xff"}
    assert odd["fields"]["odd"].startswith("<")
    assert len(odd["fields"]["huge"]) <= run_logs.MAX_FIELD_CHARS
    assert not any("SECRET" in daemon.log(name) for name in daemon.processes)


def test_logs_requested_after_the_end_leave_nothing_behind():
    late = running("run_sync", AXON_AGENTS="late=late_agents:make", AXON_RUN_SYNC_SLOTS="1")
    with late as own, Dealer(own.endpoint) as dealer:
        dealer.send(b"run_sync", b"1", {"timeout_ms": 100}, {"agent": "late", "prompt": "x", "log": "debug"})
        assert dealer.until_end(b"1")[-1][1]["error_type"] == "deadline_exceeded"
        answer = dealer.ask(b"run_sync", b"2", None, {"agent": "late", "prompt": "levels"})[1]
        assert answer["result"] == "root 20, listeners 0"
