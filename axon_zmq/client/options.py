"""The options of a run and of `call_tool`, as typed dictionaries; None means that an option is not set. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, Literal, TypedDict

if TYPE_CHECKING:
    from axon_zmq.client.tool_functions import ToolLike
from axon_zmq.protocol.values import Body, Value

Agent = str | Mapping[str, object]
"""The name of a registered agent, or an agent as data: `{"model": …, "instructions": …}`."""
Prompt = str | Sequence[str | Mapping[str, object]]
"""Text, or a list of parts: text, and maps such as `{"kind": "image-url", "url": …}`."""
Priority = Literal["asap", "when_idle"]
"""When a steering message reaches the model: with its next request, or when the run would end otherwise."""


class HeaderOptions(TypedDict, total=False):
    """Options that the broker reads, of a run and of `call_tool`."""

    timeout_ms: int | None
    """Milliseconds for the whole run, its time in the queue included. Default: 600000."""
    max_attempts: int | None
    """How often the run may be started in total if worker processes die, 1 to 10. Default: 1."""
    ack: bool | None
    """Whether the daemon confirms the request with `Accepted`. Default: False."""
    credit: int | None
    """Messages of a stream that may be in flight to the reader, at least 1. Default: 1024 for `stream`; None means any
    number. Over it, text is merged, and then the model is not read until the reader continues."""
    on_disconnect: Literal["cancel", "keep"] | None
    """What happens to the run if this client stays disconnected for 15 seconds. Default: `cancel`."""
    traceparent: str | None
    """W3C trace context of the caller. Default: none."""
    tracestate: str | None
    """W3C trace state of the caller. Default: none."""


class RequestOptions(HeaderOptions, total=False):
    """Options of every request that starts a run."""

    id: bytes | str | None
    """The request id, 1 to 64 bytes, unique among this client's recent requests. Default: random."""


class RunOptions(RequestOptions, total=False):
    """Options of `run`, `run_sync` and `stream`."""

    message_history: Sequence[Mapping[str, object]] | None
    """The messages of earlier runs, as `Complete.messages` has them. Default: none."""
    tools: Iterable[ToolLike] | None
    """Tools that this process executes: functions, `Tool`s, or maps. Default: none."""
    deferred_tool_results: Mapping[str, object] | None
    """Answers to the deferred calls of the previous run: see `deferred_results`. Default: none."""
    output_schema: Mapping[str, object] | None
    """JSON Schema of the result. Default: the agent's own."""
    output_mode: Literal["tool", "native", "prompted"] | None
    """How the model is asked for structured output. Default: the agent's own."""
    deps: Value
    """The dependencies of the agent's tools and instructions. Default: none."""
    model: str | None
    """The model to use, such as `openai:gpt-4o`. Default: the agent's own."""
    model_settings: Body | None
    """pydantic-ai's `ModelSettings`, such as `{"temperature": 0}`. Default: the agent's own."""
    usage_limits: Body | None
    """pydantic-ai's `UsageLimits`, in requests, tool calls and tokens. Default: pydantic-ai's."""
    retries: int | Mapping[str, int] | None
    """Retries of tools and of output validation, 0 to 100; or `{"tools": …, "output": …}`. Default: the agent's own."""
    events: Literal["text", "all"] | None
    """Whether chunks bring only text and output, or all of pydantic-ai's events too. Default: `text`."""
    log: Literal["off", "debug", "info", "warning", "error", "critical"] | None
    """The lowest level of the run's log records that are sent as `Log`. Default: `off`."""
    metadata: Body | None
    """The run's metadata, for the agent's code and traces. Default: none."""


class CallOptions(RequestOptions, total=False):
    """Options of `call_tool`."""

    agent: str | None
    """Whose tool it is. Default: that of the only agent, toolset or MCP server that has a tool of this name."""
    deps: Value
    """The dependencies of the tool. Default: none."""


_REQUEST_KEYS: Final = tuple(RequestOptions.__annotations__)
HEADER_KEYS: Final = tuple(HeaderOptions.__annotations__)
"""Options that are sent in the header."""
BODY_KEYS: Final = tuple(key for key in RunOptions.__annotations__ if key not in _REQUEST_KEYS)
"""Options of a run that are sent in its body, with the agent and the prompt."""
CALL_KEYS: Final = tuple(key for key in CallOptions.__annotations__ if key not in _REQUEST_KEYS)
"""Options of a `call_tool` that are sent in its body, with the tool and its arguments."""


def chosen(options: Mapping[str, object], keys: tuple[str, ...]) -> dict[str, object]:
    """The options among `keys` that are set."""
    return {key: options[key] for key in keys if options.get(key) is not None}


def check_keys(options: Mapping[str, object], body_keys: tuple[str, ...]) -> None:
    """Reject misspelled options before anything is sent.

    Raises:
        TypeError: An option is unknown; the message names the nearest one that is known.
    """
    known = ("id", *HEADER_KEYS, *body_keys)
    if unknown := options.keys() - set(known):
        name = min(unknown)
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise TypeError(f"unknown option {name!r}; {hint}")
