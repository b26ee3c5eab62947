"""A run's log records as messages of the run."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from axon_zmq import Client
from axon_zmq.messages import Log
from tests.conftest import Dealer
from tests.test_tools import MODES


def logged(dealer: Dealer, mode: bytes, prompt: str, **more: Any) -> list[tuple[bytes, dict[str, Any]]]:
    """All messages of a run whose tool logs."""
    id = secrets.token_hex(8).encode()
    dealer.send(mode, id, None, {"agent": "logging", "prompt": prompt, **more})
    messages = dealer.until_end(id)
    assert [body["seq"] for _, body in messages] == list(range(1, len(messages) + 1))
    return messages


def records(messages: list[tuple[bytes, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [body for kind, body in messages if kind == b"log"]


@pytest.mark.parametrize("mode", MODES)
def test_records_come_in_sequence_with_their_fields(dealer, mode):
    dealer.send(mode, b"run-7", None, {"agent": "logging", "prompt": "Oslo", "log": "info"})
    asked, from_a_thread, failed = records(dealer.until_end(b"run-7"))
    assert (asked["level"], asked["message"], asked["logger"]) == ("info", "asked for Oslo", "sample.tools")
    extra = {"place": "Oslo", "when": "2026-01-02", "raw": b"\x00\xff", "big": str(2**70)}
    assert asked["fields"] == {"run": "run-7", **extra}
    assert (from_a_thread["level"], from_a_thread["message"]) == ("warning", "from a thread")
    assert failed["fields"]["exception"] == "ZeroDivisionError: division by zero"


def test_records_stand_between_the_chunks_where_they_were_logged(dealer):
    kinds = [(kind, body.get("type")) for kind, body in logged(dealer, b"run_stream", "Oslo", log="warning")]
    started, finished = kinds.index((b"chunk", "tool_started")), kinds.index((b"chunk", "tool_finished"))
    places = [index for index, (kind, _) in enumerate(kinds) if kind == b"log"]
    assert len(places) == 2
    assert all(started < place < finished for place in places)


@pytest.mark.parametrize("mode", MODES)
def test_a_finer_level_than_the_operators_is_relayed_and_not_written(dealer, daemon, mode):
    messages = [record["message"] for record in records(logged(dealer, mode, "secret-place", log="debug"))]
    assert "in detail: secret-place" in messages
    assert not any("in detail" in daemon.log(name) for name in daemon.processes)
    assert not any("in detail" in record["message"] for record in records(logged(dealer, mode, "Oslo", log="info")))


@pytest.mark.parametrize("mode", MODES)
def test_without_it_nothing_is_sent(dealer, mode):
    assert not records(logged(dealer, mode, "Oslo"))
    assert not records(logged(dealer, mode, "Oslo", log="off"))


@pytest.mark.parametrize("mode", MODES)
def test_a_flood_of_records_is_bounded_and_says_how_many_were_left_out(dealer, mode):
    found = records(logged(dealer, mode, "flood", log="info"))
    remarks = [record for record in found if "left_out" in record["fields"]]
    left_out = sum(record["fields"]["left_out"] for record in remarks)
    assert len(found) < 2000
    assert left_out + len(found) - len(remarks) == 5003


def test_records_of_one_run_do_not_reach_another(client: Client):
    with client.stream("logging", "Oslo", log="info") as loud, client.stream("logging", "Rome") as quiet:
        assert not [event for event in quiet if isinstance(event, Log)]
        said = [event.message for event in loud if isinstance(event, Log)]
    assert said[0] == "asked for Oslo"
    assert not any("Rome" in message for message in said)
