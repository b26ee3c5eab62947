"""What a terminal shows, and how typed answers are read."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, cast

import pytest

from axon_zmq.cli import output
from axon_zmq.cli.stdin import Lines
from axon_zmq.cli.terminal import TerminalUI, typed_answer, typed_approval
from axon_zmq.events import Chunk, Log, Refused

EVIL = "\x1b[2J\x1b]0;title\x07\b\r\x9b1Aapprove\x7f"
HARMLESS = "[2J]0;title1Aapprove"


def test_no_event_brings_control_characters_to_a_terminal(capsys):
    async def show() -> None:
        person = TerminalUI(Lines(), [], streamed=True)
        calls: dict[str, Any] = {"name": EVIL, "args": {EVIL: EVIL}, "call_id": EVIL}
        for event in (
            Chunk(1, "text", EVIL, 1, 0),
            Chunk(2, "thinking", EVIL, 1, 0),
            Chunk(3, "tool_started", calls, 1, 0),
            Chunk(4, "tool_finished", {"call_id": EVIL, "outcome": EVIL, "result": EVIL}, 1, 0),
            Chunk(5, "event", {"text": EVIL}, 1, 0),
            Log(6, EVIL, EVIL, EVIL, {EVIL: EVIL}),
            Refused("steer", "invalid_request", EVIL, None),
        ):
            person.show(event, cast("Any", None))

    asyncio.run(show())
    shown = "".join(capsys.readouterr())
    assert shown.count(HARMLESS) >= 7
    assert not re.search(r"[^\n\t\x20-\x7e]", shown)


def test_json_escapes_what_a_terminal_would_obey():
    made = output.as_json({"a": EVIL})
    assert re.fullmatch(r"[\x20-\x7e]+", made)
    assert json.loads(made) == {"a": EVIL}


@pytest.mark.parametrize(
    ("typed", "body"),
    [
        ("5", {"result": 5}),
        (' {"a": null} ', {"result": {"a": None}}),
        ("NaN", {"result": "NaN"}),
        ('"quoted"', {"result": "quoted"}),
        ("two words", {"result": "two words"}),
        ("! broken ", {"error": {"message": "broken", "retry": False}}),
        (" ", {"error": {"message": "no result was given", "retry": False}}),
    ],
)
def test_a_typed_result_is_parsed(typed, body):
    assert typed_answer(typed) == body


@pytest.mark.parametrize(
    ("typed", "choice"),
    [("Y", True), ("yes", True), ("n", False), (" ", False), ("NO", False), ("5", "5"), ('{"a":1}', {"a": 1})],
)
def test_a_typed_approval_is_parsed(typed, choice):
    assert typed_approval(typed) == choice
