"""The contract's messages as types: what a run request may hold, and what a client gets back.

Requests are checked with pydantic, once each. What a stream brings is read into plain dataclasses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from axon_zmq.errors import RequestError

# --- what a client sends ---------------------------------------------------------------------------

Name = Annotated[str, Field(min_length=1, max_length=256)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""What every provider takes."""
MAX_TOOLS: Final = 256
"""Tools of the client's in one request, and toolsets of one agent as data. Providers take 128 or so."""
M = TypeVar("M", bound=BaseModel)
OutputMode = Literal["tool", "native", "prompted"]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=False)


UrlKind = Literal["image-url", "audio-url", "document-url", "video-url"]
PartKind = Literal[UrlKind, "text-content", "structured-content", "binary", "uploaded-file", "cache-point"]


class TextPart(_Checked):
    """A part of a prompt: text, and what the application alone is told with it."""

    kind: Literal["text-content"]
    content: str
    metadata: Any = None


class StructuredPart(_Checked):
    """A part of a prompt: a value, which models are sent as text unless they take values."""

    kind: Literal["structured-content"]
    value: Any
    content: str = ""
    """The text; where there is none, the value is written as `format` says."""
    format: Literal["json", "xml"] | None = None
    tag: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=64)] | None = None
    """What the text is wrapped in: `<tag>...</tag>`."""
    description: str | None = None
    """Stands before the text."""
    metadata: Any = None


class UrlPart(_Checked):
    """A part of a prompt that the model's provider, or pydantic-ai, fetches."""

    kind: UrlKind
    url: Annotated[str, Field(min_length=1, max_length=65536)]
    media_type: Name | None = None
    identifier: Name | None = None
    force_download: bool = False
    vendor_metadata: dict[str, Any] | None = None


class BinaryPart(_Checked):
    """A part of a prompt with its bytes (msgpack bin)."""

    kind: Literal["binary"]
    data: Annotated[bytes, Field(strict=False)]
    media_type: Name
    identifier: Name | None = None
    vendor_metadata: dict[str, Any] | None = None


class UploadedPart(_Checked):
    """A part of a prompt that was uploaded to the model's provider before."""

    kind: Literal["uploaded-file"]
    file_id: Annotated[str, Field(min_length=1, max_length=65536)]
    provider_name: Literal[
        "anthropic", "openai", "google", "google-cloud", "google-gla", "google-vertex", "bedrock", "xai"
    ]
    media_type: Name | None = None
    identifier: Name | None = None
    vendor_metadata: dict[str, Any] | None = None


class CachePart(_Checked):
    """A mark in a prompt: the provider shall keep what comes before it."""

    kind: Literal["cache-point"]
    ttl: Literal["5m", "1h"] = "5m"


class _OtherPart(_Checked, extra="ignore"):
    """A map of no known kind: it always fails, and the error names the kinds."""

    kind: PartKind


class Retries(_Checked):
    """pydantic-ai's `AgentRetries`."""

    tools: Annotated[int, Field(ge=0, le=100)] | None = None
    output: Annotated[int, Field(ge=0, le=100)] | None = None


_PARTS: Final[Mapping[str, str]] = {
    **dict.fromkeys(get_args(UrlKind), "<url>"),
    "text-content": "<text part>",
    "structured-content": "<structured>",
    "binary": "<binary>",
    "uploaded-file": "<uploaded>",
    "cache-point": "<cache>",
}


def _tag_of_part(part: Any) -> str | None:
    if isinstance(part, str):
        return "<text>"
    if not isinstance(part, dict | BaseModel):
        return None
    kind = part.get("kind") if isinstance(part, dict) else getattr(part, "kind", None)
    return _PARTS.get(kind, "<other>") if isinstance(kind, str) else "<other>"


def _map_or(other: str) -> Callable[[Any], str]:
    return lambda value: "<map>" if isinstance(value, dict | BaseModel) else other


Part = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[TextPart, Tag("<text part>")]
    | Annotated[StructuredPart, Tag("<structured>")]
    | Annotated[UrlPart, Tag("<url>")]
    | Annotated[BinaryPart, Tag("<binary>")]
    | Annotated[UploadedPart, Tag("<uploaded>")]
    | Annotated[CachePart, Tag("<cache>")]
    | Annotated[_OtherPart, Tag("<other>")],
    Discriminator(
        _tag_of_part,
        custom_error_type="part",
        custom_error_message="must be text, or a map with a `kind`: see docs/protocol.md",
    ),
]
Prompt = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(max_length=10_000, fail_fast=True), Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
]
RetryBudget = Annotated[
    Annotated[int, Field(ge=0, le=100), Tag("<number>")] | Annotated[Retries, Tag("<map>")],
    Discriminator(_map_or("<number>")),
]


