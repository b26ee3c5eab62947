"""The Python client, driven through all cases: an example of what a client does there."""

from __future__ import annotations

from typing import Any, Final

from axon_zmq.client import Client
from axon_zmq.conformance.server import AGENT, LIST, REPORT
from axon_zmq.errors import AxonError
from axon_zmq.events import Chunk

CREDIT: Final = 16
"""Messages that may be on their way."""
CASE_TIMEOUT_MS: Final = 60_000
"""Milliseconds after which one case has failed."""


def drive(endpoint: str) -> None:
    """Play each case, and report what was seen."""
    with Client(endpoint) as client:
        for name in client.call_tool(LIST).result:
            client.call_tool(REPORT, {"case": name, **_seen(client, name)})


def _seen(client: Client, name: str) -> dict[str, Any]:
    text: list[str] = []
    calls: list[str] = []

    def note(text: str) -> str:
        """Is counted."""
        calls.append(text)
        return text

    end = "complete"
    try:
        events = client.stream(AGENT, name, tools=[note], timeout_ms=CASE_TIMEOUT_MS, credit=CREDIT)
        text.extend(event.data for event in events if isinstance(event, Chunk) and event.type == "text")
    except AxonError:
        end = "error"
    return {"text": "".join(text), "end": end, "calls": calls}
