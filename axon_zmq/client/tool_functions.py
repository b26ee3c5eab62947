"""Typed functions as tools that the client executes for a model.

The signature of a function becomes the JSON Schema of its arguments, its docstring the description, and its return
annotation the schema of its result. pydantic converts and validates the arguments before each call.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from textwrap import dedent
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypedDict, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from axon_zmq.errors import RequestError
from axon_zmq.protocol.plain import strictly_plain
from axon_zmq.protocol.requests import ClientTool, checked, from_validation

if TYPE_CHECKING:
    from axon_zmq.protocol.values import Value

log = logging.getLogger(__name__)

InThread = Callable[[Callable[[], object]], Awaitable[object]]
"""Function that calls a blocking function in another thread and returns an awaitable of its result."""


class ToolErrorBody(TypedDict):
    """The `error` of a `tool_result`, for a tool call that failed."""

    message: str
    """Description of the error, for the model."""
    retry: bool
    """Whether the model may try again."""


class ToolResultBody(TypedDict, total=False):
    """Body of a `tool_result`: `result` with optional `content` and `metadata`, or only `error`."""

    result: Value
    content: Value
    metadata: Value
    error: ToolErrorBody


class ToolRetry(Exception):  # noqa: N818 -- not an error, but a message to the model
    """Exception that a tool raises to let the model try again; the model gets its message.

    It counts as one of the run's tool retries. After the last retry the run fails with `tool_failed`.
    """


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """Return value of a tool that has more than a result."""

    result: Any
    """Result for the model: a value of any type that pydantic can serialize."""
    content: Any = None
    """Further content for the model: text, or a list of parts as in a prompt. Default: None."""
    metadata: Any = None
    """Data that only the application sees, in the messages of the run. Default: None."""


class Tool:
    """A function of this process as a tool that a model may call.

    A plain function in the option `tools` is equivalent to a `Tool` with the default arguments.

    Every parameter of the function must accept an argument by name. `Annotated[…, Field(description=…)]`, or the
    `Args:` section of the docstring, describes a parameter for the model. A coroutine function runs on the client's
    event loop, and any other function in a thread, at most 32 at a time. The function may raise `ToolRetry` and may
    return a `ToolAnswer`.

    Args:
        function: The function that the client calls.
        name: Name of the tool for the model: 1 to 64 of the characters A-Z a-z 0-9 _ -. Default: the name of the
            function.
        description: Description of the tool for the model. Default: the first paragraph of the docstring.
        mode: `live`: the run waits for the answer. `deferred`: the run ends with the call, and a later run gets the
            result (see `deferred_results`); the function is never called. Default: `live`.
        approval: Whether the run ends with each call; a later run makes the call if it was approved. Default: False.
        timeout_ms: Time limit of one call in milliseconds. Default: the time limit of the run.
        sequential: Whether no other tool may be executed at the same time. Default: False.

    Raises:
        TypeError: The signature has no JSON Schema; the message gives the reason.
        RequestError: `invalid_request`: the name or `timeout_ms` is invalid.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *,
        name: str | None = None,
        description: str | None = None,
        mode: Literal["live", "deferred"] = "live",
        approval: bool = False,
        timeout_ms: int | None = None,
        sequential: bool = False,
    ) -> None:
        plain = _plain_function(function)
        self.name: str = name or _name(function)
        """Name of the tool for the model."""
        self.mode = mode
        """`live` or `deferred`."""
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(plain)
        document = inspect.getdoc(plain) or ""
        try:
            self._arguments: TypeAdapter[Any] = TypeAdapter(cast("Any", _collector(function, plain)))
            parameters = _parameters(self._arguments, document)
            self._result, returns = _returns(get_type_hints(plain, include_extras=True).get("return"))
        except (PydanticUserError, PydanticUndefinedAnnotation, NameError, KeyError, ValueError) as error:
            raise TypeError(f"the signature of tool {self.name!r} has no JSON Schema: {error}") from error
        more = {
            "description": description or _first_paragraph(document) or None,
            "parameters": parameters,
            "returns": returns,
            "mode": None if mode == "live" else mode,
            "approval": approval or None,
            "timeout_ms": timeout_ms,
            "sequential": sequential or None,
        }
        chosen = {key: value for key, value in more.items() if value is not None}
        self.definition: dict[str, Any] = {"name": self.name, **chosen}
        """Definition of the tool as a map, in the protocol's format."""
        _check(self.name, self.definition)

    def __repr__(self) -> str:
        return f"<Tool {self.name}, {self.mode}>"

    async def answer(self, args: Mapping[str, object], in_thread: InThread) -> ToolResultBody:
        """Call the function with the arguments of the model.

        Args:
            args: Arguments by name, not validated yet.
            in_thread: Calls a blocking function in another thread.

        Returns:
            Body of the `tool_result`. An exception of the function becomes an `error`.

        Raises:
            CancelledError: The task was cancelled, or the function raised this exception itself.
        """
        try:
            return await self._call(args, in_thread)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # also SystemExit, which would stop the event loop
            if not isinstance(error, ToolRetry):
                log.warning("tool %r raised %s", self.name, type(error).__name__, exc_info=True)
            return outcome_body(error)

    async def _call(self, args: Mapping[str, object], in_thread: InThread) -> ToolResultBody:
        try:
            positional, named = self._arguments.validate_python(dict(args))
        except ValidationError as error:
            return fault(f"invalid arguments: {_faults(error)}", retry=True)
        call = partial(self._function, *positional, **named)
        returned = call() if self._is_async else await in_thread(call)
        if inspect.isawaitable(returned):  # such as the coroutine that a lambda returns
            returned = await returned
        if isinstance(returned, ToolAnswer):
            return outcome_body(returned)
        return answer(self._result.dump_python(returned, by_alias=True, warnings=False))


