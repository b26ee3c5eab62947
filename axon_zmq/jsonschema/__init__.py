"""JSON Schema from clients: checked, bounded, compiled by jsonschema-rs, and used to validate values.

Internal: may change in any release.

A schema and a value may both be hostile. This package holds only what the library does not do:

| guarantee | by |
|---|---|
| references are replaced, recursive definitions kept, remote references refused | `compiler._Writer`, `._Resolver` |
| a reference for the same value without end is refused | `compiler._recursive` |
| references cannot multiply a schema without bound | `compiler.Budget` |
| the time of a validation is bounded | `cost.weigh`, `cost.measure`, `validator._Forms._ordered` |
| the time and memory of patterns are bounded | `cost.states_of`, `RegexOptions` |
| the library cannot overflow its stack | `Weight.height`, `cost.MAX_DEPTH`, `compiler._MAX_DEFINITIONS` |
| the time of collecting errors is bounded | `validator._Forms.outline`, `validator._Search` |
| bytes, times, infinities, lone surrogates are judged | `validator._json_value`, `validator._tolerant` |
"""

from axon_zmq.jsonschema.cache import load_schema
from axon_zmq.jsonschema.compiler import Budget, compile_schema, self_contained
from axon_zmq.jsonschema.validator import CompiledSchema, Fault

__all__ = ["Budget", "CompiledSchema", "Fault", "compile_schema", "load_schema", "self_contained"]
