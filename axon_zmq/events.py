"""Events of a run, as the Python clients deliver them.

The attribute `seq` of an event numbers the worker's messages of one run from 1. The clients deliver events in this
order and without duplicates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Accepted", "Chunk", "Complete", "Event", "Log", "Refused", "ToolCall", "ToolCancelled"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The daemon accepted the request; sent only with `ack=True`, or if the request id was used before."""

    duplicate: bool
    """Whether the daemon already had a request with this id. In this case it starts nothing and replays that run."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a streamed answer."""

    seq: int
    """Number of this message in the run, from 1."""
    type: str
    """Kind of the piece, which determines the content of `data`:

    - `text`: new characters of the answer (`str`).
    - `thinking`: new characters of the model's reasoning (`str`).
    - `output`: the structured output received up to now, always as a whole.
    - `tool_started`: the model calls a tool of the agent or of the client, `{call_id, name, args}`.
    - `tool_finished`: this call has ended, `{call_id, outcome, result}`.
    - `event`: an event of pydantic-ai; with the option `events="all"`, every chunk is of this type.
    """
    data: Any
    """Content of the piece; see `type`."""
    step: int
    """Number of the model response that the piece belongs to, from 1."""
    part: int
    """Index of the piece's message part in this response, from 0."""


@dataclass(frozen=True, slots=True)
class Complete:
    """The run succeeded; this is its last event."""

    seq: int
    """Number of this message in the run, from 1."""
    result: Any
    """Answer of the agent: text, or data that fits the output schema. For `call_tool`, the tool's return value. None if
    `deferred` is set."""
    usage: Mapping[str, Any]
    """Usage of the run: `requests`, `tool_calls`, `input_tokens`, `output_tokens`, and other counters that are not
    zero."""
    messages: list[Any]
    """New messages of the run in pydantic-ai's format; the messages in `message_history` are not repeated."""
    finish_reason: str | None
    """Why the last model response ended, such as `stop` or `length`; None if the provider does not report it."""
    model: str | None
    """Name of the model."""
    run_id: str | None
    """pydantic-ai's id of the run, as in its traces."""
    deferred: Mapping[str, Any] | None = None
    """Tool calls to approve or to execute elsewhere, instead of a result: `{calls, approvals}`, each a list of
    `{call_id, name, args}`. `deferred_results` builds the answers for the next run. Default: None."""
    content: Any = None
    """For `call_tool`: content for the model that the tool returned in addition to its result. Default: None."""
    metadata: Any = None
    """For `call_tool`: metadata that the tool returned in addition to its result. Default: None."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model calls a tool of this client; the run waits for the answer."""

    seq: int
    """Number of this message in the run, from 1."""
    call_id: str
    """Id of the call, which the answer must repeat."""
    name: str
    """Name of the tool."""
    args: Mapping[str, Any]
    """Arguments by name; the daemon has checked them against the tool's JSON Schema."""


@dataclass(frozen=True, slots=True)
class ToolCancelled:
    """The run no longer needs the answer to a tool call, for example because `timeout_ms` of the tool passed."""

    seq: int
    """Number of this message in the run, from 1."""
    call_id: str
    """Id of the call, as in its `ToolCall`."""


@dataclass(frozen=True, slots=True)
class Log:
    """Code of the run wrote a log record; sent only with the option `log`."""

    seq: int
    """Number of this message in the run, from 1."""
    level: str
    """Python's name of the level in lower case, such as `info`."""
    message: str
    """Formatted message, at most 4096 characters."""
    logger: str
    """Name of the logger."""
    fields: Mapping[str, Any]
    """Extra fields of the record, with `run` (the request id) and, for a logged exception, `exception`."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The daemon did not accept a message about the run, such as a tool's answer; the run continues."""

    of: str
    """Kind of the refused message, such as `tool_result` or `steer`."""
    error_type: str
    """Reason as a code: a key of `axon_zmq.errors.ERROR_TYPES`, or a code of a newer daemon."""
    message: str
    """Description of the reason."""
    call_id: str | None
    """Id of the tool call that the message answered; None if it answered none."""


Event = Accepted | Chunk | Complete | ToolCall | ToolCancelled | Log | Refused
"""An event that a client's stream yields. A run that fails raises its `AxonError` instead of yielding an event."""
