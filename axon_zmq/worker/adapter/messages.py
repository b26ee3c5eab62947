"""Converts prompts and message histories between the wire and pydantic-ai.

On the wire they have pydantic-ai's names; bytes and times are msgpack's own types.
"""

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
    """Convert a prompt, or other content for the model, to pydantic-ai's classes.

    Args:
        parts: The content.
        place: JSON pointer of the content, for errors.

    Raises:
        RequestError: `invalid_request`, with a JSON pointer to the part, if pydantic-ai refuses it: structured content
            that cannot be made into text.
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
    """Convert a `message_history` to pydantic-ai's classes.

    Raises:
        RequestError: `invalid_request`, with a JSON pointer to the message, if it is invalid or if a part requests a
            download from the daemon's own network.
    """
    if messages is None:
        return None
    refuse_local_downloads(messages, "/message_history")
    try:
        return ModelMessagesTypeAdapter.validate_python(messages, context=compat.FILES_ARE_REBUILT)
    except ValidationError as error:
        raise from_validation(error, "/message_history") from None
    except RecursionError:
        raise invalid([("/message_history", "is nested too deep")]) from None


def refuse_local_downloads(value: object, place: str) -> None:
    """Refuse parts with `force_download: "allow-local"` anywhere in a value from which pydantic-ai makes parts.

    Such a part would let a client read from the daemon's own network. pydantic-ai makes a part only of a map that has
    a `kind`; other maps are data of tools, whatever their keys.

    Raises:
        RequestError: `invalid_request`, with a JSON pointer to the part.
    """
    # A loop instead of recursion: the value comes from a client and may be nested deeper than Python's recursion limit.
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
            if type(item) in _CONTAINERS:
                pending.append((item, (*steps, step)))


_CONTAINERS: Final = frozenset((dict, list))
_NO_LOCAL_DOWNLOAD: Final = "must be true or false: a client must not request a download from local addresses"


# --- to the wire -----------------------------------------------------------------------------------


def dump(messages: Sequence[ModelMessage]) -> Plain:
    """Convert messages to plain maps, which can be packed and which `load` can read again."""
    try:
        dumped = _dumped(messages)
    except Exception:  # a tool's result may have a serializer that raises, or may contain itself
        dumped = [_piecewise(message) for message in messages]
    return Plain(plain(dumped))


def _dumped(messages: Sequence[ModelMessage]) -> list[Any]:
    return _of_messages().to_python(messages, warnings=False)


def _piecewise(message: ModelMessage) -> dict[str, Any]:
    """Convert a message that pydantic cannot dump: the faulty part field by field, all others as usual."""
    whole = plain(message)
    for index, part in enumerate(message.parts):
        with suppress(Exception):
            alone: Any = dataclasses.replace(message, parts=[part], metadata=None)
            whole["parts"][index] = _dumped([alone])[0]["parts"][0]
    return whole


def dump_event(event: AgentStreamEvent) -> Any:
    """Convert an event of a stream to a plain map."""
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
    """Return the serializer of events; made at the first call, because that takes 50 ms."""
    return compat.serializer(TypeAdapter(AgentStreamEvent))


def usage(spent: RunUsage) -> dict[str, Any]:
    """Convert a run's usage to a map of pydantic-ai's fields: four always, the others only if they are not zero."""
    # `dataclasses.asdict` takes 39 µs instead of 3, because it makes deep copies.
    counts = ((name, getattr(spent, name)) for name in _USAGE_FIELDS)
    return {name: count for name, count in counts if count or name in _USAGE_FIELDS_ALWAYS_SENT}


def last_text(messages: Sequence[ModelMessage]) -> str:
    """Return the text of the last model response, which may be incomplete."""
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            return "".join(part.content for part in message.parts if isinstance(part, TextPart))
    return ""
