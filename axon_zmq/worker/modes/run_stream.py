"""Mode `run_stream`: each delta of the model becomes a `chunk` as soon as it arrives.

Deltas are relayed by `RelayingModel`; all other events come from pydantic-ai's `event_stream_handler`. pydantic-ai's
`Agent.run_stream` is not used, because it takes text before a tool call for the final answer.
"""

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
"""Characters of structured output up to which the whole JSON text is parsed again at each delta. Longer texts are
parsed again when they have grown by a sixteenth, because the cost of parsing each time grows with the square of the
length."""


class RunStreamMode:
    """The executor of a `run_stream` worker."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def execute(self, run: Run) -> dict[str, Any]:
        """Run the agent, relay its events, and return the body of `complete`.

        Raises:
            AxonError: The request is invalid, or the agent failed.
        """
        call = await agent_call.call_for_run_in_thread(run, self._registry)
        chunks = Chunks(run.chunk, call.text_is_output, call.output_is_wrapped)
        if call.events == "all":
            relay = chunks.relay_whole
        else:
            relay = chunks.relay
            _use_relaying_model(call, run, relay)

        async def listen(_context: RunContext[object], events: AsyncIterable[AgentStreamEvent]) -> None:
            async for event in events:
                if not isinstance(event, Relayed):  # the relaying model has sent these deltas already
                    relay(event)
                    if run.congested():
                        await run.room()

        requests = OpenRequests()
        capabilities = [requests, *call.options.pop("capabilities", ())]
        try:
            with call.converted_errors():
                result = await call.agent.run(
                    call.prompt,
                    event_stream_handler=listen,
                    cancellation_token=run.token,
                    capabilities=capabilities,
                    **call.options,
                )
        finally:
            await requests.aclose()
        return agent_call.completed(result)


def _use_relaying_model(call: agent_call.AgentCall, run: Run, relay: Callable[[AgentStreamEvent], None]) -> None:
    """Wrap the model of a call, if it can stream, so that its deltas are relayed as soon as they arrive."""
    model = call.options.get("model") or call.agent.model
    if not isinstance(model, Model) or not compat.can_stream(model):
        return

    def take(delta: PartDeltaEvent) -> Awaitable[None] | None:
        relay(delta)
        return run.room() if run.congested() else None

    call.options["model"] = RelayingModel(model, take)


class Chunks:
    """Converts pydantic-ai's events to chunks.

    Args:
        send: Sends a chunk; its arguments are `type`, `data`, `step` and `part`.
        text_is_output: Whether text of the model is the structured output and not prose.
        is_wrapped: Returns whether pydantic-ai asks the model for `{"response": output}`. A function, because the
            answer is expensive and rarely needed.
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
        """Arguments of the current tool call, which may turn out to be the output."""
        self._output: _PartialJson | None = None
        """The structured output; None if the current part is not known to be it."""

    def relay_whole(self, event: AgentStreamEvent) -> None:
        """Send pydantic-ai's own event (`events: "all"`)."""
        self._count_steps(event)
        self._send("event", messages.dump_event(event), self._step, getattr(event, "index", 0))

    def relay(self, event: AgentStreamEvent) -> None:
        """Send the chunks that an event causes, if any."""
        if isinstance(event, PartDeltaEvent):  # first, because nearly all events are deltas
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
    """The value of a JSON text that is still incomplete."""

    def __init__(self, part: int) -> None:
        self.part = part
        """Number of the part of the response that contains the text."""
        self.value: Any = None
        """The value, as of the last call of `advanced`."""
        self._text = ""
        self._parsed = 0
        """Length of the text at the last call of `advanced` that parsed it."""

    def add(self, more: str | Mapping[str, object] | None) -> None:
        if isinstance(more, str):
            self._text += more
        elif more is not None:
            self._text = to_json(more).decode()  # some providers send the arguments at once, as a map

    def advanced(self) -> bool:
        """Parse the text, and return whether the value has changed."""
        grown = len(self._text) - self._parsed
        if not grown or (len(self._text) > _PARSE_EACH_DELTA_CHARS and grown < self._parsed // 16):
            return False
        # Models write text such as "```json" in front of an output that comes as text.
        start = min((at for at in map(self._text.find, "{[") if at >= 0), default=0)
        try:
            value = from_json(self._text[start:], allow_partial="trailing-strings")
        except ValueError:
            return False
        self._parsed = len(self._text)
        if value == self.value:
            return False
        self.value = value
        return True


def _arguments(call: ToolCallPart) -> Any:
    try:
        return call.args_as_dict()
    except (ValueError, AssertionError):
        return call.args
