"""Typed events of a run, as clients receive them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Accepted", "Chunk", "Complete", "Event", "Log", "Refused", "ToolCall", "ToolCancelled"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The daemon has accepted the request; `duplicate` if it had accepted it before."""

    duplicate: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a stream.

    `type` is `text` or `thinking` (`data`: the new characters), `output` (`data`: the structured output
    so far), `tool_started`, `tool_finished` (`data`: a map) or `event` (`data`: pydantic-ai's own event).
    `step` counts the model's responses from 1; `part` is the index in that response.
    """

    seq: int
    type: str
    data: Any
    step: int
    part: int


@dataclass(frozen=True, slots=True)
class Complete:
    """The end of a successful run; `messages` are only the new ones, in pydantic-ai's format."""

    seq: int
    result: Any
    usage: Mapping[str, Any]
    messages: list[Any]
    finish_reason: str | None
    model: str | None
    run_id: str | None
    deferred: Mapping[str, Any] | None = None
    """Instead of a result: `{calls, approvals}`, each a list of `{call_id, name, args}`."""
    content: Any = None
    """What the tool of a `call_tool` returned in addition to its result."""
    metadata: Any = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model calls a tool of the client, which answers with a `tool_result`."""

    seq: int
    call_id: str
    name: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCancelled:
    """The answer to a tool call is no longer wanted."""

    seq: int
    call_id: str


@dataclass(frozen=True, slots=True)
class Log:
    """A record that the run's code logged; `level` is Python's level name in lower case."""

    seq: int
    level: str
    message: str
    logger: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """A message about a run that the daemon did not accept; the run continues."""

    of: str
    """The kind of the refused message."""
    error_type: str
    message: str
    call_id: str | None
    """The tool call that it was about, if any."""


Event = Accepted | Chunk | Complete | ToolCall | ToolCancelled | Log | Refused
"""What a stream of the Python client yields; an `error` is raised instead."""