class ClientTool(_Checked):
    """A tool that lives in the client."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    """JSON Schema of its arguments, an object."""
    returns: dict[str, Any] | None = None
    """JSON Schema of its result."""
    mode: Literal["live", "deferred"] = "live"
    approval: bool = False
    timeout_ms: Annotated[int, Field(ge=1, le=2**53)] | None = None
    sequential: bool = False


class AgentData(_Checked):
    """An agent that the client defines. Nothing in it is imported or evaluated."""

    name: Name | None = None
    model: Name | None = None
    instructions: str | list[str] | None = None
    system_prompt: str | list[str] | None = None
    output_schema: dict[str, Any] | None = None
    output_mode: OutputMode = "tool"
    model_settings: dict[str, Any] | None = None
    retries: RetryBudget | None = None
    toolsets: Annotated[list[Name], Field(max_length=MAX_TOOLS)] | None = None
    """Names of toolsets that the operator registered."""


class RunRequest(_Checked):
    """The body of `run_sync`, `run` and `run_stream`."""

    agent: Annotated[
        Annotated[Name, Tag("<name>")] | Annotated[AgentData, Tag("<map>")], Discriminator(_map_or("<name>"))
    ]
    prompt: Prompt | None = None
    message_history: Annotated[list[dict[str, Any]], Field(max_length=10_000, fail_fast=True)] | None = None
    tools: Annotated[list[ClientTool], Field(max_length=MAX_TOOLS)] | None = None
    deferred_tool_results: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    output_mode: OutputMode | None = None
    deps: Any = None
    model: Name | None = None
    model_settings: dict[str, Any] | None = None
    usage_limits: dict[str, Any] | None = None
    retries: RetryBudget | None = None
    events: Literal["text", "all"] = "text"
    log: Literal["off", "debug", "info", "warning", "error", "critical"] = "off"
    metadata: dict[str, Any] | None = None


class CallRequest(_Checked):
    """The body of `call_tool`."""

    tool: Name
    args: dict[str, Any] = Field(default_factory=dict[str, Any])
    agent: Name | None = None
    deps: Any = None


class ToolFault(_Checked):
    """Why a tool of the client's has no result."""

    message: str
    retry: bool = False
    """Whether the model is asked to try again, or told that the tool failed."""


class ToolResult(_Checked):
    """The body of `tool_result`."""

    result: Any = None
    content: Prompt | None = None
    """More for the model, beside the result."""
    metadata: Any = None
    """For the application alone: it comes back in the run's messages."""
    error: ToolFault | None = None


class Steer(_Checked):
    """The body of `steer`."""

    content: Prompt
    priority: Literal["asap", "when_idle"] = "asap"


class DescribeRequest(_Checked):
    """The body of `describe`."""

    agent: Name | None = None


_OUR_MAPS: Final = frozenset(
    ("agent", "prompt", "retries", "model_settings", "usage_limits", "tools", "content", "error")
)
_TAG: Final = re.compile(r"<[^>]*>|\[key\]|(?:function-\w+|tagged-union|union|nullable)\[.*\]", re.DOTALL)
"""What stands in pydantic's places, but in no value: the branch of a union, or that a key is wrong."""
MOST_FAULTS: Final = 1_000
"""Faults of one body that are still looked at: a list of a million wrong parts has a million."""


def run_request(body: Mapping[str, Any]) -> RunRequest:
    """Check the body of a run.

    Raises:
        RequestError: `invalid_request`; `details.errors` has `{pointer, message}` for each fault.
    """
    request = checked(RunRequest, body)
    if request.prompt is None and not request.message_history:
        raise invalid([("/prompt", "is missing: give a prompt, or a message_history to go on from")])
    if request.deferred_tool_results is not None and not request.message_history:
        raise invalid([("/message_history", "is missing: deferred_tool_results belong to the calls in it")])
    seen: set[str] = set()
    for index, tool in enumerate(request.tools or ()):
        if tool.name in seen:
            raise invalid([(f"/tools/{index}/name", f"{tool.name!r} is the name of another tool too")])
        seen.add(tool.name)
    return request


def tool_result(body: Mapping[str, Any]) -> ToolResult:
    """Check the body of a `tool_result`.

    Raises:
        RequestError: `invalid_request`.
    """
    answer = checked(ToolResult, body)
    if answer.error is not None and answer.model_fields_set != {"error"}:
        raise invalid([("/error", "stands alone: a tool that failed has no result")])
    return answer


def checked(model: type[M], body: Mapping[str, Any]) -> M:
    """Check a body against one of the models above; nil means absent.

    Raises:
        RequestError: `invalid_request`.
    """
    try:
        return model.model_validate(_without_nil(body))
    except ValidationError as error:
        raise from_validation(error) from None


def _without_nil(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without its nils, which mean absent, and likewise in the maps of ours that it holds."""
    return {key: _plain(value) if key in _OUR_MAPS else value for key, value in body.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return _without_nil(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def invalid(faults: list[tuple[str, str]]) -> RequestError:
    """An `invalid_request` that names each fault by its JSON pointer."""
    pointer, message = faults[0]
    more = f" (and {len(faults) - 1} more, in details.errors)" if len(faults) > 1 else ""
    details = {"errors": [{"pointer": pointer, "message": message} for pointer, message in faults[:20]]}
    return RequestError("invalid_request", f"{pointer or '/'}: {message}{more}", details)


def from_validation(error: ValidationError, place: str = "") -> RequestError:
    """An `invalid_request` from pydantic's findings, at `place`; the input itself is not repeated."""
    if (count := error.error_count()) > MOST_FAULTS:
        return invalid([(place, f"has {count} faults: see docs/protocol.md for its shape")])
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return invalid([(place + located(fault["loc"]), _mend(fault["type"], fault["msg"])) for fault in faults])


def pointer_of(steps: Iterable[int | str]) -> str:
    """The JSON pointer of a way into a value."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def located(loc: Iterable[int | str]) -> str:
    """The JSON pointer of a place that pydantic names, without the tags of its own, and of ours, in it."""
    return pointer_of(step for step in loc if not (isinstance(step, str) and _TAG.fullmatch(step)))


def _mend(type: str, message: str) -> str:
    match type:
        case "extra_forbidden":
            return "is unknown: remove it or mend its spelling"
        case "missing":
            return "is missing"
        case _:
            return message[0].lower() + message[1:]
