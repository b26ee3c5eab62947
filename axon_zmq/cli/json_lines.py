"""A conversation in a pipe: each event is a JSON line on standard output, each answer a JSON line on standard input."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json

from axon_zmq.cli.conversation import INPUT_ENDED, UnansweredError, send_answer
from axon_zmq.cli.output import print_event
from axon_zmq.cli.stdin import InvalidUTF8Error, Lines
from axon_zmq.events import Complete, Event, Refused, ToolCall, ToolCancelled

if TYPE_CHECKING:
    from axon_zmq.client import RunStream


class JsonLinesUI:
    """Prints events as JSON lines, and reads answers as JSON lines.

    Args:
        lines: Source of the answers; None to leave tool calls and approvals unanswered.
    """

    def __init__(self, lines: Lines | None) -> None:
        self._lines = lines
        self._open: set[str] = set()
        """Ids of the current run's tool calls that have no answer yet."""
        self._ended = False

    async def follow(self, events: RunStream) -> Complete:
        """See `ConversationUI`."""
        reading = None if self._lines is None else asyncio.create_task(self._answer_all(self._lines, events))
        try:
            async for event in events:
                print_event(event)
                await self._track_calls(event, events)
                if isinstance(event, Complete):
                    return event
        finally:
            self._open.clear()
            if reading is not None:
                reading.cancel()
                with suppress(asyncio.CancelledError):
                    await reading
        raise AssertionError("a stream ends with a Complete or an AxonError")

    async def answer_deferred(self, deferred: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `ConversationUI`."""
        if self._lines is None:
            return None
        waiting = {call["call_id"]: kind for kind in ("approvals", "calls") for call in deferred[kind]}
        results: dict[str, dict[str, Any]] = {"approvals": {}, "calls": {}}
        while waiting:
            line = await _next_valid(self._lines)
            if line is None:
                raise UnansweredError(f"{INPUT_ENDED}: {', '.join(sorted(waiting))}")
            for call_id, kind, answer in _decisions(line):
                if waiting.get(call_id) == kind:
                    results[kind][call_id] = answer
                    del waiting[call_id]
                else:
                    _refuse(f"no unanswered call {call_id!r} among {kind}", call_id)
        return results

    async def _track_calls(self, event: Event, events: RunStream) -> None:
        match event:
            case ToolCall() if self._ended or self._lines is None:
                await events.fail(event.call_id, INPUT_ENDED)
            case ToolCall():
                self._open.add(event.call_id)
            case ToolCancelled():
                self._open.discard(event.call_id)
            # A refused result leaves its call open, unless the worker no longer knows the call.
            case Refused(call_id=str(call_id)) if event.error_type != "unknown_request":
                if self._ended:
                    await events.fail(call_id, event.message)
                self._open.add(call_id)
            case _:
                pass

    async def _answer_all(self, lines: Lines, events: RunStream) -> None:
        try:
            while (line := await _next_valid(lines)) is not None:
                await self._take(line, events)
        except ValueError as fault:
            _refuse(str(fault))
        self._ended = True
        for call_id in list(self._open):
            await events.fail(call_id, INPUT_ENDED)
        self._open.clear()

    async def _take(self, line: str, events: RunStream) -> None:
        match _message(line):
            case {"steer": content, "priority": priority}:
                await events.steer(content, priority)
            case {"call_id": call_id, "body": body}:
                self._open.discard(call_id)
                await send_answer(events, call_id, body)
            case {"approve": _}:
                _refuse("no approval is requested: the run has not ended with deferred calls")
            case _:
                pass


async def _next_valid(lines: Lines) -> str | None:
    """Return the next line that is valid UTF-8, and refuse the lines before it; None at the end of input."""
    while True:
        try:
            return await lines.next()
        except InvalidUTF8Error as fault:
            _refuse(str(fault))


def _decisions(line: str) -> list[tuple[str, str, Any]]:
    """Decode a line that answers deferred calls.

    Returns:
        For each answer its call id, `approvals` or `calls`, and the value that pydantic-ai expects.
    """
    from axon_zmq.client.deferred import approved, executed

    match _message(line):
        case {"approve": choices}:
            return [(call_id, "approvals", approved(choice)) for call_id, choice in choices.items()]
        case {"call_id": call_id, "body": body}:
            return [(call_id, "calls", executed(body))]
        case {"steer": _}:
            _refuse("no run is executing")
        case _:
            pass
    return []


_EXPECTED_LINES: Final = (
    'expected {"call_id": …, "result": …}, {"call_id": …, "error": {"message": …, "retry": false}}, '
    '{"approve": {call_id: true}} or {"steer": "text"}'
)


def _message(line: str) -> dict[str, Any]:
    """Decode and check one line of standard input; return an empty dictionary if the line was refused."""
    if not line.strip():
        return {}
    try:
        message = from_json(line, allow_inf_nan=False)
    except ValueError as fault:
        _refuse(f"invalid line of standard input: not JSON ({fault}); {_EXPECTED_LINES}")
        return {}
    if (checked := _checked(message)) is None:
        _refuse(f"invalid line of standard input: {_EXPECTED_LINES}")
    return checked or {}


def _checked(message: Any) -> dict[str, Any] | None:
    """Return the message with its defaults filled in; None if it has an unknown form."""
    match message:
        case {"approve": dict(choices), **rest} if not rest and all(map(_is_choice, choices.values())):
            return message
        case {"steer": str() | list(), **rest} if rest.keys() <= {"priority"}:
            return {"priority": "asap", **message}
        case {"call_id": str(call_id), "error": {"message": str(), **more} as error, **rest}:
            if rest or more.keys() - {"retry"} or type(more.get("retry", False)) is not bool:
                return None
            return {"call_id": call_id, "body": {"error": {"retry": False, **error}}}
        case {"call_id": str(call_id), "result": _, **rest} if rest.keys() <= {"content", "metadata"}:
            return {"call_id": call_id, "body": {key: value for key, value in message.items() if key != "call_id"}}
        case _:
            return None


def _is_choice(value: object) -> bool:
    return isinstance(value, bool | str | dict)


def _refuse(message: str, call_id: str | None = None) -> None:
    """Report that a line was refused, with the same event as for a message that the daemon refuses."""
    print_event(Refused("answer", "invalid_request", message, call_id))
