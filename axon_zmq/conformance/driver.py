"""Runs the Python client through all cases; also an example for authors of other clients."""

from __future__ import annotations

from typing import Any, Final

from axon_zmq.client import Client
from axon_zmq.conformance.server import AGENT, LIST, REPORT
from axon_zmq.errors import AxonError
from axon_zmq.events import Chunk

CREDIT: Final = 16
"""Credit of each run, in messages."""
CASE_TIMEOUT_MS: Final = 60_000
"""Time limit of each case in milliseconds; a longer case has failed."""


def drive(endpoint: str) -> None:
    """Run each case against the scripted broker, and report what the application received."""
    with Client(endpoint) as client:
        for name in client.call_tool(LIST).result:
            client.call_tool(REPORT, {"case": name, **_run(client, name)})


def _run(client: Client, name: str) -> dict[str, Any]:
    text: list[str] = []
    calls: list[str] = []

    def note(text: str) -> str:
        """Record the call and return the text."""
        calls.append(text)
        return text

    end = "complete"
    try:
        events = client.stream(AGENT, name, tools=[note], timeout_ms=CASE_TIMEOUT_MS, credit=CREDIT)
        text.extend(event.data for event in events if isinstance(event, Chunk) and event.type == "text")
    except AxonError:
        end = "error"
    return {"text": "".join(text), "end": end, "calls": calls}
