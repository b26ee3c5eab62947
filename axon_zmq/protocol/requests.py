"""Pydantic models of the bodies that clients send, and functions that validate bodies with them.

Each body is validated once. nil counts as absent. Errors name each invalid value by its JSON pointer and never repeat
the value itself, which may be large or confidential.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from axon_zmq.errors import RequestError

# --- models of bodies --------------------------------------------------------------------------------

Name = Annotated[str, Field(min_length=1, max_length=256)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Name of a tool, in the form that every provider accepts."""
MAX_TOOLS: Final = 256
"""Maximum number of client tools in one request, and of toolsets of an agent as data. Providers accept about 128
tools."""
M = TypeVar("M", bound=BaseModel)
OutputMode = Literal["tool", "native", "prompted"]


class _Checked(BaseModel):
    # msgpack has the types that the protocol needs, so values are not converted: "5" is not a number.
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=False)


UrlKind = Literal["image-url", "audio-url", "document-url", "video-url"]
PartKind = Literal[UrlKind, "text-content", "structured-content", "binary", "uploaded-file", "cache-point"]


class TextPart(_Checked):
    """A part of a prompt: text, with metadata that only the application sees."""

    kind: Literal["text-content"]
    content: str
    metadata: Any = None


class StructuredPart(_Checked):
    """A part of a prompt: a structured value, which is sent as text to models that do not accept values."""

    kind: Literal["structured-content"]
    value: Any
    content: str = ""
    """Text form of the value. Default: the value in the given `format`."""
    format: Literal["json", "xml"] | None = None
    tag: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=64)] | None = None
    """Name of a tag around the text: `<tag>...</tag>`. Default: none."""
    description: str | None = None
    """Text in front of the value. Default: none."""
    metadata: Any = None


class UrlPart(_Checked):
    """A part of a prompt at a URL, which the model's provider or pydantic-ai fetches."""

    kind: UrlKind
    url: Annotated[str, Field(min_length=1, max_length=65536)]
    media_type: Name | None = None
    identifier: Name | None = None
    force_download: bool = False
    vendor_metadata: dict[str, Any] | None = None


class BinaryPart(_Checked):
    """A part of a prompt with its content as bytes (msgpack's bin)."""

    kind: Literal["binary"]
    data: Annotated[bytes, Field(strict=False)]
    media_type: Name
    identifier: Name | None = None
    vendor_metadata: dict[str, Any] | None = None


class UploadedPart(_Checked):
    """A part of a prompt that was uploaded to the model's provider earlier."""

    kind: Literal["uploaded-file"]
    file_id: Annotated[str, Field(min_length=1, max_length=65536)]
    provider_name: Literal[
        "anthropic", "openai", "google", "google-cloud", "google-gla", "google-vertex", "bedrock", "xai"
    ]
    media_type: Name | None = None
    identifier: Name | None = None
    vendor_metadata: dict[str, Any] | None = None


class CachePart(_Checked):
    """A marker in a prompt: the provider caches the parts before it."""

    kind: Literal["cache-point"]
    ttl: Literal["5m", "1h"] = "5m"


class _OtherPart(_Checked, extra="ignore"):
    """A map of an unknown kind: validation always fails, with an error that lists the known kinds."""

    kind: PartKind


class Retries(_Checked):
    """Retries of tool calls and of invalid output: pydantic-ai's `AgentRetries`."""

    tools: Annotated[int, Field(ge=0, le=100)] | None = None
    output: Annotated[int, Field(ge=0, le=100)] | None = None


# The tags select the member of a union without trying each one, so a body is validated once, and its errors are those
# of the selected member. `_TAG` removes them from the JSON pointers of errors; hence the angle brackets.
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
        custom_error_message=f"must be text, or a map with a `kind`: {', '.join(get_args(PartKind))}",
    ),
]
# With `fail_fast`, an invalid list is reported with its first error only, instead of up to 10,000.
Prompt = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(max_length=10_000, fail_fast=True), Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
]
RetryBudget = Annotated[
    Annotated[int, Field(ge=0, le=100), Tag("<number>")] | Annotated[Retries, Tag("<map>")],
    Discriminator(_map_or("<number>")),
]


class ClientTool(_Checked):
    """Definition of a tool that the client executes."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    """JSON Schema of the arguments; its type is `object`."""
    returns: dict[str, Any] | None = None
    """JSON Schema of the result. Default: any result is accepted."""
    mode: Literal["live", "deferred"] = "live"
    approval: bool = False
    """Whether each call ends the run; a later run executes the call if it was approved."""
    timeout_ms: Annotated[int, Field(ge=1, le=2**53)] | None = None
    """Time limit of one call in milliseconds. Default: the time limit of the run."""
    sequential: bool = False
    """Whether no other tool may be executed at the same time."""


class AgentData(_Checked):
    """An agent as data, which the client defines. No part of it is imported or executed as code."""

    name: Name | None = None
    model: Name | None = None
    instructions: str | list[str] | None = None
    system_prompt: str | list[str] | None = None
    output_schema: dict[str, Any] | None = None
    output_mode: OutputMode = "tool"
    model_settings: dict[str, Any] | None = None
    retries: RetryBudget | None = None
    toolsets: Annotated[list[Name], Field(max_length=MAX_TOOLS)] | None = None
    """Names of registered toolsets that the agent may use."""


class RunRequest(_Checked):
    """Body of `run_sync`, `run` and `run_stream`."""

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
    """Body of `call_tool`."""

    tool: Name
    args: dict[str, Any] = Field(default_factory=dict[str, Any])
    agent: Name | None = None
    deps: Any = None


class ToolFault(_Checked):
    """The `error` of a `tool_result`: the client's tool failed."""

    message: str
    """Description of the error, for the model."""
    retry: bool = False
    """Whether the model may call the tool again with other arguments. Otherwise the call counts as failed."""


