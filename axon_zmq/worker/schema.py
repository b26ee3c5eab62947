"""JSON Schema, enforced: what does not fit goes back to who made it, with path and reason.

pydantic-ai shows a schema to the model and takes what comes back on trust; `judging` is the judge here. A
schema may be hostile, so reading all of a request has one budget.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_ai import NativeOutput, PromptedOutput, ToolOutput
from pydantic_core import CoreSchema, PydanticCustomError, SchemaError, SchemaValidator, core_schema

from axon_zmq.errors import RequestError
from axon_zmq.protocol import limits
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.protocol.requests import OutputMode, invalid, located
from axon_zmq.worker.judging import Fault, brief, faults_by, regex

_REMEMBERED_SIZE: Final = 64 * limits.KIB
"""Bytes of a schema that is remembered, its references written out."""
_REMEMBERED_BYTES: Final = 2 * limits.MIB
"""Bytes of all that are: the tools of some dozen agents."""
NOT_FITTING: Final = "json_schema"
"""pydantic's type of error for what a schema refuses; its context has `faults`."""
_MOST_NODES: Final = 20_000
"""Values in a request's schemas with their references written out: they can multiply."""
_MOST_BYTES: Final = 4 * limits.MAX_SCHEMA
"""Bytes of a request's schemas, and of the copies that references make."""
_MOST_PATTERNS: Final = 100
"""Different patterns in one schema."""
_LONGEST_PATTERN: Final = 1000
"""Characters of one pattern."""
_REPEATED: Final = 300
"""How often a pattern must fit into what Rust's regex compiles: bounds it to about 1000 states."""
_MOST_UNEVALUATED: Final = 8
"""Schemas with `unevaluated…` inside one another: each doubles the work."""
_SCHEMAS: Final = frozenset(
    (
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    )
)
"""Keywords whose value is a schema."""
_LISTS_OF_SCHEMAS: Final = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
"""Keywords whose value is a list of schemas."""
_MAPS_OF_SCHEMAS: Final = frozenset(("properties", "patternProperties", "dependentSchemas"))
"""Keywords whose value maps names of the author's own to schemas."""
_WRITTEN_OUT: Final = frozenset(("$ref", "$defs", "definitions", "$schema", "$id", "$anchor", "$dynamicAnchor"))
"""Keywords without meaning once the references are written out."""
_REMARKS: Final = frozenset(
    ("$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly")
)
"""Keywords that judge nothing, and may replace those of what is referred to."""
_ATOM: Final = re.compile(r"\\[pPxuU]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\.", re.DOTALL)
"""What stands for one character in a pattern."""


class Enforced(NamedTuple):
    """A client's schema, ready to judge values."""

    schema: dict[str, Any]
    """With its references written out, as models are shown it."""
    faults: Callable[[Any], list[Fault]]
    """What is wrong with a value; empty where it fits."""


@dataclass(slots=True)
class Budget:
    """What the schemas of one request may still take together."""

    nodes: int = _MOST_NODES
    bytes: int = _MOST_BYTES

    def spend(self, nodes: int, size: int, pointer: str) -> None:
        """Take from it, for the schema at `pointer`.

        Raises:
            RequestError: `invalid_request`, where it is used up.
        """
        self.nodes -= nodes
        self.bytes -= size
        if self.nodes < 0 or self.bytes < 0:
            most = f"{_MOST_NODES} values" if self.nodes < 0 else f"{_MOST_BYTES} bytes"
            what = f"the request's schemas up to here have over {most} when references are written out"
            raise invalid([(pointer, f"{what}: make them smaller, or send fewer")])


def enforced(schema: dict[str, Any], pointer: str, budget: Budget | None = None) -> Enforced:
    """Check a client's schema, which stands at `pointer`, and prepare it.

    The usual ones are remembered, since clients send the same tools with each request and reading a
    schema takes a millisecond.

    Args:
        schema: Any JSON Schema.
        pointer: Where it stands in the request.
        budget: What the request's schemas may still take; None where this is its only one.

    Raises:
        RequestError: `invalid_request` or `too_large`, as `self_contained`.
    """
    budget = budget or Budget()
    packed = pack(schema)
    if (known := _memory.get(packed)) is not None:
        budget.spend(known.nodes, known.bytes, pointer)
        return known.judge
    before = Budget(budget.nodes, budget.bytes)
    written = self_contained(unpack(packed, "the schema"), pointer, budget)
    judge = Enforced(written, faults_by(written))
    _memory.put(packed, _Known(judge, before.nodes - budget.nodes, before.bytes - budget.bytes))
    return judge


