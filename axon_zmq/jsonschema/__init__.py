"""JSON Schema from clients: checked, bounded, compiled by jsonschema-rs, and used to validate values.

Internal: may change in any release.

A schema and a value may both be hostile. This package holds only what the library does not do: bounds on the cost
of compiling and validating (`cost`), one self-contained form of a schema (`compiler`), values that JSON does not have,
and error messages with JSON pointers (`validator`). `cache` keeps the compiled form of recently used schemas.
"""

from axon_zmq.jsonschema.cache import load_schema
from axon_zmq.jsonschema.compiler import Budget, compile_schema, self_contained
from axon_zmq.jsonschema.validator import CompiledSchema, Fault

__all__ = ["Budget", "CompiledSchema", "Fault", "compile_schema", "load_schema", "self_contained"]