class ToolResult(_Checked):
    """Body of `tool_result`."""

    result: Any = None
    content: Prompt | None = None
    """Further content for the model, in addition to the result."""
    metadata: Any = None
    """Data that only the application sees, in the messages of the run."""
    error: ToolFault | None = None
    """Error of the tool, if it failed; all other keys must then be absent."""


class Steer(_Checked):
    """Body of `steer`."""

    content: Prompt
    priority: Literal["asap", "when_idle"] = "asap"


class DescribeRequest(_Checked):
    """Body of `describe`."""

    agent: Name | None = None


# --- validation --------------------------------------------------------------------------------------

_NIL_MEANS_ABSENT: Final = frozenset(
    ("agent", "prompt", "retries", "model_settings", "usage_limits", "tools", "content", "error")
)
"""Keys whose values are maps, or lists of maps, that the protocol defines: in these maps, nil also counts as absent.
In other values, such as `deps`, nil is kept."""
_TAG: Final = re.compile(r"<[^>]*>|\[key\]|(?:function-\w+|tagged-union|union|nullable)\[.*\]", re.DOTALL)
"""Matches the steps of pydantic's error locations that are not steps into the value: the member of a union, or the mark
of an invalid key."""
MAX_LISTED_ERRORS: Final = 1_000
"""Maximum number of errors in one body that are examined. A list of a million invalid parts has a million errors."""


def run_request(body: Mapping[str, Any]) -> RunRequest:
    """Validate the body of a run.

    Raises:
        RequestError: `invalid_request`; `details.errors` has a `{pointer, message}` for each of the first 20 errors.
    """
    request = checked(RunRequest, body)
    if request.prompt is None and not request.message_history:
        raise invalid([("/prompt", "is missing: give a prompt, or a message_history to continue")])
    if request.deferred_tool_results is not None and not request.message_history:
        raise invalid([("/message_history", "is missing: it must contain the calls that deferred_tool_results answer")])
    seen: set[str] = set()
    for index, tool in enumerate(request.tools or ()):
        if tool.name in seen:
            raise invalid([(f"/tools/{index}/name", f"duplicate tool name {tool.name!r}: rename one of the tools")])
        seen.add(tool.name)
    return request


def tool_result(body: Mapping[str, Any]) -> ToolResult:
    """Validate the body of a `tool_result`.

    Raises:
        RequestError: `invalid_request`.
    """
    answer = checked(ToolResult, body)
    if answer.error is not None and answer.model_fields_set != {"error"}:
        raise invalid([("/error", "must be the only key: a tool that failed has no result")])
    return answer


def checked(model: type[M], body: Mapping[str, Any]) -> M:
    """Validate a body with one of the models above.

    Raises:
        RequestError: `invalid_request`.
    """
    try:
        return model.model_validate(_without_nil(body))
    except ValidationError as error:
        raise from_validation(error) from None


def _without_nil(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body without the keys whose value is nil, also in the maps of `_NIL_MEANS_ABSENT`."""
    return {
        key: _without_inner_nil(value) if key in _NIL_MEANS_ABSENT else value
        for key, value in body.items()
        if value is not None
    }


def _without_inner_nil(value: Any) -> Any:
    if isinstance(value, dict):
        return _without_nil(value)
    return [_without_inner_nil(item) for item in value] if isinstance(value, list) else value


def invalid(faults: list[tuple[str, str]]) -> RequestError:
    """Return an `invalid_request` error.

    Args:
        faults: JSON pointer and message of each error. The message text shows the first, `details.errors` the first 20.
    """
    pointer, message = faults[0]
    more = f" (and {len(faults) - 1} more, in details.errors)" if len(faults) > 1 else ""
    details = {"errors": [{"pointer": pointer, "message": message} for pointer, message in faults[:20]]}
    return RequestError("invalid_request", f"{pointer or '/'}: {message}{more}", details)


def from_validation(error: ValidationError, place: str = "") -> RequestError:
    """Return an `invalid_request` error for a ValidationError of pydantic.

    Args:
        error: The error; its input is not repeated.
        place: JSON pointer of the validated value in the body. Default: the body itself.
    """
    if (count := error.error_count()) > MAX_LISTED_ERRORS:
        return invalid([(place, f"has {count} errors, which are too many to list (over {MAX_LISTED_ERRORS})")])
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return invalid([(place + located(fault["loc"]), _message(fault["type"], fault["msg"])) for fault in faults])


def pointer_of(steps: Iterable[int | str]) -> str:
    """Return the JSON pointer that consists of these keys and indexes."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def located(loc: Iterable[int | str]) -> str:
    """Return the JSON pointer of pydantic's location of an error, without the tags of unions."""
    return pointer_of(step for step in loc if not (isinstance(step, str) and _TAG.fullmatch(step)))


def _message(type: str, message: str) -> str:
    match type:
        case "extra_forbidden":
            return "is unknown: remove it or correct its spelling"
        case "missing":
            return "is missing"
        case _:
            return message[0].lower() + message[1:]