class _Known(NamedTuple):
    """A schema that was read, and what it takes from a request's budget."""

    judge: Enforced
    nodes: int
    bytes: int


class _Memory:
    """The schemas that were read last, by their packed text. Threads share it."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, tuple[_Known, int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, packed: bytes) -> _Known | None:
        with self._lock:
            if packed not in self._known:
                return None
            self._known.move_to_end(packed)
            return self._known[packed][0]

    def put(self, packed: bytes, known: _Known) -> None:
        size = len(packed) + len(pack(known.judge.schema))
        if size > _REMEMBERED_SIZE:
            return
        with self._lock:
            if packed not in self._known:
                self._known[packed] = known, size
                self._bytes += size
            while self._bytes > _REMEMBERED_BYTES:
                self._bytes -= self._known.popitem(last=False)[1][1]


_memory = _Memory()


def validator(judge: Enforced) -> SchemaValidator:
    """pydantic's validator of a tool's arguments, a map that the schema judges."""
    arguments = core_schema.dict_schema(core_schema.str_schema())
    return SchemaValidator(core_schema.no_info_after_validator_function(_raising(judge.faults), arguments))


def output_type(schema: dict[str, Any], mode: OutputMode, pointer: str) -> Any:
    """pydantic-ai's output type for a schema: what the model answers is checked against it, and retried.

    Args:
        schema: Any JSON Schema; what is no object is wrapped for the model by pydantic-ai.
        mode: How the model is asked for it.
        pointer: Where the schema stands in the request.

    Raises:
        RequestError: `invalid_request` or `too_large`, as `self_contained`.
    """
    made = _output(enforced(schema, pointer))
    match mode:
        case "native":
            return NativeOutput(made, name=made.__name__)
        case "prompted":
            return PromptedOutput(made)
        case "tool":
            return ToolOutput(made)


def self_contained(schema: dict[str, Any], pointer: str, budget: Budget | None = None) -> dict[str, Any]:
    """Check a client's schema, which stands at `pointer`, and write its references out.

    Nothing outside the schema is ever looked up: neither by the validator nor by a provider that would
    not follow references anyway.

    Raises:
        RequestError: `too_large`; or `invalid_request`, where it is no schema, is nested too deep, is
            recursive, refers to something that is not in it, or is more than the budget allows.
    """
    budget = budget or Budget()
    if (size := len(pack(schema))) > limits.MAX_SCHEMA:
        raise RequestError("too_large", f"{pointer}: the schema has {size} bytes; at most {limits.MAX_SCHEMA}")
    if _deeper_than(schema, limits.MAX_NESTING):
        raise invalid([(pointer, f"the schema is nested more than {limits.MAX_NESTING} deep")])
    budget.spend(0, size, pointer)
    _check(schema, pointer)
    writer = _Writer(schema, pointer, budget)
    written = writer.write(schema, _Path())
    if writer.followed:
        _check(written, pointer)  # a reference may lead to what was no schema where it stood
    return written


def _check(schema: dict[str, Any], pointer: str) -> None:
    try:
        _checker().validate_python(schema)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        reason = fault["msg"].replace("Input should", f"{brief(fault['input'])} should")
        raise invalid([(pointer + located(fault["loc"]), f"is no JSON Schema: {reason}")]) from None


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [item for held in level for item in _items(held)]
        if not level:
            return False
    return True


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


class _Path(NamedTuple):
    """How the writer came to a schema."""

    depth: int = 0
    targets: tuple[int, ...] = ()
    unevaluated: int = 0


class _Writer:
    """Writes one schema's references out."""

    def __init__(self, root: dict[str, Any], pointer: str, budget: Budget) -> None:
        self.followed = False
        self._root = root
        self._pointer = pointer
        self._budget = budget
        self._patterns: set[str] = set()

    def write(self, part: Any, path: _Path) -> Any:
        """The schema without references; what is no schema is left as it is, for the check afterwards."""
        self._budget.spend(1, 0, self._pointer)
        if not isinstance(part, dict):
            return part
        here = self._step(part, path)
        plain = {key: self._value(key, value, here) for key, value in part.items() if key not in _WRITTEN_OUT}
        if "$dynamicRef" in part:
            raise self._invalid("uses $dynamicRef, which is not followed: use $ref")
        return self._joined(part["$ref"], plain, here) if "$ref" in part else plain

    def _step(self, part: dict[str, Any], path: _Path) -> _Path:
        if path.depth > limits.MAX_NESTING:
            raise self._invalid(f"is nested more than {limits.MAX_NESTING} deep when its references are written out")
        unevaluated = path.unevaluated + ("unevaluatedProperties" in part or "unevaluatedItems" in part)
        if unevaluated > _MOST_UNEVALUATED:
            raise self._invalid(f"has over {_MOST_UNEVALUATED} unevaluated… inside one another")
        return path._replace(depth=path.depth + 1, unevaluated=unevaluated)

    def _value(self, key: str, value: Any, path: _Path) -> Any:
        if key in _SCHEMAS:
            return self.write(value, path)
        if key in _LISTS_OF_SCHEMAS and isinstance(value, list):
            return [self.write(schema, path) for schema in value]
        if key in _MAPS_OF_SCHEMAS and isinstance(value, dict):
            self._copied(lambda: sum(len(name) for name in value), path)
            if key == "patternProperties":
                self._compile(value)
            return {name: self.write(schema, path) for name, schema in value.items()}
        self._budget.spend(1, 0, self._pointer)
        self._copied(lambda: len(pack(value)), path)
        if key == "pattern" and isinstance(value, str):
            self._compile([value])
        return value

    def _copied(self, size: Callable[[], int], path: _Path) -> None:
        """What stands where it stood was counted when the schema came; only a reference makes more of it."""
        if path.targets:
            self._budget.spend(0, size(), self._pointer)

    def _compile(self, patterns: Iterable[str]) -> None:
        for pattern in set(patterns) - self._patterns:
            self._patterns.add(pattern)
            if len(self._patterns) > _MOST_PATTERNS:
                raise self._invalid(f"has over {_MOST_PATTERNS} patterns")
            if reason := _unfit(pattern):
                raise self._invalid(f"has the pattern {pattern[:100]!r}, which is not supported: {reason}")

    def _joined(self, ref: Any, plain: dict[str, Any], path: _Path) -> dict[str, Any]:
        found = self._named(ref)
        if id(found) in path.targets:
            raise self._invalid(f"is recursive through {ref!r}, which a model cannot be shown")
        self.followed = True
        target = self.write(found, path._replace(targets=(*path.targets, id(found))))
        if plain.keys() <= _REMARKS:
            return {**target, **plain}
        kind = {"type": target["type"]} if "type" in target else {}
        return {**kind, **plain, "allOf": [target, {"allOf": plain["allOf"]}] if "allOf" in plain else [target]}

    def _named(self, ref: Any) -> dict[str, Any]:
        if not isinstance(ref, str) or (ref != "#" and not ref.startswith("#/")):
            raise self._invalid(f"refers to {ref!r}: only references into the schema itself (#/…) are followed")
        found: Any = self._root
        for step in unquote(ref).split("/")[1:]:
            found = _member(found, step.replace("~1", "/").replace("~0", "~"))
        if isinstance(found, bool):
            return {} if found else {"not": {}}
        if not isinstance(found, dict):
            raise self._invalid(f"refers to {ref!r}, which is not in it")
        return found

    def _invalid(self, what: str) -> RequestError:
        return invalid([(self._pointer, f"the schema {what}")])


