"""pydantic-ai's output type for a client's schema, and pydantic's validators that enforce one.

pydantic-ai shows a schema to the model and does not check the answer by it; `axon_zmq.jsonschema` does.
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

NOT_FITTING: Final = "json_schema"
"""pydantic's type of error for a value that does not fit a schema; its context has `faults`."""


def arguments_validator(schema: CompiledSchema) -> SchemaValidator:
    """pydantic's validator of a tool's arguments: a map that fits the schema."""
    arguments = core_schema.dict_schema(core_schema.str_schema())
    return SchemaValidator(core_schema.no_info_after_validator_function(_raising(schema.faults), arguments))


def output_type(schema: dict[str, Any], mode: OutputMode, pointer: str) -> Any:
    """pydantic-ai's output type for a schema: what the model answers is checked by it, and retried.

    Args:
        schema: Any JSON Schema; pydantic-ai wraps one that is not for objects when it shows it to the model.
        mode: How the model is asked for the output.
        pointer: JSON pointer of the schema in the request.

    Raises:
        RequestError: `invalid_request` or `too_large`, as `load_schema`.
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
            raise PydanticCustomError(NOT_FITTING, "{text}", {"text": text, "faults": faults})
        return value

    return check


def _output(schema: CompiledSchema) -> type[Any]:
    is_object = schema.schema.get("type") == "object"
    inner = core_schema.dict_schema(core_schema.str_schema()) if is_object else core_schema.any_schema()

    class Output(dict[str, Any]):
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
    """A schema whose definitions pydantic puts into the `$defs` of the whole, as it does with its own.

    pydantic raises KeyError for a `$ref` that is not its own (pydantic issue 12145, 2.14), and pydantic-ai's
    `StructuredDict` refuses recursive schemas for that reason. So each definition is entered in pydantic's generator.
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
    """A title as a name that every provider takes."""
    return re.sub("[^A-Za-z0-9_-]+", "_", title).strip("_")[:64] or "Output"
