"""A run at a terminal or in a pipe: what is shown of it, and how its tools and approvals are answered.

`converse` goes on from run to run until there is a result. A `TerminalUI` is shown text and asked questions;
a `JsonLinesUI` reads JSON lines, one an event, and writes answers as JSON lines.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from pydantic_core import from_json, to_json
from rich.console import Console

from axon_zmq.errors import AxonError
from axon_zmq.events import Chunk, Complete, Event, Log, Refused, ToolCall, ToolCancelled
from axon_zmq.protocol import limits

if TYPE_CHECKING:
    from axon_zmq.client import AsyncClient, RunStream
    from axon_zmq.client.aio import Mode
    from axon_zmq.client.deferred import Approval
    from axon_zmq.client.tools import Body

_CONTROLS: Final = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


class _Plain(Console):
    """Prints no control character but newline and tab: a model's text cannot pass for a question of ours."""

    def print(self, *objects: Any, **options: Any) -> None:
        plain = (each.translate(_CONTROLS) if isinstance(each, str) else each for each in objects)
        super().print(*plain, **options)


out = _Plain(highlight=False, soft_wrap=True)
err = _Plain(stderr=True, highlight=False, soft_wrap=True)

LONGEST_LINE_BYTES: Final = limits.BrokerLimits().max_body
"""Bytes of the longest accepted line of standard input; a longer answer could not be sent."""
INPUT_ENDED: Final = "standard input has ended: nobody can answer"


class UnansweredError(Exception):
    """Standard input ended while a run's deferred calls waited for their answers."""


class Lines:
    """Standard input, line by line, without blocking the loop and without a thread that outlives it."""

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._ended = fd == 0 and sys.stdin is None  # closed: the number may be another file's by now
        self._turn = asyncio.Lock()

    async def next(self) -> str | None:
        """The next line without its end; None when there is no more.

        Raises:
            ValueError: It is too long; nothing is read after it.
        """
        async with self._turn:
            end = await self._end_of_line()
        if end > LONGEST_LINE_BYTES:
            self._buffer.clear()
            self._ended = True
            raise ValueError(f"a line of standard input has over {LONGEST_LINE_BYTES} bytes")
        if not self._buffer:
            return None
        line = self._buffer[:end].decode(errors="replace").removesuffix("\r")
        del self._buffer[: end + 1]
        return line

    async def _end_of_line(self) -> int:
        """Read until the buffer holds a whole line, or more than one may have; where it ends."""
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            if self._ended or seen > LONGEST_LINE_BYTES:
                return seen
            await self._readable()
            self._read()
        return end

    def _read(self) -> None:
        try:
            piece = os.read(self._fd, 65_536)
        except OSError:  # a terminal that was closed
            piece = b""
        self._ended = not piece
        self._buffer += piece

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except OSError:  # a file: epoll does not take it, and it never blocks
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)


class ConversationUI(Protocol):
    """Who is at the other end."""

    async def follow(self, events: RunStream) -> Complete:
        """Show a run to its end, and answer its tool calls."""
        ...

    async def settle(self, deferred: Mapping[str, Any]) -> dict[str, Any] | None:
        """The `deferred_tool_results` for a run that ended with deferred calls; None to leave it at that.

        Raises:
            UnansweredError: Nobody is there any more.
        """
        ...


async def converse(
    client: AsyncClient, mode: Mode, agent: Any, prompt: str | None, options: dict[str, Any], face: ConversationUI
) -> None:
    """Run an agent, and again with what its deferred calls brought, until there is a result."""
    history: list[Any] = []
    while True:
        async with client.stream(agent, prompt, mode=mode, **options) as events:
            done = await face.follow(events)
        results = None if done.deferred is None else await face.settle(done.deferred)
        if results is None:
            return
        prompt = None
        history += done.messages
        options = {**options, "message_history": history, "deferred_tool_results": results}


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON; bytes in base64, no control character unescaped."""
    made = to_json(value, indent=indent, bytes_mode="base64").decode()
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", made)


def print_line(value: Any) -> None:
    """One JSON line on standard output."""
    sys.stdout.write(as_json(value) + "\n")
    sys.stdout.flush()


def print_event(event: Event) -> None:
    """An event as a JSON line; `kind` as on the wire."""
    kind = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
    print_line({"kind": kind, **{name: getattr(event, name) for name in event.__slots__}})


def print_result(result: Any) -> None:
    """An answer on a terminal."""
    out.print(result if isinstance(result, str) else as_json(result, indent=2), markup=False)


# --- a person at a terminal ------------------------------------------------------------------------


class TerminalUI:
    """Reads text, and is asked one question at a time.

    Args:
        lines: What the person types.
        tools: Names of the tools that are answered here.
        streamed: Whether the answer's text comes in chunks.
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
                self._show(event, events)
                if isinstance(event, Complete):
                    return event
        finally:
            for task in self._asking.values():
                task.cancel()
            self._calls.clear()
            self._asking.clear()
        raise AssertionError("a stream ends with a Complete or an AxonError")

    async def settle(self, deferred: Mapping[str, Any]) -> dict[str, Any]:
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
        line = await self._question(f"{shown} [y/N, a reason why not, or other arguments as JSON] ")
        if line is None:
            raise UnansweredError(INPUT_ENDED)
        return typed_approval(line)

    def _show(self, event: Event, events: RunStream) -> None:
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
        self._asking[call.call_id] = asyncio.create_task(self._answer(call, events))

    def _stop_asking(self, call_id: str) -> None:
        if (task := self._asking.pop(call_id, None)) is not None and task.cancel():
            self._note(f"{self._calls[call_id].name}: its answer is no longer wanted", "yellow")

    async def _answer(self, call: ToolCall, events: RunStream) -> None:
        line = await self._ask(call.name, call.args)
        await send_answer(events, call.call_id, typed_answer(line or ""))

    async def _ask(self, name: str, args: Mapping[str, Any]) -> str | None:
        return await self._question(f"{name} {as_json(args)}\nits result, as JSON or text (!message: it failed): ")

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


