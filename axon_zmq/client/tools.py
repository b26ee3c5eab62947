"""Tools that live in the client: plain typed functions, what the model is shown of them, and their answers.

A function's signature becomes the JSON Schema of its arguments, its docstring the description, its
return annotation the schema of its result. Arguments are converted and checked by pydantic before it is
called.
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
from typing import Any, Final, Literal, NamedTuple, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from axon_zmq.errors import RequestError
from axon_zmq.protocol.plain import strictly_plain
from axon_zmq.protocol.requests import ClientTool, checked, from_validation

log = logging.getLogger(__name__)

Body = dict[str, Any]
"""Of a `tool_result`: `{result}`, `{result, content?, metadata?}` or `{error: {message, retry}}`."""
InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls a blocking function elsewhere."""


class ToolRetry(Exception):  # noqa: N818 -- it is no error, but a word to the model
    """Raised by a tool: the model is told the message, and may try again."""


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool may return in place of its bare result."""

    result: Any
    content: Any = None
    """More for the model, beside the result: text, or a list of parts as in a prompt."""
    metadata: Any = None
    """For the application alone: it comes back in the run's messages."""


class Tool:
    """A function of this process that a model may call.

    A plain function in `tools=[…]` is a `Tool` with the defaults. Its parameters need names; `Annotated[…,
    Field(description=…)]` or an `Args:` section of the docstring tells the model what they are. It may be
    `async`; others run in threads. It may raise `ToolRetry` and return a `ToolAnswer`.

    Args:
        function: What is called.
        name: As the model sees it; the function's own where left out.
        description: For the model; the docstring's first paragraph where left out.
        mode: `live`: the run waits for the answer. `deferred`: the run ends with the call, and a later run
            brings the result (`deferred_results`); the function is then never called.
        approval: The run ends with the call; it is made by a later run that approves it.
        timeout_ms: What an answer may take, in milliseconds.
        sequential: Never called while another tool runs.

    Raises:
        TypeError: Its signature cannot be shown to a model; the message says why.
        RequestError: `invalid_request`: a name or a number that no tool may have.
    """

    def __init__(
        self,
        function: Callable[..., Any],
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
        """As a run's `tools` has it."""
        _check(self.name, self.definition)

    def __repr__(self) -> str:
        return f"<Tool {self.name}, {self.mode}>"

    async def answer(self, args: Mapping[str, Any], in_thread: InThread) -> Body:
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

    async def _call(self, args: Mapping[str, Any], in_thread: InThread) -> Body:
        try:
            positional, named = self._arguments.validate_python(dict(args))
        except ValidationError as error:
            return fault(f"the arguments do not fit: {_faults(error)}", retry=True)
        call = partial(self._function, *positional, **named)
        returned = await (call() if self._is_async else in_thread(call))
        if inspect.isawaitable(returned):
            returned = await returned
        if isinstance(returned, ToolAnswer):
            return given(returned)
        return answer(self._result.dump_python(returned, by_alias=True, warnings=False))


def _plain_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function or method that has the annotations and the docstring."""
    if isinstance(function, partial):
        return _plain_function(function.func)
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"{function!r} is no tool: give a function, a Tool, or a map with name and parameters")
    return function if inspect.isroutine(function) else function.__call__


def _name(function: Callable[..., Any]) -> str:
    if isinstance(function, partial):
        return _name(function.func)
    return function.__name__ if inspect.isroutine(function) else type(function).__name__


def _collector(function: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """What pydantic calls in the function's place: it gets the checked arguments, and gives them back."""

    @wraps(plain)
    def collect(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    collect.__signature__ = inspect.signature(function)  # pyright: ignore[reportAttributeAccessIssue]
    return collect


def _check(name: str, definition: dict[str, Any]) -> None:
    try:
        checked(ClientTool, definition)
    except RequestError as error:
        raise RequestError(error.error_type, f"tool {name!r}: {error.message}", error.details) from None


def _faults(error: ValidationError) -> str:
    faults = from_validation(error).details["errors"]
    return "; ".join(f"{fault['pointer'] or '/'}: {fault['message']}" for fault in faults)


# --- schemas ---------------------------------------------------------------------------------------


class _ShownSchema(GenerateJsonSchema):
    """Without titles that only repeat names; bytes and times are of no JSON type, since they stay as they are."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        return self._native(super().bytes_schema(schema))

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        return self._native(super().datetime_schema(schema))

    def _native(self, made: JsonSchemaValue) -> JsonSchemaValue:
        return {"format": made["format"]} if self.mode == "serialization" else made


_ANYTHING: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def _parameters(arguments: TypeAdapter[Any], document: str) -> dict[str, Any]:
    """The JSON Schema of a function's arguments, with what its docstring says of each."""
    schema = arguments.json_schema(schema_generator=_ShownSchema)
    if schema["type"] != "object":
        raise ValueError("it takes positional arguments only, give each parameter a name")
    for name, told in _told_parameters(document).items():
        if name in schema["properties"]:
            schema["properties"][name].setdefault("description", told)
    return schema


def _returns(annotation: Any) -> tuple[TypeAdapter[Any], dict[str, Any] | None]:
    """What dumps a tool's results, and their schema, where the annotation has one that can be sent."""
    if annotation in (None, NoneType, Any, ToolAnswer) or ToolAnswer in get_args(annotation):
        return _ANYTHING, None
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
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


def answer(result: Any, content: Any = None, metadata: Any = None) -> Body:
    """The body of a `tool_result`, from values of any type that pydantic can dump."""
    more = {"content": content, "metadata": metadata}
    return {"result": to_plain(result), **{key: to_plain(value) for key, value in more.items() if value is not None}}


def fault(message: str, retry: bool = False) -> Body:
    """The body of a `tool_result` that says why there is none."""
    return {"error": {"message": message.encode(errors="replace").decode(), "retry": retry}}


def given(result: Any) -> Body:
    """The body of a `tool_result` for whatever a tool may return, or an exception that it may raise."""
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
    """What an exception says; empty where its own `__str__` fails."""
    try:
        return f"{error}"
    except BaseException:  # pytest's own are no Exceptions
        return ""


def to_plain(value: Any) -> Any:
    """A value as msgpack takes it: pydantic's dump, where bytes and times with a zone stay what they are.

    Raises:
        ValueError: It has no plain form.
    """
    return strictly_plain(_ANYTHING.dump_python(value, by_alias=True, warnings=False))


# --- what a run takes ------------------------------------------------------------------------------

ToolLike = Callable[..., Any] | Tool | Mapping[str, Any]
"""A function, a `Tool`, or a tool's definition as a map: the application itself answers its calls."""


class Toolbox(NamedTuple):
    """The tools of one run."""

    definitions: list[dict[str, Any]]
    functions: dict[str, Tool]
    """Those that this process runs by itself."""

    @property
    def unanswered(self) -> list[str]:
        """Live tools without a function."""
        live = [tool["name"] for tool in self.definitions if tool.get("mode", "live") == "live"]
        return [name for name in live if name not in self.functions]


def toolbox(tools: Iterable[ToolLike]) -> Toolbox:
    """Read `tools=[…]`.

    Raises:
        TypeError: One is no tool, or has a signature that cannot be shown to a model.
        RequestError: `invalid_request`: a name that no tool may have.
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
