"""Validates values against JSON Schemas of clients, with bounded cost.

Internal: may change in any release.

The library jsonschema-rs compiles schemas and validates values. Both come from clients and may be hostile, so this
package adds the guarantees that the library does not give:

- References are replaced by their targets, except those to recursive definitions (`compiler._Writer`). Remote
  references are refused (`compiler._Resolver`).
- A schema that refers to itself for the same value, and so never ends, is refused (`compiler._recursive`).
- References cannot multiply the size of a schema without limit (`compiler.Budget`).
- The time of a validation is limited (`cost.weigh`, `cost.measure`, `validator._Forms._ordered`).
- The time and memory of patterns are limited (`cost.states_of`, `RegexOptions`).
- The library cannot overflow its stack (`Weight.height`, `cost.MAX_DEPTH`, `compiler._MAX_DEFINITIONS`).
- The time of collecting error messages is limited (`validator._Forms.outline`, `validator._Search`).
- Values that JSON does not have can be validated: bytes, times, infinities, lone surrogates (`validator._json_value`,
  `validator._string_condition`).
"""

from axon_zmq.jsonschema.cache import load_schema
from axon_zmq.jsonschema.compiler import Budget, compile_schema, self_contained
from axon_zmq.jsonschema.validator import CompiledSchema, Fault

__all__ = ["Budget", "CompiledSchema", "Fault", "compile_schema", "load_schema", "self_contained"]
