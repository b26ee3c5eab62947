"""Mode `run_stream`: each delta of the model one `chunk`, as it comes; `ahead` says on which way."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from typing import Any, Final

from pydantic_ai import RunContext
from pydantic_ai.messages import (
    AgentStreamEvent,
    FinalResultEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelResponsePart,
    ModelResponsePartDelta,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_ai.models import Model
from pydantic_core import from_json, to_json

from axon_zmq.worker.adapter import compat, messages
from axon_zmq.worker.modes import agent_call
from axon_zmq.worker.modes.open_requests import OpenRequests
from axon_zmq.worker.modes.relaying_model import Relayed, RelayingModel
from axon_zmq.worker.registry.agents import Registry
from axon_zmq.worker.run import Run

_PARSE_EACH_DELTA_CHARS: Final = 4096
"""Characters of structured output up to which each delta is read anew; longer ones at each sixteenth."""


class RunStreamMode:
    """The executor of a `run_stream` worker."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def execute(self, run: Run) -> dict[str, Any]:
        """Run the agent and relay its events; the body of `complete`.

        Raises:
            AxonError: Whatever the contract calls it that went wrong.
        """
        call = await agent_call.call_for_run_in_thread(run, self._registry)
        chunks = Chunks(run.chunk, call.text_is_output, call.output_is_wrapped)
        if call.events == "all":
            relay = chunks.relay_whole
        else:
            relay = chunks.relay
            _relay_ahead(call, run, relay)

        async def listen(_context: RunContext[object], events: AsyncIterable[AgentStreamEvent]) -> None:
            async for event in events:
                if not isinstance(event, Relayed):
                    relay(event)
                    if run.congested():
                        await run.room()

        requests = OpenRequests()
        try:
            with call.explained():
                result = await call.agent.run(
                    call.prompt,
                    event_stream_handler=listen,
                    cancellation_token=run.token,
                    capabilities=[requests],
                    **call.options,
                )
        finally:
            await requests.aclose()
        return agent_call.completed(result)


def _relay_ahead(call: agent_call.AgentCall, run: Run, relay: Callable[[AgentStreamEvent], None]) -> None:
    """Have the model's deltas relayed as they leave it; not where it has no streams, or is named by the agent alone."""
    model = call.options.get("model") or call.agent.model
    if not isinstance(model, Model) or not compat.can_stream(model):
        return

    def take(delta: PartDeltaEvent) -> Awaitable[None] | None:
        relay(delta)
        return run.room() if run.congested() else None

    call.options["model"] = RelayingModel(model, take)


class Chunks:
    """Turns pydantic-ai's events into chunks: what a reader of the answer needs, and no more.

    Args:
        send: Takes `type`, `data`, `step` and `part` of each.
        text_is_output: Text is the structured output, not prose.
        is_wrapped: Whether pydantic-ai asks the model for `{"response": output}`, asked when it matters.
    """

    def __init__(
        self, send: Callable[[str, object, int, int], None], text_is_output: bool, is_wrapped: Callable[[], bool]
    ) -> None:
        self._send = send
        self._text_is_output = text_is_output
        self._is_wrapped = is_wrapped
        self._step = 0
        self._response_is_over = True
        self._call: _PartialJson | None = None
        """The tool call under way, which may turn out to be the output."""
        self._output: _PartialJson | None = None

    def relay_whole(self, event: AgentStreamEvent) -> None:
        """Send pydantic-ai's own event (`events: "all"`)."""
        self._count_steps(event)
        self._send("event", messages.dump_event(event), self._step, getattr(event, "index", 0))

    def relay(self, event: AgentStreamEvent) -> None:
        """Send what an event means for the reader."""
        if isinstance(event, PartDeltaEvent):  # nearly all are
            self._delta(event.delta, event.index)
            return
        self._count_steps(event)
        match event:
            case PartStartEvent(index=index, part=part):
                self._start(part, index)
            case FinalResultEvent(tool_name=str()):
                self._output = self._call
                self._show_output()
            case FunctionToolCallEvent(part=call):
                data = {"call_id": call.tool_call_id, "name": call.tool_name, "args": _arguments(call)}
                self._send("tool_started", data, self._step, 0)
            case FunctionToolResultEvent(part=returned):
                data = {"call_id": returned.tool_call_id, "outcome": returned.outcome, "result": returned.content}
                self._send("tool_finished", data, self._step, 0)
            case _:
                pass

    def _delta(self, delta: ModelResponsePartDelta, part: int) -> None:
        match delta:
            case TextPartDelta(content_delta=text):
                self._text(text, part)
            case ThinkingPartDelta(content_delta=str(thought)) if thought:
                self._send("thinking", thought, self._step, part)
            case ToolCallPartDelta(args_delta=args):
                self._add_arguments(args, part)
            case _:
                pass

    def _count_steps(self, event: AgentStreamEvent) -> None:
        if isinstance(event, PartStartEvent) and self._response_is_over:
            self._step += not compat.resumes_response(event)
            self._response_is_over = False
        elif isinstance(event, PartEndEvent) and event.next_part_kind is None:
            self._response_is_over = True

    def _start(self, part: ModelResponsePart, index: int) -> None:
        match part:
            case TextPart(content=text):
                self._output = _PartialJson(index) if self._text_is_output else None
                self._text(text, index)
            case ThinkingPart(content=thought) if thought:
                self._send("thinking", thought, self._step, index)
            case ToolCallPart(args=args):
                self._call, self._output = _PartialJson(index), None
                self._call.add(args)
            case _:
                pass

    def _text(self, text: str, part: int) -> None:
        if self._output is not None and self._text_is_output:
            self._output.add(text)
            self._show_output()
        elif text:
            self._send("text", text, self._step, part)

    def _add_arguments(self, args: str | Mapping[str, object] | None, part: int) -> None:
        if self._call is not None and self._call.part == part:
            self._call.add(args)
            if self._output is self._call:
                self._show_output()

    def _show_output(self) -> None:
        if self._output is not None and self._output.advanced():
            value = self._output.value
            if isinstance(value, dict) and value.keys() == {compat.WRAPPED_OUTPUT_KEY} and self._is_wrapped():
                value = value[compat.WRAPPED_OUTPUT_KEY]
            self._send("output", value, self._step, self._output.part)


class _PartialJson:
    """Structured output as it grows."""

    def __init__(self, part: int) -> None:
        self.part = part
        self.value: Any = None
        self._text = ""
        self._read = 0

    def add(self, more: str | Mapping[str, object] | None) -> None:
        if isinstance(more, str):
            self._text += more
        elif more is not None:
            self._text = to_json(more).decode()  # a provider that gives arguments whole, as a map

    def advanced(self) -> bool:
        """Read what there is; whether it says more than before."""
        grown = len(self._text) - self._read
        if not grown or (len(self._text) > _PARSE_EACH_DELTA_CHARS and grown < self._read // 16):
            return False
        start = min((at for at in map(self._text.find, "{[") if at >= 0), default=0)
        try:
            value = from_json(self._text[start:], allow_partial="trailing-strings")
        except ValueError:
            return False
        self._read = len(self._text)
        if value == self.value:
            return False
        self.value = value
        return True


def _arguments(call: ToolCallPart) -> Any:
    try:
        return call.args_as_dict()
    except (ValueError, AssertionError):
        return call.args
