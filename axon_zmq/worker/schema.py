"""JSON Schema, enforced: what does not fit goes back to who made it, with path and reason.

pydantic-ai shows a schema to the model and takes what comes back on trust; `jsonschema` (draft 2020-12)
is the judge here. Schema and answer may both be hostile: patterns run on Rust's regex, which has no
look-around and takes linear time, and no keyword takes quadratic time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_ai import NativeOutput, PromptedOutput, ToolOutput
from pydantic_core import CoreSchema, PydanticCustomError, SchemaError, SchemaValidator, core_schema

from axon_zmq import limits, wire
from axon_zmq.errors import RequestError
from axon_zmq.messages import OutputMode, invalid

Fault = tuple[str, str]
"""JSON pointer and reason."""
_REMEMBERED_SIZE: Final = 8 * limits.KIB
"""Bytes of a schema that is remembered."""
_MOST_REMEMBERED: Final = 256
"""Schemas that are remembered: those of a few agents' tools."""
NOT_FITTING: Final = "json_schema"
"""pydantic's type of error for what a schema refuses; its context has `faults`."""
_SHOWN: Final = 10
"""Faults of one answer that the model is told of."""
_MOST_NODES: Final = 20_000
"""Values in a schema with its references written out: they can multiply."""
_MOST_BYTES: Final = 4 * limits.MAX_SCHEMA
"""Bytes of names and data in a schema with its references written out."""
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


def enforced(schema: dict[str, Any], pointer: str) -> Enforced:
    """Check a client's schema, which stands at `pointer`, and prepare it.

    The usual ones are remembered, since clients send the same tools with each request and reading a
    schema takes a millisecond.

    Raises:
        RequestError: `invalid_request` or `too_large`, as `self_contained`.
    """
    packed = wire.pack(schema)
    return (_remembered if len(packed) <= _REMEMBERED_SIZE else _read)(packed, pointer)


def _read(packed: bytes, pointer: str) -> Enforced:
    schema = self_contained(wire.unpack(packed, "the schema"), pointer)
    return Enforced(schema, _faults_by(schema))


_remembered = lru_cache(maxsize=_MOST_REMEMBERED)(_read)


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


def self_contained(schema: dict[str, Any], pointer: str) -> dict[str, Any]:
    """Check a client's schema, which stands at `pointer`, and write its references out.

    Nothing outside the schema is ever looked up: neither by the validator nor by a provider that would
    not follow references anyway.

    Raises:
        RequestError: `too_large`; or `invalid_request`, where it is no schema, is nested too deep, is
            recursive, or refers to something that is not in it.
    """
    if (size := len(wire.pack(schema))) > limits.MAX_SCHEMA:
        raise RequestError("too_large", f"{pointer}: the schema has {size} bytes; at most {limits.MAX_SCHEMA}")
    if _deeper_than(schema, limits.MAX_NESTING):
        raise invalid([(pointer, f"the schema is nested more than {limits.MAX_NESTING} deep")])
    _check(schema, pointer)
    writer = _Writer(schema, pointer)
    written = writer.write(schema, _Path())
    if writer.followed:
        _check(written, pointer)  # a reference may lead to what was no schema where it stood
    return written


def _check(schema: dict[str, Any], pointer: str) -> None:
    fault = next(_checker().iter_errors(schema), None)
    if fault is not None:
        raise invalid([(pointer + _pointer(fault.absolute_path), f"is no JSON Schema: {fault.message}")])


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


def _pointer(path: Any) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


class _Path(NamedTuple):
    """How the writer came to a schema."""

    depth: int = 0
    targets: tuple[int, ...] = ()
    unevaluated: int = 0


class _Writer:
    """Writes one schema's references out."""

    def __init__(self, root: dict[str, Any], pointer: str) -> None:
        self.followed = False
        self._root = root
        self._pointer = pointer
        self._nodes = 0
        self._bytes = 0
        self._patterns: set[str] = set()

    def write(self, part: Any, path: _Path) -> Any:
        """The schema without references; what is no schema is left as it is, for the check afterwards."""
        self._spend(1, 0)
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
            self._spend(0, sum(len(name) for name in value))
            if key == "patternProperties":
                self._compile(value)
            return {name: self.write(schema, path) for name, schema in value.items()}
        self._spend(1, len(wire.pack(value)))
        if key == "pattern" and isinstance(value, str):
            self._compile([value])
        return value

    def _spend(self, nodes: int, size: int) -> None:
        self._nodes += nodes
        self._bytes += size
        if self._nodes > _MOST_NODES:
            raise self._invalid(f"has over {_MOST_NODES} values when its references are written out")
        if self._bytes > _MOST_BYTES:
            raise self._invalid(f"has over {_MOST_BYTES} bytes when its references are written out")

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


@lru_cache(maxsize=256)
def _regex(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))


def _matches(pattern: str, text: str) -> bool:
    return _regex(pattern).isinstance_python(text)


def _unfit(pattern: str) -> str:
    """Why a pattern cannot be run in bounded time; empty where it can."""
    if len(pattern) > _LONGEST_PATTERN:
        return f"it has over {_LONGEST_PATTERN} characters"
    try:
        _regex(pattern)
    except SchemaError as error:
        return str(error).splitlines()[-1].strip().removeprefix("error: ")
    try:
        _regex.__wrapped__(f"(?:(?:{_ATOM.sub('a', pattern)}\n)\n){{{_REPEATED}}}")
    except SchemaError:
        return "it repeats too much (for a length, use maxLength)"
    return ""