def _plain_function(function: Callable[..., object]) -> Callable[..., object]:
    """Return the function or method that has the annotations and the docstring of a callable.

    Raises:
        TypeError: The object is not a function.
    """
    if isinstance(function, partial):
        return _plain_function(function.func)
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"invalid tool {function!r}: expected a function, a Tool, or a map with name and parameters")
    return function if inspect.isroutine(function) else function.__call__


def _name(function: Callable[..., object]) -> str:
    if isinstance(function, partial):
        return _name(function.func)
    return function.__name__ if inspect.isroutine(function) else type(function).__name__


def _collector(function: Callable[..., object], plain: Callable[..., object]) -> Callable[..., object]:
    """Return a stand-in for the function: it has the same signature and returns its arguments.

    pydantic calls it to validate the arguments on the event loop, before a thread is used for the call itself.
    """

    @wraps(plain)
    def collect(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
        return args, kwargs

    collect.__signature__ = inspect.signature(function)  # pyright: ignore[reportAttributeAccessIssue]
    return collect


def _check(name: str, definition: Mapping[str, object]) -> None:
    try:
        checked(ClientTool, definition)
    except RequestError as error:
        raise RequestError(error.error_type, f"tool {name!r}: {error.message}", error.details) from None


def _faults(error: ValidationError) -> str:
    faults = from_validation(error).details["errors"]
    return "; ".join(f"{fault['pointer'] or '/'}: {fault['message']}" for fault in faults)


# --- schemas ---------------------------------------------------------------------------------------


class _ShownSchema(GenerateJsonSchema):
    """Generates the schemas that models are shown.

    It omits titles, which only repeat names. In results, bytes and times have no JSON type, because they are sent as
    msgpack's own types instead of strings.
    """

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002
        return False

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        return self._native(super().bytes_schema(schema))

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        return self._native(super().datetime_schema(schema))

    def _native(self, made: JsonSchemaValue) -> JsonSchemaValue:
        return {"format": made["format"]} if self.mode == "serialization" else made


_ANYTHING: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def _parameters(arguments: TypeAdapter[object], document: str) -> dict[str, Any]:
    """Return the JSON Schema of a function's arguments, with the descriptions from its docstring.

    Raises:
        ValueError: A parameter has no name: it is positional-only or `*args`.
    """
    schema = arguments.json_schema(schema_generator=_ShownSchema)
    if schema["type"] != "object":
        raise ValueError("it has positional-only parameters or *args; give each parameter a name")
    for name, description in _documented_parameters(document).items():
        if name in schema["properties"]:
            schema["properties"][name].setdefault("description", description)
    return schema


def _returns(annotation: object) -> tuple[TypeAdapter[object], dict[str, Any] | None]:
    """Return the adapter that serializes the results of a tool, and their JSON Schema.

    The schema is None if the annotation has none, or allows any value.
    """
    if annotation in (None, NoneType, Any, ToolAnswer) or ToolAnswer in get_args(annotation):
        return _ANYTHING, None
    try:
        adapter: TypeAdapter[object] = TypeAdapter(cast("Any", annotation))
        schema = adapter.json_schema(mode="serialization", schema_generator=_ShownSchema)
    except PydanticUserError:
        return _ANYTHING, None
    return adapter, schema or None


# --- docstrings ------------------------------------------------------------------------------------

_ARGS: Final = re.compile(r"^Args:[ \t]*\n((?:[ \t]+\S.*\n?|[ \t]*\n)+)", re.MULTILINE)
_ARG: Final = re.compile(r"^(\w+)[ ]*(?:\([^)\n]*\))?:[ \t]*(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)


def _first_paragraph(document: str) -> str:
    return " ".join(document.split("\n\n")[0].split())


def _documented_parameters(document: str) -> dict[str, str]:
    """Return the descriptions in a Google-style `Args:` section by parameter."""
    section = _ARGS.search(document)
    return {name: " ".join(text.split()) for name, text in _ARG.findall(dedent(section[1]))} if section else {}


# --- answers ---------------------------------------------------------------------------------------


def answer(result: object, content: object = None, metadata: object = None) -> ToolResultBody:
    """Build the body of a `tool_result` from values of any type that pydantic can serialize.

    Raises:
        ValueError: A value cannot be sent as msgpack.
    """
    body = ToolResultBody(result=to_plain(result))
    if content is not None:
        body["content"] = to_plain(content)
    if metadata is not None:
        body["metadata"] = to_plain(metadata)
    return body


def fault(message: str, retry: bool = False) -> ToolResultBody:
    """Build the body of a `tool_result` for a call that failed."""
    # A lone surrogate cannot be encoded as UTF-8; it is replaced by `?`.
    return {"error": {"message": message.encode(errors="replace").decode(), "retry": retry}}


def outcome_body(result: object) -> ToolResultBody:
    """Build the body of a `tool_result` from the return value of a tool, or from the exception that it raised.

    Raises:
        ValueError: A value cannot be sent as msgpack.
    """
    match result:
        case ToolAnswer():
            return answer(result.result, result.content, result.metadata)
        case ToolRetry():
            return fault(_text(result) or type(result).__name__, retry=True)
        case BaseException():
            return fault(f"{type(result).__name__}: {_text(result)}".removesuffix(": "))
        case _:
            return answer(result)


def _text(error: BaseException) -> str:
    """Return the text of an exception, or an empty string if its `__str__` fails."""
    try:
        return f"{error}"
    except BaseException:  # not only Exception: pytest's outcomes, for example, are not derived from it
        return ""


def to_plain(value: object) -> Value:
    """Convert a value to types that msgpack can pack, as pydantic serializes it.

    Bytes, and times with a time zone, stay as they are, because msgpack has types for them.

    Raises:
        ValueError: The value cannot be converted.
    """
    return strictly_plain(_ANYTHING.dump_python(value, by_alias=True, warnings=False))


# --- the tools of a run ----------------------------------------------------------------------------

ToolLike = Callable[..., object] | Tool | Mapping[str, object]
"""Entry of the option `tools`: a function, a `Tool`, or the definition of a tool as a map.

The application itself must answer the calls of a tool that is a map."""


class Toolbox(NamedTuple):
    """Tools of one run."""

    definitions: list[dict[str, object]]
    """Definitions of all tools, as they are sent."""
    functions: dict[str, Tool]
    """Live tools with a function, by name; the client answers their calls."""

    @property
    def unanswered(self) -> list[str]:
        """Names of the live tools without a function; the application must answer their calls."""
        live = [str(tool["name"]) for tool in self.definitions if tool.get("mode", "live") == "live"]
        return [name for name in live if name not in self.functions]


def toolbox(tools: Iterable[ToolLike]) -> Toolbox:
    """Read the option `tools` of a run.

    Raises:
        TypeError: An entry is not a tool, or its signature has no JSON Schema.
        RequestError: `invalid_request`: the definition of a tool is invalid.
    """
    if isinstance(tools, str | Mapping) or callable(tools):
        raise TypeError(f"invalid tools of type {type(tools).__name__}: expected a list of functions, Tools and maps")
    box = Toolbox([], {})
    for given in tools:
        tool = given if isinstance(given, Tool | Mapping) else Tool(given)
        if isinstance(tool, Mapping):
            _check(str(tool.get("name")), dict(tool))
            box.definitions.append(dict(tool))
        else:
            box.definitions.append(tool.definition)
            if tool.mode == "live":
                box.functions[tool.name] = tool
    return box
