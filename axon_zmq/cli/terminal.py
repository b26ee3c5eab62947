"""A conversation at a terminal: prints the answer as text and asks one question at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from axon_zmq.cli.conversation import INPUT_ENDED, UnansweredError, send_answer
from axon_zmq.cli.output import as_json, err, out, print_result
from axon_zmq.cli.stdin import Lines
from axon_zmq.events import Chunk, Complete, Event, Log, Refused, ToolCall, ToolCancelled

if TYPE_CHECKING:
    from axon_zmq.client import RunStream
    from axon_zmq.client.deferred import Approval
    from axon_zmq.client.tool_functions import ToolResultBody


class TerminalUI:
    """Prints the answer of a run as text, and asks the user for results of tool calls and for approvals.

    Args:
        lines: Lines that the user types.
        tools: Names of the tools whose calls the user answers.
        streamed: Whether the text of the answer arrives in chunks.
    """

    def __init__(self, lines: Lines, tools: Collection[str], streamed: bool) -> None:
        self._lines = lines
        self._tools = tools
        self._streamed = streamed
        self._turn = asyncio.Lock()
        self._calls: dict[str, ToolCall] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._mid_line = False

    async def follow(self, events: RunStream) -> Complete:
        """See `ConversationUI`."""
        try:
            async for event in events:
                self.show(event, events)
                if isinstance(event, Complete):
                    return event
        finally:
            for task in self._asking.values():
                task.cancel()
            self._calls.clear()
            self._asking.clear()
        raise AssertionError("a stream ends with a Complete or an AxonError")

    async def answer_deferred(self, deferred: Mapping[str, Any]) -> dict[str, Any]:
        """See `ConversationUI`."""
        from axon_zmq.client.deferred import approved, executed

        approvals = {call["call_id"]: approved(await self._approval(call)) for call in deferred["approvals"]}
        calls: dict[str, Any] = {}
        for call in deferred["calls"]:
            line = await self._ask(call["name"], call["args"])
            if line is None:
                raise UnansweredError(INPUT_ENDED)
            calls[call["call_id"]] = executed(typed_answer(line))
        return {"approvals": approvals, "calls": calls}

    async def _approval(self, call: Mapping[str, Any]) -> Approval:
        shown = f"approve {call['name']} {as_json(call['args'])}?"
        line = await self._question(f"{shown} [y/N, a reason to refuse, or other arguments as JSON] ")
        if line is None:
            raise UnansweredError(INPUT_ENDED)
        return typed_approval(line)

    def show(self, event: Event, events: RunStream) -> None:
        """Show one event of a run, or begin to ask the person about it."""
        match event:
            case Chunk():
                self._show_chunk(event)
            case Complete() if event.deferred is None:
                self._finish(event)
            case ToolCall():
                self._calls[event.call_id] = event
                self._start_asking(event, events)
            case ToolCancelled():
                self._stop_asking(event.call_id)
            case Refused():
                self._note(f"refused {event.of}: {event.message}", "yellow")
                if event.error_type != "unknown_request" and (call := self._calls.get(event.call_id or "")) is not None:
                    self._start_asking(call, events)
            case Log():
                fields = f" {as_json(event.fields)}" if event.fields else ""
                self._note(f"{event.level} {event.logger}: {event.message}{fields}", "dim")
            case _:
                pass

    def _finish(self, done: Complete) -> None:
        if self._streamed and isinstance(done.result, str):
            out.print()
        else:
            self._fresh_line()
            print_result(done.result)
        self._mid_line = False

    def _show_chunk(self, chunk: Chunk) -> None:
        match chunk.type:
            case "text" | "thinking":
                out.print(chunk.data, end="", style="dim italic" if chunk.type == "thinking" else None, markup=False)
                out.file.flush()
                self._mid_line = not chunk.data.endswith("\n") if chunk.data else self._mid_line
            case "tool_started" if chunk.data["name"] not in self._tools:
                self._say(f"[{chunk.data['name']} {as_json(chunk.data['args'])}]", "cyan")
            case "tool_finished" if chunk.data["call_id"] not in self._calls:
                self._say(f"[{chunk.data['outcome']}: {as_json(chunk.data['result'])}]", "cyan")
            case "event":
                self._say(as_json(chunk.data), "dim")
            case _:
                pass

    def _start_asking(self, call: ToolCall, events: RunStream) -> None:
        # A task for each call: the run goes on while the user types, and may cancel the call.
        self._asking[call.call_id] = asyncio.create_task(self._answer(call, events))

    def _stop_asking(self, call_id: str) -> None:
        if (task := self._asking.pop(call_id, None)) is not None and task.cancel():
            self._note(f"{self._calls[call_id].name}: cancelled, no answer needed", "yellow")

    async def _answer(self, call: ToolCall, events: RunStream) -> None:
        line = await self._ask(call.name, call.args)
        await send_answer(events, call.call_id, typed_answer(line or ""))

    async def _ask(self, name: str, args: Mapping[str, Any]) -> str | None:
        return await self._question(f"{name} {as_json(args)}\nresult as JSON or text (!message to fail): ")

    async def _question(self, text: str) -> str | None:
        async with self._turn:
            self._fresh_line()
            out.print(text, end="", style="bold cyan", markup=False)
            out.file.flush()
            self._mid_line = True
            try:
                line = await self._lines.next()
            except ValueError as fault:
                line = f"!{fault}"
            self._mid_line = line is None
            return line

    def _say(self, text: str, style: str) -> None:
        self._fresh_line()
        out.print(text, style=style, markup=False)

    def _note(self, text: str, style: str) -> None:
        self._fresh_line()
        err.print(text, style=style, markup=False)

    def _fresh_line(self) -> None:
        if self._mid_line:
            out.print()
        self._mid_line = False


def typed_answer(line: str) -> ToolResultBody:
    """Decode the result of a tool call that the user typed; an empty line or a leading `!` means that it failed."""
    from axon_zmq.client.tool_functions import answer, fault

    text = line.strip()
    if not text or text.startswith("!"):
        return fault(text[1:].strip() or "no result was given")
    try:
        return answer(from_json(text, allow_inf_nan=False))
    except ValueError:
        return answer(text)


def typed_approval(line: str) -> Approval:
    """Decode the answer to an approval that the user typed: yes, no, a JSON object of other arguments, or a reason."""
    text = line.strip()
    if text.lower() in ("y", "yes"):
        return True
    if text.lower() in ("", "n", "no"):
        return False
    try:
        args = from_json(text)
    except ValueError:
        return text
    return args if isinstance(args, dict) else text
