"""Prompts and message histories between the wire and pydantic-ai: its own names, bytes and times native."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_ai.messages import (
    AgentStreamEvent,
    AudioUrl,
    BinaryContent,
    CachePoint,
    DocumentUrl,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    StructuredContent,
    TextContent,
    TextPart,
    UploadedFile,
    UserContent,
    VideoUrl,
)
from pydantic_ai.usage import RunUsage
from pydantic_core import SchemaSerializer

from axon_zmq.protocol.plain import Plain, plain
from axon_zmq.protocol.requests import Part, Prompt, from_validation, invalid
from axon_zmq.worker.adapter import compat

CONTENT_CLASSES: Final[dict[str, Any]] = {
    "text-content": TextContent,
    "structured-content": StructuredContent,
    "image-url": ImageUrl,
    "audio-url": AudioUrl,
    "document-url": DocumentUrl,
    "video-url": VideoUrl,
    "binary": BinaryContent,
    "uploaded-file": UploadedFile,
    "cache-point": CachePoint,
}
_USAGE_FIELDS: Final = tuple(field.name for field in dataclasses.fields(RunUsage))
_USAGE_FIELDS_ALWAYS_SENT: Final = frozenset(("requests", "tool_calls", "input_tokens", "output_tokens"))


# --- from the wire ---------------------------------------------------------------------------------


def prompt(parts: Prompt | None, place: str = "/prompt") -> str | list[UserContent] | None:
    """The prompt as pydantic-ai takes it.

    Raises:
        RequestError: `invalid_request`, naming the part under `place`, where pydantic-ai itself refuses it:
            structured content that has no text.
    """
    if parts is None or isinstance(parts, str):
        return parts
    return [_content(part, f"{place}/{index}") for index, part in enumerate(parts)]


def _content(part: Part, place: str) -> UserContent:
    if isinstance(part, str):
        return part
    try:
        made = CONTENT_CLASSES[part.kind](**dict(part))
    except ValidationError as error:
        raise from_validation(error, place) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise invalid([(place, f"cannot be made into text for the model: {error}")]) from None
    return BinaryContent.narrow_type(made) if isinstance(made, BinaryContent) else made


def load(messages: Sequence[Mapping[str, object]] | None) -> list[ModelMessage] | None:
    """Read a `message_history`.

    Raises:
        RequestError: `invalid_request`, naming the message; also where a part asks for a download from
            the daemon's own network, which no client may.
    """
    if messages is None:
        return None
    refuse_local_downloads(messages, "/message_history")
    try:
        return ModelMessagesTypeAdapter.validate_python(messages)
    except ValidationError as error:
        raise from_validation(error, "/message_history") from None
    except RecursionError:
        raise invalid([("/message_history", "is nested too deep")]) from None


def refuse_local_downloads(value: object, place: str) -> None:
    """Refuse parts with `force_download: "allow-local"`, anywhere in a value that pydantic-ai makes parts of.

    A map is made a part by its `kind`; one without is a tool's own data, whatever its keys.

    Raises:
        RequestError: `invalid_request`, naming the part under `place`.
    """
    pending: list[tuple[Any, tuple[object, ...]]] = [(value, ())]
    while pending:
        held, steps = pending.pop()
        if type(held) is dict:
            if "force_download" in held and "kind" in held and not isinstance(held["force_download"], bool):
                at = "".join(f"/{step}" for step in (*steps, "force_download"))
                raise invalid([(place + at, _NO_LOCAL_DOWNLOAD)])
            items = held.items()
        else:
            items = enumerate(held)
        for step, item in items:
            if type(item) in _HOLDERS:
                pending.append((item, (*steps, step)))


_HOLDERS: Final = frozenset((dict, list))
_NO_LOCAL_DOWNLOAD: Final = "may be true or false: a client may not ask for a download from local addresses"


# --- to the wire -----------------------------------------------------------------------------------


def dump(messages: Sequence[ModelMessage]) -> Plain:
    """Messages as maps, plain all through: whatever tools left in them, they can be packed, and read by `load`."""
    try:
        dumped = _dumped(messages)
    except Exception:  # a serializer of a tool's own that raises, a value that holds itself
        dumped = [_piecewise(message) for message in messages]
    return Plain(plain(dumped))


def _dumped(messages: Sequence[ModelMessage]) -> list[Any]:
    return _of_messages().to_python(messages, warnings=False)


def _piecewise(message: ModelMessage) -> dict[str, Any]:
    """A message with something that pydantic cannot dump: that part field by field, the others as ever."""
    whole = plain(message)
    for index, part in enumerate(message.parts):
        with suppress(Exception):
            alone: Any = dataclasses.replace(message, parts=[part], metadata=None)
            whole["parts"][index] = _dumped([alone])[0]["parts"][0]
    return whole


def dump_event(event: AgentStreamEvent) -> Any:
    """An event of a stream as a map, plain all through."""
    try:
        dumped = _of_events().to_python(event, warnings=False)
    except Exception:  # as in `dump`
        dumped = event
    return plain(dumped)


@cache
def _of_messages() -> SchemaSerializer:
    return compat.serializer(ModelMessagesTypeAdapter)


@cache
def _of_events() -> SchemaSerializer:
    """Made when it is first asked for: it takes a twentieth of a second."""
    return compat.serializer(TypeAdapter(AgentStreamEvent))


def usage(spent: RunUsage) -> dict[str, Any]:
    """What a run has cost: pydantic-ai's own fields, those that every run has and those that are not zero."""
    counts = ((name, getattr(spent, name)) for name in _USAGE_FIELDS)  # `asdict` takes ten times as long
    return {name: count for name, count in counts if count or name in _USAGE_FIELDS_ALWAYS_SENT}


def last_text(messages: Sequence[ModelMessage]) -> str:
    """The text of the last model response, as far as it came."""
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            return "".join(part.content for part in message.parts if isinstance(part, TextPart))
    return ""