def _member(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and len(step) < 9 and re.fullmatch("0|[1-9][0-9]*", step) and int(step) < len(value):
        return value[int(step)]
    return None


def _unfit(pattern: str) -> str:
    """Why a pattern cannot be run in bounded time; empty where it can."""
    if len(pattern) > _LONGEST_PATTERN:
        return f"it has over {_LONGEST_PATTERN} characters"
    try:
        regex(pattern)
    except SchemaError as error:
        return str(error).splitlines()[-1].strip().removeprefix("error: ")
    try:
        regex.__wrapped__(f"(?:(?:{_ATOM.sub('a', pattern)}\n)\n){{{_REPEATED}}}")
    except SchemaError:
        return "it repeats too much (for a length, use maxLength)"
    return ""


@cache
def _checker() -> SchemaValidator:
    """Judges schemas, as draft 2020-12's schema of schemas does; jsonschema would take a hundred times as long."""
    schema = core_schema.definition_reference_schema("schema")
    fields = {key: core_schema.typed_dict_field(kind, required=False) for key, kind in _kinds(schema).items()}
    whole = core_schema.typed_dict_schema(fields, extra_behavior="ignore", strict=True)
    either: dict[Any, CoreSchema] = {"<bool>": core_schema.bool_schema(strict=True), "<map>": whole}
    made = core_schema.tagged_union_schema(
        either,
        lambda value: "<bool>" if isinstance(value, bool) else "<map>",
        ref="schema",
    )
    return SchemaValidator(core_schema.definitions_schema(schema, [made]))


def _kinds(schema: CoreSchema) -> dict[str, CoreSchema]:
    """What each keyword's value must be."""
    text, flag = core_schema.str_schema(strict=True), core_schema.bool_schema(strict=True)
    number = core_schema.float_schema(strict=True)
    count = core_schema.float_schema(strict=True, ge=0, multiple_of=1)
    texts = _different(core_schema.list_schema(text, strict=True, fail_fast=True))
    kind = core_schema.literal_schema(["array", "boolean", "integer", "null", "number", "object", "string"])
    kinds = _different(core_schema.list_schema(kind, strict=True, min_length=1, fail_fast=True))
    anchor = core_schema.str_schema(strict=True, pattern="^[A-Za-z_][-A-Za-z0-9._]*$")
    schemas = core_schema.list_schema(schema, strict=True, min_length=1, fail_fast=True)
    return {
        **dict.fromkeys(_SCHEMAS, schema),
        **dict.fromkeys(_LISTS_OF_SCHEMAS, schemas),
        **dict.fromkeys((*_MAPS_OF_SCHEMAS, "$defs", "definitions"), _map_of(schema)),
        **dict.fromkeys(("maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"), number),
        **dict.fromkeys(("maxLength", "minLength", "maxItems", "minItems", "maxContains", "minContains"), count),
        **dict.fromkeys(("maxProperties", "minProperties"), count),
        **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), flag),
        **dict.fromkeys(("$comment", "description", "format", "pattern", "title"), text),
        **dict.fromkeys(("contentEncoding", "contentMediaType"), text),
        **dict.fromkeys(("$dynamicRef", "$recursiveRef", "$ref", "$schema"), text),
        **dict.fromkeys(("$anchor", "$dynamicAnchor", "$recursiveAnchor"), anchor),
        "$id": core_schema.str_schema(strict=True, pattern="^[^#]*#?$"),
        "$vocabulary": _map_of(flag),
        "dependencies": _map_of(_one_or_list(schema, texts)),
        "dependentRequired": _map_of(texts),
        "enum": core_schema.list_schema(strict=True),
        "examples": core_schema.list_schema(strict=True),
        "multipleOf": core_schema.float_schema(strict=True, gt=0),
        "required": texts,
        "type": _one_or_list(kind, kinds),
    }


