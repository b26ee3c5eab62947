"""Requests with client tools, sent by a raw DEALER."""

from __future__ import annotations

import json
from typing import Any

from axon_zmq.protocol.kinds import MODES
from tests.support.daemon import Dealer

MODE_KINDS = tuple(mode.encode() for mode in MODES)

PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}

WEATHER = {"name": "weather", "parameters": PLACE}


def calls(*names: str, **args: Any) -> str:
    """A prompt for the model `tools`: one step that calls these tools."""
    return json.dumps([{"name": name, "args": args} for name in names])


def asking(prompt: str, *tools: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"agent": {"model": "tools", "retries": 1}, "prompt": prompt, "tools": list(tools), **more}


def until(dealer: Dealer, *kinds: bytes) -> dict[str, Any]:
    """The body of the next message of one of these kinds; chunks and logs are skipped."""
    while True:
        kind, _, body = dealer.recv()
        if kind in kinds:
            return body
        assert kind in (b"chunk", b"log"), (kind, body)


def answer(dealer: Dealer, id: bytes, call: dict[str, Any], **body: Any) -> None:
    dealer.send(b"tool_result", id, {"call_id": call["call_id"]}, body)


def failed(dealer: Dealer) -> dict[str, Any]:
    return until(dealer, b"error")