@cache
def _judges() -> Any:
    """The class of validators, with our own keywords where jsonschema's are not bounded in time."""
    from jsonschema import Draft202012Validator  # here: a tenth of a worker's start
    from jsonschema.validators import extend

    own = {
        "additionalProperties": _additional_properties,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "unevaluatedItems": _unevaluated_items,
        "unevaluatedProperties": _unevaluated_properties,
        "uniqueItems": _unique_items,
    }
    return extend(Draft202012Validator, own)


@cache
def _checker() -> Any:
    """Judges schemas by the schema of schemas, whose parts lose the `$schema` that leads to jsonschema's own class."""
    from jsonschema_specifications import REGISTRY
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    specified: Any = REGISTRY
    parts: dict[str, Any] = {uri: dict(specified.contents(uri)) for uri in specified if "/2020-12/" in uri}
    for part in parts.values():
        del part["$schema"]
    registry: Any = Registry()
    registry = registry.with_resources((uri, DRAFT202012.create_resource(part)) for uri, part in parts.items())
    return _judges()(parts["https://json-schema.org/draft/2020-12/schema"], registry=registry)


def _fault(message: str) -> Any:
    from jsonschema import ValidationError

    return ValidationError(message)


def _pattern(_judge: Any, pattern: str, value: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(value, str) and not _matches(pattern, value):
        yield _fault(f"{value!r} does not match {pattern!r}")


def _pattern_properties(judge: Any, rules: dict[str, Any], value: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for pattern, rule in rules.items():
            for name in value:
                if _matches(pattern, name):
                    yield from judge.descend(value[name], rule, path=name, schema_path=pattern)


def _additional_properties(judge: Any, rule: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if isinstance(value, dict):
        named = _named_properties(value, schema)
        yield from _rest(judge, rule, value, [name for name in value if name not in named], "Additional properties")


def _unevaluated_properties(judge: Any, rule: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if isinstance(value, dict):
        judged = _judged_properties(judge, value, schema)
        yield from _rest(judge, rule, value, [name for name in value if name not in judged], "Unevaluated properties")


def _unevaluated_items(judge: Any, rule: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if isinstance(value, list):
        judged = _judged_items(judge, value, schema)
        yield from _rest(judge, rule, value, [n for n in range(len(value)) if n not in judged], "Unevaluated items")


def _rest(judge: Any, rule: Any, value: Any, keys: list[Any], what: str) -> Iterator[Any]:
    if keys and rule is False:
        names = ", ".join(repr(key) for key in keys)
        yield _fault(f"{what} are not allowed ({names} {'was' if len(keys) == 1 else 'were'} unexpected)")
        return
    for key in keys:
        yield from judge.descend(value[key], rule, path=key)


def _named_properties(value: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    return {name for name in value if name in properties or any(_matches(pattern, name) for pattern in patterns)}


def _judged_properties(judge: Any, value: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    """Names that other keywords than its own `unevaluatedProperties` judge, in a schema that the value fits."""
    if "additionalProperties" in schema:
        return set(value)
    judged = _named_properties(value, schema)
    for part in _in_force(judge, value, schema):
        judged |= set(value) if "unevaluatedProperties" in part else _judged_properties(judge, value, part)
    return judged


def _judged_items(judge: Any, value: list[Any], schema: dict[str, Any]) -> set[int]:
    """Indices that other keywords than its own `unevaluatedItems` judge, in a schema that the value fits."""
    if "items" in schema:
        return set(range(len(value)))
    judged = set(range(len(schema.get("prefixItems", ()))))
    if "contains" in schema:
        contained = judge.evolve(schema=schema["contains"])
        judged |= {n for n, item in enumerate(value) if contained.is_valid(item)}
    for part in _in_force(judge, value, schema):
        judged |= set(range(len(value))) if "unevaluatedItems" in part else _judged_items(judge, value, part)
    return judged


def _in_force(judge: Any, value: Any, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas inside a schema that judge the same value, and that it fits."""

    def fits(part: Any) -> bool:
        return judge.evolve(schema=part).is_valid(value)

    parts: list[Any] = [*schema.get("allOf", ())]
    parts += [part for key in ("anyOf", "oneOf") for part in schema.get(key, ()) if fits(part)]
    if isinstance(value, dict):
        parts += [part for name, part in schema.get("dependentSchemas", {}).items() if name in value]
    if "if" in schema:
        parts += [schema["if"], schema.get("then")] if fits(schema["if"]) else [schema.get("else")]
    return (part for part in parts if isinstance(part, dict))


def _unique_items(_judge: Any, unique: bool, value: Any, _schema: Any) -> Iterator[Any]:
    if unique and isinstance(value, list) and len({_identity(item) for item in value}) < len(value):
        yield _fault(f"{value!r} has non-unique elements")


def _identity(value: Any) -> Any:
    """The same for what JSON Schema calls equal: 1 and 1.0, but not true; numbers as text, whose hash none can aim."""
    if isinstance(value, dict):
        return "object", frozenset((name, _identity(item)) for name, item in value.items())
    if isinstance(value, list):
        return "array", tuple(_identity(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return "number", hex(value)
    return type(value).__name__, value if isinstance(value, str) else repr(value)


def _faults_by(schema: dict[str, Any]) -> Callable[[Any], list[Fault]]:
    from referencing import Registry

    judge = _judges()(schema, registry=Registry())

    def faults(value: Any) -> list[Fault]:
        found = ((_pointer(fault.absolute_path), fault.message) for fault in judge.iter_errors(value))
        return sorted(found)[:_SHOWN]

    return faults


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
