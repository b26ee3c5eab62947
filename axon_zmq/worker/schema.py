"""JSON Schema, enforced: output that does not fit goes back to the model with path and reason.

pydantic-ai shows a schema to the model and takes what comes back on trust; `jsonschema` (draft 2020-12)
is the judge here.
"""

from __future__ import annotations

from itertools import count
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_ai import NativeOutput, PromptedOutput, ToolOutput
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from axon_zmq import limits, wire
from axon_zmq.errors import RequestError
from axon_zmq.messages import OutputMode, invalid

_SHOWN: Final = 10
"""Faults of one answer that the model is told of."""
_MOST_NODES: Final = 20_000
"""Values in a schema with its references written out: they can multiply."""
_OF_SCHEMAS: Final = frozenset(("properties", "patternProperties", "dependentSchemas"))
"""Keywords whose value maps names of the author's own to schemas."""
_DATA: Final = frozenset(("const", "enum", "default", "examples"))
"""Keywords whose value is data, not schema."""
_WRITTEN_OUT: Final = frozenset(("$ref", "$defs", "definitions", "$schema", "$id"))
"""Keywords without meaning once the references are written out."""


def output_type(schema: dict[str, Any], mode: OutputMode, pointer: str) -> Any:
    """pydantic-ai's output type for a schema: what the model answers is checked against it, and retried.

    Args:
        schema: Any JSON Schema; what is no object is wrapped for the model by pydantic-ai.
        mode: How the model is asked for it.
        pointer: Where the schema stands in the request.

    Raises:
        RequestError: `invalid_request` or `too_large`, as `self_contained`.
    """
    made = _enforced(self_contained(schema, pointer))
    match mode:
        case "native":
            return NativeOutput(made)
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
    from jsonschema import Draft202012Validator, SchemaError  # here: a tenth of a worker's start

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise invalid([(pointer + _pointer(error.absolute_path), f"is no JSON Schema: {error.message}")]) from None
    return _Writer(schema, pointer).write(schema, ())


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


class _Writer:
    """Writes one schema's references out."""

    def __init__(self, root: dict[str, Any], pointer: str) -> None:
        self._root = root
        self._pointer = pointer
        self._nodes = count(1)

    def write(self, part: Any, through: tuple[str, ...]) -> Any:
        if next(self._nodes) > _MOST_NODES:
            raise self._invalid(f"has over {_MOST_NODES} values when its references are written out")
        if isinstance(part, list):
            return [self.write(item, through) for item in part]
        if not isinstance(part, dict):
            return part
        plain: dict[str, Any] = {}
        for key, value in part.items():
            if key in _OF_SCHEMAS:
                plain[key] = {name: self.write(schema, through) for name, schema in value.items()}
            elif key not in _WRITTEN_OUT:
                plain[key] = value if key in _DATA else self.write(value, through)
        if "$dynamicRef" in part:
            raise self._invalid("uses $dynamicRef, which is not followed: use $ref")
        ref = part.get("$ref")
        if ref is None:
            return plain
        if ref in through:
            raise self._invalid(f"is recursive through {ref!r}, which a model cannot be shown")
        return {**self.write(self._named(ref), (*through, ref)), **plain}

    def _named(self, ref: str) -> dict[str, Any]:
        if ref != "#" and not ref.startswith("#/"):
            raise self._invalid(f"refers to {ref!r}: only references into the schema itself (#/…) are followed")
        found: Any = self._root
        for step in ref.split("/")[1:]:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise self._invalid(f"refers to {ref!r}, which is not in it")
        return found

    def _invalid(self, what: str) -> RequestError:
        return invalid([(self._pointer, f"the schema {what}")])


def _enforced(schema: dict[str, Any]) -> type[Any]:
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(schema)
    is_object = schema.get("type") == "object"
    inner = core_schema.dict_schema(core_schema.str_schema()) if is_object else core_schema.any_schema()

    def judge(value: Any) -> Any:
        faults = [f"{_pointer(fault.absolute_path) or '/'}: {fault.message}" for fault in validator.iter_errors(value)]
        if faults:
            raise PydanticCustomError("json_schema", "{faults}", {"faults": "; ".join(sorted(faults)[:_SHOWN])})
        return value

    class Output(dict[str, Any]):
        __is_model_like__ = is_object

        @classmethod
        def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
            return core_schema.no_info_after_validator_function(judge, inner)

        @classmethod
        def __get_pydantic_json_schema__(cls, _core: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
            return schema

    Output.__name__ = Output.__qualname__ = str(schema.get("title") or "Output")
    return Output
