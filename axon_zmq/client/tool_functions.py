"""Tools that the client executes: typed functions, the definitions that the model sees, and their answers.

A function's signature becomes the JSON Schema of its arguments, its docstring the description, and its
return annotation the schema of its result. pydantic converts and checks the arguments before the call.
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
"""Calls a blocking function in another thread."""


class ToolErrorBody(TypedDict):
    """Why a tool has no result."""

    message: str
    retry: bool
    """Whether the model may try again."""


class ToolResultBody(TypedDict, total=False):
    """The body of a `tool_result`: `result`, with `content` and `metadata` if there are any; or `error` alone."""

    result: Value
    content: Value
    metadata: Value
    error: ToolErrorBody


class ToolRetry(Exception):  # noqa: N818 -- not an error, but a message to the model
    """Raised by a tool: the model gets the message, and may try again."""


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool may return instead of its bare result."""

    result: Any
    content: Any = None
    """More for the model, in addition to the result: text, or a list of parts as in a prompt."""
    metadata: Any = None
    """For the application only: it is returned in the run's messages."""


class Tool:
    """A function of this process that a model may call.

    A plain function in `tools=[…]` is a `Tool` with the defaults. Its parameters need names; `Annotated[…,
    Field(description=…)]` or an `Args:` section of the docstring tells the model what they are. It may be
    `async`; others run in threads. It may raise `ToolRetry` and return a `ToolAnswer`.

    Args:
        function: The function to call.
        name: The name that the model sees. Default: the name of the function.
        description: For the model. Default: the first paragraph of the docstring.
        mode: `live`: the run waits for the answer. `deferred`: the run ends with the call, and a later run
            brings the result (`deferred_results`); the function is then never called.
        approval: The run ends with the call, which a later run makes if it is approved.
        timeout_ms: Milliseconds that an answer may take. Default: the time of the run.
        sequential: Whether it must not be called while another tool is executed.

    Raises:
        TypeError: The signature has no JSON Schema; the message says why.
        RequestError: `invalid_request`: the name or a number is invalid for a tool.
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
        self.mode = mode
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(plain)
        document = inspect.getdoc(plain) or ""
        try:
            self._arguments: TypeAdapter[Any] = TypeAdapter(cast("Any", _collector(function, plain)))
            parameters = _parameters(self._arguments, document)
            self._result, returns = _returns(get_type_hints(plain, include_extras=True).get("return"))
        except (PydanticUserError, PydanticUndefinedAnnotation, NameError, KeyError, ValueError) as error:
            raise TypeError(f"tool {self.name!r} has a signature without a schema: {error}") from error
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
        """The tool as a map, in the format of a run's `tools`."""
        _check(self.name, self.definition)

    def __repr__(self) -> str:
        return f"<Tool {self.name}, {self.mode}>"

    async def answer(self, args: Mapping[str, object], in_thread: InThread) -> ToolResultBody:
        """Call the function with a model's arguments; the body of the `tool_result`, whatever is raised.

        Raises:
            CancelledError: The task was cancelled, or the function raised it.
        """
        try:
            return await self._call(args, in_thread)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit would end the loop
            if not isinstance(error, ToolRetry):
                log.warning("tool %r raised %s", self.name, type(error).__name__, exc_info=True)
            return given(error)

    async def _call(self, args: Mapping[str, object], in_thread: InThread) -> ToolResultBody:
        try:
            positional, named = self._arguments.validate_python(dict(args))
        except ValidationError as error:
            return fault(f"the arguments do not fit: {_faults(error)}", retry=True)
        call = partial(self._function, *positional, **named)
        returned = call() if self._is_async else await in_thread(call)
        if inspect.isawaitable(returned):
            returned = await returned
        if isinstance(returned, ToolAnswer):
            return given(returned)
        return answer(self._result.dump_python(returned, by_alias=True, warnings=False))


