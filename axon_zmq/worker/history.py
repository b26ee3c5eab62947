"""Prompts and message histories between the wire and pydantic-ai: its own names, bytes and times native."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_ai.messages import (
    AudioUrl,
    BinaryContent,
    DocumentUrl,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    TextPart,
    UserContent,
    VideoUrl,
)
from pydantic_ai.usage import RunUsage

from axon_zmq.messages import BinaryPart, UrlPart, from_validation, invalid

_URLS = {"image-url": ImageUrl, "audio-url": AudioUrl, "document-url": DocumentUrl, "video-url": VideoUrl}

_ALWAYS = frozenset(("requests", "tool_calls", "input_tokens", "output_tokens"))


def prompt(parts: str | Sequence[str | UrlPart | BinaryPart] | None) -> str | list[UserContent] | None:
    """The prompt as pydantic-ai takes it."""
    return parts if parts is None or isinstance(parts, str) else [_content(part) for part in parts]


def _content(part: str | UrlPart | BinaryPart) -> UserContent:
    if isinstance(part, str):
        return part
    if isinstance(part, BinaryPart):
        return BinaryContent(
            data=part.data,
            media_type=part.media_type,
            identifier=part.identifier,
            vendor_metadata=part.vendor_metadata,
        )
    return _URLS[part.kind](
        url=part.url,
        media_type=part.media_type,
        identifier=part.identifier,
        force_download=part.force_download,
        vendor_metadata=part.vendor_metadata,
    )


def load(messages: list[dict[str, Any]] | None) -> list[ModelMessage] | None:
    """Read a `message_history`.

    Raises:
        RequestError: `invalid_request`, naming the message; also where a part asks for a download from
            the daemon's own network, which no client may.
    """
    if messages is None:
        return None
    if (pointer := _local_download(messages)) is not None:
        raise invalid([(pointer, "may be true or false: a client may not ask for a download from local addresses")])
    try:
        return ModelMessagesTypeAdapter.validate_python(messages)
    except ValidationError as error:
        raise from_validation(error, "/message_history") from None


def _local_download(value: Any) -> str | None:
    pending = [("/message_history", value)]
    while pending:
        place, value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("force_download"), str):
                return f"{place}/force_download"
            pending += [(f"{place}/{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(f"{place}/{index}", item) for index, item in enumerate(value)]
    return None


def dump(messages: list[ModelMessage]) -> list[Any]:
    """Messages as maps, for packing."""
    return ModelMessagesTypeAdapter.dump_python(messages)


def usage(spent: RunUsage) -> dict[str, Any]:
    """What a run has cost: pydantic-ai's own fields, those that every run has and those that are not zero."""
    counts = dataclasses.asdict(spent)
    return {name: count for name, count in counts.items() if count or name in _ALWAYS}


def last_text(messages: Sequence[ModelMessage]) -> str:
    """The text of the last model response, as far as it came."""
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            return "".join(part.content for part in message.parts if isinstance(part, TextPart))
    return ""
