"""A conversation with an agent: runs follow each other until no tool call or approval is left to answer.

`converse` shows each run through a `ConversationUI`: a `TerminalUI` prints text and asks questions, a `JsonLinesUI`
prints one JSON line for each event and reads answers as JSON lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from axon_zmq.errors import AxonError
from axon_zmq.events import Complete

if TYPE_CHECKING:
    from axon_zmq.client import AsyncClient, RunStream
    from axon_zmq.client.tool_functions import ToolResultBody
    from axon_zmq.protocol.kinds import Mode

INPUT_ENDED: Final = "standard input ended before the call was answered"


class UnansweredError(Exception):
    """Standard input ended while the deferred calls of a run were unanswered."""


class ConversationUI(Protocol):
    """Shows runs to a person or a program, and gets the answers to their tool calls and approvals."""

    async def follow(self, events: RunStream) -> Complete:
        """Show the events of a run until it ends, and answer its tool calls."""
        ...

    async def answer_deferred(self, deferred: Mapping[str, Any]) -> dict[str, Any] | None:
        """Answer the deferred calls of an ended run.

        Returns:
            `deferred_tool_results` for the next run; None if no run follows.

        Raises:
            UnansweredError: Standard input has ended.
        """
        ...


async def converse(
    client: AsyncClient,
    mode: Mode,
    agent: str | Mapping[str, Any],
    prompt: str | None,
    options: dict[str, Any],
    ui: ConversationUI,
) -> None:
    """Run an agent, and run it again with the answers to its deferred calls, until it returns a result."""
    history: list[Any] = []
    while True:
        async with client.stream(agent, prompt, mode=mode, **options) as events:
            done = await ui.follow(events)
        results = None if done.deferred is None else await ui.answer_deferred(done.deferred)
        if results is None:
            return
        prompt = None  # the message history contains it
        history += done.messages
        options = {**options, "message_history": history, "deferred_tool_results": results}


async def send_answer(events: RunStream, call_id: str, body: ToolResultBody) -> None:
    """Answer a tool call of a running agent.

    Args:
        events: The run.
        call_id: Id of the tool call.
        body: Body of a `tool_result` message.
    """
    try:
        if "error" in body:
            await events.fail(call_id, body["error"]["message"], retry=body["error"]["retry"])
        else:
            more = {key: body.get(key) for key in ("content", "metadata")}
            await events.answer(call_id, body.get("result"), **more)
    except (AxonError, ValueError, OverflowError) as error:
        await events.fail(call_id, f"the result cannot be sent: {error}")
