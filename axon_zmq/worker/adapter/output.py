"""Makes pydantic-ai output types and pydantic validators from the JSON Schemas of clients.

pydantic-ai passes a JSON Schema to the model but does not validate the answer with it (neither `StructuredDict` nor
`Tool.from_schema` does). The types and validators of this module validate with `axon_zmq.jsonschema`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import CoreRef, GenerateJsonSchema, JsonRef
from pydantic_ai import NativeOutput, PromptedOutput, ToolOutput
from pydantic_core import CoreSchema, PydanticCustomError, SchemaValidator, core_schema

from axon_zmq.jsonschema import CompiledSchema, Fault, load_schema
from axon_zmq.protocol.requests import OutputMode

SCHEMA_ERROR: Final = "json_schema"
"""Type of the pydantic error for a value that does not match a JSON Schema; its context has `faults`."""


def arguments_validator(schema: CompiledSchema) -> SchemaValidator:
    """Return a pydantic validator for the arguments of a tool: a map that matches the schema."""
    arguments = core_schema.dict_schema(core_schema.str_schema())
    return SchemaValidator(core_schema.no_info_after_validator_function(_raising(schema.faults), arguments))


def output_type(schema: dict[str, Any], mode: OutputMode, pointer: str) -> Any:
    """Return a pydantic-ai output type for a JSON Schema; an answer that does not match it is retried.

    Args:
        schema: Any JSON Schema. If it is not for objects, pydantic-ai wraps it in an object for the model.
        mode: How the model is asked for the output.
        pointer: JSON pointer of the schema in the request, for errors.

    Raises:
        RequestError: `invalid_request` or `too_large`, as `load_schema` raises it.
    """
    made = _output(load_schema(schema, pointer))
    match mode:
        case "native":
            return NativeOutput(made, name=made.__name__)
        case "prompted":
            return PromptedOutput(made)
        case "tool":
            return ToolOutput(made)


def _raising(faults_of: Callable[[Any], list[Fault]]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if faults := faults_of(value):
            text = "; ".join(f"{pointer or '/'}: {message}" for pointer, message in faults)
            raise PydanticCustomError(SCHEMA_ERROR, "{text}", {"text": text, "faults": faults})
        return value

    return check


def _output(schema: CompiledSchema) -> type[Any]:
    is_object = schema.schema.get("type") == "object"
    inner = core_schema.dict_schema(core_schema.str_schema()) if is_object else core_schema.any_schema()

    class Output(dict[str, Any]):
        # As in pydantic-ai's `StructuredDict`: without it, pydantic-ai wraps the output in an object for the model.
        __is_model_like__ = is_object

        @classmethod
        def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
            return core_schema.no_info_after_validator_function(_raising(schema.faults), inner)

        @classmethod
        def __get_pydantic_json_schema__(cls, _core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
            return _with_definitions(schema.schema, handler)

    Output.__name__ = Output.__qualname__ = _name(schema.schema.get("title", ""))
    return Output


def _with_definitions(schema: dict[str, Any], handler: GetJsonSchemaHandler) -> dict[str, Any]:
    """Register the schema's definitions in pydantic's generator, and return the schema without its `$defs`.

    pydantic raises KeyError for a `$ref` that it did not make itself (pydantic issue 12145, 2.14); pydantic-ai's
    `StructuredDict` refuses recursive schemas for this reason. Once they are registered, pydantic adds the definitions
    to the `$defs` of the whole schema, like its own.
    """
    generator: GenerateJsonSchema | None = getattr(handler, "generate_json_schema", None)
    if "$defs" not in schema or generator is None:
        return schema
    for name, definition in schema["$defs"].items():
        entry, _ = generator.get_cache_defs_ref_schema(CoreRef(name))
        generator.definitions[entry] = definition
        generator.json_to_defs_refs[JsonRef(f"#/$defs/{name}")] = entry
    return {keyword: rule for keyword, rule in schema.items() if keyword != "$defs"}


def _name(title: str) -> str:
    """Return the title as a name that every provider accepts."""
    return re.sub("[^A-Za-z0-9_-]+", "_", title).strip("_")[:64] or "Output"