def _map_of(kind: CoreSchema) -> CoreSchema:
    return core_schema.dict_schema(core_schema.str_schema(), kind, strict=True)


def _one_or_list(one: CoreSchema, several: CoreSchema) -> CoreSchema:
    tagged = {"<one>": one, "<list>": several}
    return core_schema.tagged_union_schema(tagged, lambda value: "<list>" if isinstance(value, list) else "<one>")


def _different(texts: CoreSchema) -> CoreSchema:
    def judge(given: list[str]) -> list[str]:
        if len(set(given)) < len(given):
            raise PydanticCustomError("unique", "the same text stands in it twice")
        return given

    return core_schema.no_info_after_validator_function(judge, texts)


def _raising(faults_of: Callable[[Any], list[Fault]]) -> Callable[[Any], Any]:
    def judge(value: Any) -> Any:
        if faults := faults_of(value):
            text = "; ".join(f"{pointer or '/'}: {reason}" for pointer, reason in faults)
            raise PydanticCustomError(NOT_FITTING, "{text}", {"text": text, "faults": faults})
        return value

    return judge


def _output(judge: Enforced) -> type[Any]:
    is_object = judge.schema.get("type") == "object"
    inner = core_schema.dict_schema(core_schema.str_schema()) if is_object else core_schema.any_schema()

    class Output(dict[str, Any]):
        __is_model_like__ = is_object

        @classmethod
        def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
            return core_schema.no_info_after_validator_function(_raising(judge.faults), inner)

        @classmethod
        def __get_pydantic_json_schema__(cls, _core: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
            return judge.schema

    Output.__name__ = Output.__qualname__ = _name(judge.schema.get("title", ""))
    return Output


def _name(title: str) -> str:
    """A title as a name that every provider takes."""
    return re.sub("[^A-Za-z0-9_-]+", "_", title).strip("_")[:64] or "Output"
