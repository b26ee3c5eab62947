"""Relays the deltas of a model before pydantic-ai's event machinery processes them.

In `run_stream_events`, pydantic-ai needs 75 µs for a delta, of which 14 are for the model layer. The rest is spent on
passing events from one generator to the next, counting them, and offering them to hooks. So each delta is relayed as it
leaves the model, and the event machinery then receives neighbouring deltas merged into one. The text, its place among
tool calls, the result, the usage and the messages stay the same. Together with `event_stream_handler` in place of
`run_stream_events`, this reduces the whole cost of a delta in the worker from 126 µs to 36 at 32 streams
(docs/performance.md).
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
"""Maximum number of deltas that the event machinery receives as one. It is small because pydantic-ai checks usage
limits at each event."""

Relay = Callable[[PartDeltaEvent], Awaitable[None] | None]
"""Relays a delta. It returns an awaitable if the model must wait, because the client is slow, and None otherwise: most
deltas need no await."""


class Relayed(PartDeltaEvent):
    """Neighbouring deltas merged into one event; each of them was relayed already."""


class RelayingModel(WrapperModel):
    """A model for one run that relays each of its deltas at once.

    Args:
        wrapped: The model.
        relay: Called with each delta.
    """

    def __init__(self, wrapped: Model, relay: Relay) -> None:
        super().__init__(wrapped)
        self._relay = relay
        self._run_id: str | None = None
        """pydantic-ai's id of the run that made the first request."""

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[object] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Open the wrapped model's response; its deltas are relayed and merged if no other code needs each of them."""
        request = self.wrapped.request_stream(messages, model_settings, model_request_parameters, run_context)
        # After this point, pydantic-ai renumbers the parts of a response that continues a suspended one. Chunks relayed
        # here would therefore have wrong part numbers.
        if not compat.resumes_suspended_response(messages) and self._is_for(run_context):
            request = read_in_task(request, self._merged)
        async with request as response:
            yield response

    def _is_for(self, context: RunContext[object] | None) -> bool:
        """Whether a request belongs to this model's run, and no capability of the run has hooks for events.

        A tool finds this model in its context and may pass it to another agent, whose deltas must not be relayed.
        """
        if context is None:
            return False
        self._run_id = self._run_id or context.run_id
        return context.run_id == self._run_id and not compat.has_event_hooks(context)

    async def _merged(
        self, events: AsyncIterator[ModelResponseStreamEvent]
    ) -> AsyncGenerator[ModelResponseStreamEvent]:
        """Relay each delta, and yield all events with neighbouring deltas merged."""
        held: PartDeltaEvent | None = None
        pieces: list[str] = []
        async for event in events:
            if isinstance(event, PartDeltaEvent):
                # Awaited here, in front of the model: a slow client must slow the provider's stream down.
                if (waiting := self._relay(event)) is not None:
                    await waiting
                piece = _piece(event.delta)
                if (
                    held is not None
                    and piece is not None
                    and len(pieces) < MAX_MERGED_DELTAS
                    and _can_merge(held, event)
                ):
                    pieces.append(piece)
                    continue
            else:
                piece = None
            # Before any other event, so that the order of the events stays the same.
            if held is not None:
                yield _merge(held, pieces)
                held = None
            if not isinstance(event, PartDeltaEvent):
                yield event
            elif piece is None:
                yield Relayed(index=event.index, delta=event.delta)
            else:
                held, pieces = event, [piece]
        if held is not None:
            yield _merge(held, pieces)


def _piece(delta: ModelResponsePartDelta) -> str | None:
    """Return the text that a delta adds; None if it also changes something else, so that it cannot be merged."""
    match delta:
        case TextPartDelta(content_delta=text, provider_details=None, citations_delta=None):
            return text
        case ThinkingPartDelta(content_delta=text, provider_details=None, signature_delta=None):
            return text
        case ToolCallPartDelta(args_delta=str(text), provider_details=None, tool_name_delta=None):
            return text
        case _:
            return None


def _can_merge(one: PartDeltaEvent, other: PartDeltaEvent) -> bool:
    """Whether two deltas belong to the same part and come from the same provider."""
    return (
        one.index == other.index
        and type(one.delta) is type(other.delta)
        and getattr(one.delta, "provider_name", None) == getattr(other.delta, "provider_name", None)
    )


def _merge(first: PartDeltaEvent, pieces: list[str]) -> Relayed:
    """Return the first of several deltas with the text of all of them."""
    text = "".join(pieces)
    changes = {"args_delta": text} if isinstance(first.delta, ToolCallPartDelta) else {"content_delta": text}
    return Relayed(index=first.index, delta=replace(first.delta, **changes))
