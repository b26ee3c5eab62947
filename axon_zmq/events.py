"""Typed events of a run, as clients receive them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from axon_zmq.protocol import kinds


@dataclass(frozen=True, slots=True)
class Accepted:
    """The daemon has the request; `duplicate` when it had it already."""

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
    """The end of a run that succeeded; `messages` are the new ones only, as pydantic-ai writes them."""

    seq: int
    result: Any
    usage: Mapping[str, Any]
    messages: list[Any]
    finish_reason: str | None
    model: str | None
    run_id: str | None
    deferred: Mapping[str, Any] | None = None
    """In place of a result: `{calls, approvals}`, each a list of `{call_id, name, args}`."""
    content: Any = None
    """What a tool that was called alone gives beside its result."""
    metadata: Any = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model calls a tool of the client's; it is answered with a `tool_result`."""

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
    """A record that the run's code logged; `level` as Python names it, in lower case."""

    seq: int
    level: str
    message: str
    logger: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that was sent about a run could not be taken; the run goes on."""

    of: str
    error_type: str
    message: str
    call_id: str | None


Event = Accepted | Chunk | Complete | ToolCall | ToolCancelled | Log | Refused
"""What a stream of the Python client yields; an `error` is raised instead."""


def event_of(kind: bytes, body: Mapping[str, Any]) -> Event | None:
    """The typed event of a message; None for kinds that this version does not know."""
    match kind:
        case kinds.CHUNK:
            return Chunk(body["seq"], body["type"], body.get("data"), body.get("step", 0), body.get("part", 0))
        case kinds.COMPLETE:
            return Complete(
                seq=body.get("seq", 0),
                result=body.get("result"),
                usage=body.get("usage") or {},
                messages=body.get("messages") or [],
                finish_reason=body.get("finish_reason"),
                model=body.get("model"),
                run_id=body.get("run_id"),
                deferred=body.get("deferred"),
                content=body.get("content"),
                metadata=body.get("metadata"),
            )
        case kinds.TOOL_CALL:
            return ToolCall(body["seq"], body["call_id"], body["name"], body.get("args") or {})
        case kinds.TOOL_CANCELLED:
            return ToolCancelled(body["seq"], body["call_id"])
        case kinds.LOG:
            fields = body.get("fields") or {}
            return Log(body["seq"], body["level"], body["message"], body.get("logger", ""), fields)
        case kinds.REFUSED:
            return Refused(body["of"], body["error_type"], body["message"], body.get("call_id"))
        case kinds.ACCEPTED:
            return Accepted(bool(body.get("duplicate")))
        case _:
            return None
