"""Options of a run and of `call_tool` as typed dictionaries; an option with the value None counts as absent. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypedDict

if TYPE_CHECKING:
    from axon_zmq.client.tool_functions import ToolLike
from axon_zmq.protocol.values import Body, Value
from axon_zmq.suggestions import suggestion

Agent = str | Mapping[str, object]
"""Name of a registered agent, or an agent as data such as `{"model": …, "instructions": …}`."""
Prompt = str | Sequence[str | Mapping[str, object]]
"""Text, or a list of parts; a part is text or a map such as `{"kind": "image-url", "url": …}`."""
Priority = Literal["asap", "when_idle"]
"""When the model gets a user message that is sent to a running agent: `asap` with the next model request, `when_idle`
only when the run would otherwise end."""


class HeaderOptions(TypedDict, total=False):
    """Options that are sent in the message header, for a run and for `call_tool`."""

    timeout_ms: int | None
    """Time limit for the whole run in milliseconds, including its time in the queue. Default: 600000."""
    max_attempts: int | None
    """How often the run may be started in total if worker processes die, 1 to 10. Default: 1."""
    ack: bool | None
    """Whether the daemon confirms the request with `Accepted`. Default: False."""
    credit: int | None
    """How many messages of a stream may be in flight to the reader, at least 1. If the reader is slower than the model,
    the daemon merges text; when 64 KiB of messages wait in the daemon, it stops reading from the model until the
    reader continues. Default: 1024 for `stream`; there, an explicit None means no limit."""
    on_disconnect: Literal["cancel", "keep"] | None
    """What happens to the run if this client stays disconnected for 15 seconds: with `cancel` it is
    ended; with `keep` it continues and can be resumed. Default: `cancel`."""
    traceparent: str | None
    """W3C trace context of the caller; spans of the run belong to this trace. Default: none."""
    tracestate: str | None
    """W3C trace state of the caller. Default: none."""


class RequestOptions(HeaderOptions, total=False):
    """Options of every request that starts a run. All `HeaderOptions` are allowed, too."""

    id: bytes | str | None
    """Request id, 1 to 64 bytes. It must differ from the id of each request of this client that is still open or has
    ended within the last minute. Default: random."""


class RunOptions(RequestOptions, total=False):
    """Options of `run`, `run_sync` and `stream`. All `RequestOptions` and `HeaderOptions` are allowed, too."""

    message_history: Sequence[Mapping[str, object]] | None
    """Messages of the conversation's earlier runs, in the format of `Complete.messages`. Default: none."""
    tools: Iterable[ToolLike] | None
    """Tools that this process executes: functions, `Tool`s, or maps. Default: none."""
    deferred_tool_results: Mapping[str, object] | None
    """Answers to the deferred calls of the previous run; see `deferred_results`. Default: none."""
    output_schema: Mapping[str, object] | None
    """JSON Schema of the result. Default: the agent's output type."""
    output_mode: Literal["tool", "native", "prompted"] | None
    """How the model is asked for structured output: by a tool call, by the provider's own feature, or by instructions
    in the prompt. Default: the agent's output mode."""
    deps: Value
    """Dependencies (pydantic-ai's `deps`) of the agent's tools and instructions. Default: none."""
    model: str | None
    """Name of the model, such as `openai:gpt-4o`. Default: the agent's model."""
    model_settings: Body | None
    """pydantic-ai's `ModelSettings`, such as `{"temperature": 0}`. Default: the agent's settings."""
    usage_limits: Body | None
    """pydantic-ai's `UsageLimits`: limits on requests, tool calls and tokens. Default: pydantic-ai's limits."""
    retries: int | Mapping[str, int] | None
    """How often failed tool calls and invalid output are retried, 0 to 100: one number for both, or
    `{"tools": …, "output": …}`. Default: the agent's numbers."""
    events: Literal["text", "all"] | None
    """Which chunks a stream contains: with `text`, those for text, thinking, output and tool calls; with `all`,
    pydantic-ai's own events instead. Default: `text`."""
    log: Literal["off", "debug", "info", "warning", "error", "critical"] | None
    """Lowest level of the run's log records that the daemon sends as `Log`. Default: `off`."""
    metadata: Body | None
    """Metadata of the run, for the agent's code and traces. Default: none."""


class CallOptions(RequestOptions, total=False):
    """Options of `call_tool`. All `RequestOptions` and `HeaderOptions` are allowed, too."""

    agent: str | None
    """Name of the agent that has the tool. Default: the only agent, toolset or MCP server with a tool of this name."""
    deps: Value
    """Dependencies (pydantic-ai's `deps`) of the tool. Default: none."""


_REQUEST_KEYS: Final = tuple(RequestOptions.__annotations__)
HEADER_KEYS: Final = tuple(HeaderOptions.__annotations__)
"""Options that are sent in the header."""
BODY_KEYS: Final = tuple(key for key in RunOptions.__annotations__ if key not in _REQUEST_KEYS)
"""Options of a run that are sent in its body, with the agent and the prompt."""
CALL_KEYS: Final = tuple(key for key in CallOptions.__annotations__ if key not in _REQUEST_KEYS)
"""Options of a `call_tool` that are sent in its body, with the tool and its arguments."""


def chosen(options: Mapping[str, object], keys: tuple[str, ...]) -> dict[str, object]:
    """Return the options among `keys` whose value is not None."""
    return {key: options[key] for key in keys if options.get(key) is not None}


def check_keys(options: Mapping[str, object], body_keys: tuple[str, ...]) -> None:
    """Reject unknown options before the request is sent.

    Args:
        options: The options of a request.
        body_keys: The allowed options, in addition to `id` and the options of the header.

    Raises:
        TypeError: An option is unknown; the message suggests the known option with the most similar name.
    """
    known = ("id", *HEADER_KEYS, *body_keys)
    if unknown := options.keys() - set(known):
        name = min(unknown)
        raise TypeError(f"unknown option {name!r}; {suggestion(name, known, 'known options')}")