def typed_answer(line: str) -> Body:
    """What a person typed as a tool's result; an empty line, or one with `!` in front, says that it failed."""
    from axon_zmq.client.tools import answer, fault

    text = line.strip()
    if not text or text.startswith("!"):
        return fault(text[1:].strip() or "the tool gave no result")
    try:
        return answer(from_json(text, allow_inf_nan=False))
    except ValueError:
        return answer(text)


def typed_approval(line: str) -> Approval:
    """What a person typed: yes, no, other arguments as a JSON object, or a reason why not."""
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


async def send_answer(events: RunStream, call_id: str, body: Body) -> None:
    """Answer a call of a run under way from the body of a `tool_result`."""
    try:
        if "error" in body:
            await events.fail(call_id, body["error"]["message"], retry=body["error"]["retry"])
        else:
            more = {key: body.get(key) for key in ("content", "metadata")}
            await events.answer(call_id, body["result"], **more)
    except (AxonError, ValueError, OverflowError) as error:
        await events.fail(call_id, f"the result cannot be sent: {error}")


# --- a program in a pipe ---------------------------------------------------------------------------


class JsonLinesUI:
    """Reads JSON lines.

    Args:
        lines: Where its answers come from; None where it answers nothing.
    """

    def __init__(self, lines: Lines | None) -> None:
        self._lines = lines
        self._open: set[str] = set()
        """Calls of the run under way that wait for an answer."""
        self._ended = False

    async def follow(self, events: RunStream) -> Complete:
        """See `ConversationUI`."""
        reading = None if self._lines is None else asyncio.create_task(self._answer_all(self._lines, events))
        try:
            async for event in events:
                print_event(event)
                await self._mind(event, events)
                if isinstance(event, Complete):
                    return event
        finally:
            self._open.clear()
            if reading is not None:
                reading.cancel()
                with suppress(asyncio.CancelledError):
                    await reading
        raise AssertionError("a stream ends with a Complete or an AxonError")

    async def settle(self, deferred: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `ConversationUI`."""
        if self._lines is None:
            return None
        waiting = {call["call_id"]: kind for kind in ("approvals", "calls") for call in deferred[kind]}
        results: dict[str, dict[str, Any]] = {"approvals": {}, "calls": {}}
        while waiting:
            line = await self._lines.next()
            if line is None:
                raise UnansweredError(f"{INPUT_ENDED} {', '.join(sorted(waiting))}")
            for call_id, kind, answer in _decisions(line):
                if waiting.get(call_id) == kind:
                    results[kind][call_id] = answer
                    del waiting[call_id]
                else:
                    _refuse(f"no such call waits among {kind}", call_id)
        return results

    async def _mind(self, event: Event, events: RunStream) -> None:
        match event:
            case ToolCall() if self._ended or self._lines is None:
                await events.fail(event.call_id, INPUT_ENDED)
            case ToolCall():
                self._open.add(event.call_id)
            case ToolCancelled():
                self._open.discard(event.call_id)
            case Refused(call_id=str(call_id)) if event.error_type != "unknown_request":
                if self._ended:
                    await events.fail(call_id, event.message)
                self._open.add(call_id)
            case _:
                pass

    async def _answer_all(self, lines: Lines, events: RunStream) -> None:
        try:
            while (line := await lines.next()) is not None:
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
                _refuse("nothing waits for approval: the run has not ended with it")
            case _:
                pass


def _decisions(line: str) -> list[tuple[str, str, Any]]:
    """What a line says of deferred calls: call id, `approvals` or `calls`, and pydantic-ai's words for it."""
    from axon_zmq.client.deferred import approved, executed

    match _message(line):
        case {"approve": choices}:
            return [(call_id, "approvals", approved(choice)) for call_id, choice in choices.items()]
        case {"call_id": call_id, "body": body}:
            return [(call_id, "calls", executed(body))]
        case {"steer": _}:
            _refuse("no run is under way")
        case _:
            pass
    return []


_EXPECTED_LINES: Final = (
    'write {"call_id": …, "result": …}, {"call_id": …, "error": {"message": …, "retry": false}}, '
    '{"approve": {call_id: true}} or {"steer": "text"}'
)


def _message(line: str) -> dict[str, Any]:
    """A line of a program's, checked; empty where it is none, which was then told."""
    if not line.strip():
        return {}
    try:
        message = from_json(line, allow_inf_nan=False)
    except ValueError as fault:
        _refuse(f"a line of standard input is no JSON ({fault}): {_EXPECTED_LINES}")
        return {}
    if (read := _read(message)) is None:
        _refuse(f"a line of standard input is not understood: {_EXPECTED_LINES}")
    return read or {}


def _read(message: Any) -> dict[str, Any] | None:
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


def _is_choice(value: Any) -> bool:
    return isinstance(value, bool | str | dict)


def _refuse(message: str, call_id: str | None = None) -> None:
    """Tell a program that its line was not taken, as the daemon would."""
    print_event(Refused("answer", "invalid_request", message, call_id))
