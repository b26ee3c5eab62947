"""Deltas on their way before pydantic-ai's event machinery sees them.

Of the 75 µs that a delta costs in `run_stream_events`, the model layer needs 14; the rest is events passed
on from one generator to the next, counted and offered to hooks. So each delta is relayed as it leaves the
model, and the machinery is given neighbouring ones as one: the text is the same, and so are its place among
tool calls, the result, the usage and the messages.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from pydantic_ai import RunContext
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponsePartDelta,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    TextPartDelta,
    ThinkingPartDelta,
    ToolCallPartDelta,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from axon_zmq.worker.adapter import compat
from axon_zmq.worker.modes.response_task import read_in_task

MAX_MERGED_DELTAS: Final = 64
"""Deltas that the machinery is given as one: limits of usage are looked at that often."""

Relay = Callable[[PartDeltaEvent], Awaitable[None] | None]
"""Takes a delta; awaited, where there is something to wait for."""


class Relayed(PartDeltaEvent):
    """Some neighbouring deltas as one, each of which was relayed."""


class RelayingModel(WrapperModel):
    """A model for one run, of which each delta is relayed at once.

    A tool finds it in its context, and may give it to another agent: what that one hears is relayed by nobody.

    Args:
        wrapped: The model.
        relay: Takes each delta.
    """

    def __init__(self, wrapped: Model, relay: Relay) -> None:
        super().__init__(wrapped)
        self._relay = relay
        self._run_id: str | None = None
        """The run's that asked first."""

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[object] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """The wrapped model's response, its deltas relayed, unless somebody else is to see each of them."""
        request = self.wrapped.request_stream(messages, model_settings, model_request_parameters, run_context)
        # What goes on with a suspended response is numbered anew further up.
        if not compat.resumes_suspended_response(messages) and self._is_for(run_context):
            request = read_in_task(request, self._merged)
        async with request as response:
            yield response

    def _is_for(self, context: RunContext[object] | None) -> bool:
        """Whether this is the run, and nobody else takes part in its events."""
        if context is None:
            return False
        self._run_id = self._run_id or context.run_id
        return context.run_id == self._run_id and not compat.has_event_hooks(context)

    async def _merged(
        self, events: AsyncIterator[ModelResponseStreamEvent]
    ) -> AsyncGenerator[ModelResponseStreamEvent]:
        held: PartDeltaEvent | None = None
        pieces: list[str] = []
        async for event in events:
            if isinstance(event, PartDeltaEvent):
                if (waiting := self._relay(event)) is not None:
                    await waiting
                piece = _piece(event.delta)
                if (
                    held is not None
                    and piece is not None
                    and len(pieces) < MAX_MERGED_DELTAS
                    and _are_alike(held, event)
                ):
                    pieces.append(piece)
                    continue
            else:
                piece = None
            if held is not None:
                yield _joined(held, pieces)
                held = None
            if not isinstance(event, PartDeltaEvent):
                yield event
            elif piece is None:
                yield Relayed(index=event.index, delta=event.delta)
            else:
                held, pieces = event, [piece]
        if held is not None:
            yield _joined(held, pieces)


def _piece(delta: ModelResponsePartDelta) -> str | None:
    """What a delta adds, where that is all that it says."""
    match delta:
        case TextPartDelta(content_delta=text, provider_details=None, citations_delta=None):
            return text
        case ThinkingPartDelta(content_delta=text, provider_details=None, signature_delta=None):
            return text
        case ToolCallPartDelta(args_delta=str(text), provider_details=None, tool_name_delta=None):
            return text
        case _:
            return None


def _are_alike(one: PartDeltaEvent, other: PartDeltaEvent) -> bool:
    """Whether two deltas are of the same part, from the same provider."""
    return (
        one.index == other.index
        and type(one.delta) is type(other.delta)
        and getattr(one.delta, "provider_name", None) == getattr(other.delta, "provider_name", None)
    )


def _joined(first: PartDeltaEvent, pieces: list[str]) -> Relayed:
    """The first of some deltas, with the text of all."""
    text = "".join(pieces)
    changes = {"args_delta": text} if isinstance(first.delta, ToolCallPartDelta) else {"content_delta": text}
    return Relayed(index=first.index, delta=replace(first.delta, **changes))