def _plain_function(function: Callable[..., object]) -> Callable[..., object]:
    """The function or method that has the annotations and the docstring."""
    if isinstance(function, partial):
        return _plain_function(function.func)
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"{function!r} is not a tool: pass a function, a Tool, or a map with name and parameters")
    return function if inspect.isroutine(function) else function.__call__


def _name(function: Callable[..., object]) -> str:
    if isinstance(function, partial):
        return _name(function.func)
    return function.__name__ if inspect.isroutine(function) else type(function).__name__


def _collector(function: Callable[..., object], plain: Callable[..., object]) -> Callable[..., object]:
    """What pydantic calls instead of the function: it returns the checked arguments that it gets."""

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
    """Without titles that only repeat names; bytes and times have no JSON type, because msgpack has its own."""

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
    """The JSON Schema of a function's arguments, with their descriptions from its docstring."""
    schema = arguments.json_schema(schema_generator=_ShownSchema)
    if schema["type"] != "object":
        raise ValueError("it takes positional arguments only; give each parameter a name")
    for name, told in _told_parameters(document).items():
        if name in schema["properties"]:
            schema["properties"][name].setdefault("description", told)
    return schema


def _returns(annotation: object) -> tuple[TypeAdapter[object], dict[str, Any] | None]:
    """The adapter that dumps a tool's results, and their schema if the annotation has one that can be sent."""
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


def _told_parameters(document: str) -> dict[str, str]:
    """What a Google-style `Args:` section says, by parameter."""
    section = _ARGS.search(document)
    return {name: " ".join(told.split()) for name, told in _ARG.findall(dedent(section[1]))} if section else {}


# --- answers ---------------------------------------------------------------------------------------


def answer(result: object, content: object = None, metadata: object = None) -> ToolResultBody:
    """The body of a `tool_result`, from values of any type that pydantic can dump."""
    body = ToolResultBody(result=to_plain(result))
    if content is not None:
        body["content"] = to_plain(content)
    if metadata is not None:
        body["metadata"] = to_plain(metadata)
    return body


def fault(message: str, retry: bool = False) -> ToolResultBody:
    """The body of a `tool_result` that says why there is no result."""
    return {"error": {"message": message.encode(errors="replace").decode(), "retry": retry}}


def given(result: object) -> ToolResultBody:
    """The body of a `tool_result` for anything that a tool may return, or for an exception that it may raise."""
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
    """The text of an exception; empty if its `__str__` fails."""
    try:
        return f"{error}"
    except BaseException:  # pytest's own are not derived from Exception
        return ""


def to_plain(value: object) -> Value:
    """A value that msgpack can pack: pydantic's dump, in which bytes and times with a zone are unchanged.

    Raises:
        ValueError: The value has no such form.
    """
    return strictly_plain(_ANYTHING.dump_python(value, by_alias=True, warnings=False))


# --- the tools of a run ----------------------------------------------------------------------------

ToolLike = Callable[..., object] | Tool | Mapping[str, object]
"""A function, a `Tool`, or a tool's definition as a map, whose calls the application answers itself."""


class Toolbox(NamedTuple):
    """The tools of one run."""

    definitions: list[dict[str, object]]
    functions: dict[str, Tool]
    """Those that the client executes on its own."""

    @property
    def unanswered(self) -> list[str]:
        """Names of live tools without a function."""
        live = [str(tool["name"]) for tool in self.definitions if tool.get("mode", "live") == "live"]
        return [name for name in live if name not in self.functions]


def toolbox(tools: Iterable[ToolLike]) -> Toolbox:
    """Read `tools=[…]`.

    Raises:
        TypeError: One is not a tool, or has a signature without a JSON Schema.
        RequestError: `invalid_request`: a name is invalid for a tool.
    """
    if isinstance(tools, str | Mapping) or callable(tools):
        raise TypeError(f"tools must be a list of functions, Tools and maps, not {type(tools).__name__}")
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
