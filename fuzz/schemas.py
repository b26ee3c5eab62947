"""Harness of the bounds on JSON Schemas of clients: `axon_zmq/jsonschema`."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final

import msgpack

from axon_zmq.errors import RequestError
from axon_zmq.jsonschema import Budget, compile_schema
from axon_zmq.protocol.msgpack import pack
from fuzz import corpus
from fuzz.harness import Harness, Outcome, check, check_text
from fuzz.mutations import nested, unpacked
from fuzz.steps import Step

MAX_VALUES: Final = 20_000
"""Values in all schemas of a request after references were replaced, as documented in docs/protocol/framing.md."""
MAX_DEPTH: Final = 70
"""Nesting of a compiled schema: the documented 64, and what the writer adds around it."""
MAX_FAULTS: Final = 10


def examine(steps: Sequence[Step]) -> Outcome:
    """Compile the schema in the first frame of each step, and validate the values in the other frames with it."""
    outcome = Outcome()
    budget = Budget()  # all schemas of an input belong to one request
    total = 0
    for _, parts in steps:
        outcome.messages += 1
        schema = unpacked(parts[0]) if parts else None
        if not isinstance(schema, dict) or not all(isinstance(key, str) for key in schema):
            continue  # `requests` accepts only maps with string keys
        try:
            compiled = compile_schema(schema, "/output_schema", budget)
        except RequestError as error:
            check(error.error_type in ("invalid_request", "too_large"), f"unexpected {error.error_type}")
            check_text(error.message)
            outcome.signs.add(error.message[16:60])
            continue
        outcome.passed += 1
        outcome.signs.add(tuple(sorted(key for key in compiled.schema if isinstance(key, str))))
        nodes, depth = _size(compiled.schema)
        total += nodes
        check(total <= MAX_VALUES, f"schemas of {total} values with references replaced, the limit is {MAX_VALUES}")
        check(depth <= MAX_DEPTH * 3, f"a compiled schema is nested {depth} deep")
        for part in parts[1:5]:
            _validate(compiled, unpacked(part), outcome)
    return outcome


def _validate(compiled: Any, value: object, outcome: Outcome) -> None:
    faults = compiled.faults(value)
    check(len(faults) <= MAX_FAULTS, f"{len(faults)} faults are reported, the limit is {MAX_FAULTS}")
    for pointer, message in faults:
        check(pointer == "" or pointer.startswith("/"), f"invalid JSON pointer {pointer!r:.80}")
        check_text(message)
    outcome.signs.add(("faults", len(faults), faults[0][1][-20:] if faults else ""))


def _size(schema: Any) -> tuple[int, int]:
    """Return the number of values in a schema and their depth, counted as the documentation does: schemas and keys."""
    nodes = depth = 0
    level = [schema]
    while level and nodes <= 10 * MAX_VALUES:
        depth += 1
        dicts = [each for each in level if isinstance(each, dict)]
        nodes += len(dicts)
        level = [inner for each in dicts for inner in each.values()]
        level += [inner for each in level if isinstance(each, list) for inner in each]
    return nodes, depth


def doubling(levels: int) -> dict[str, Any]:
    """Return a schema of which each definition refers twice to the next one: 2^levels values."""
    two = [{"$ref": "#/$defs/%d"}, {"$ref": "#/$defs/%d"}]
    defs = {str(level): {"anyOf": [{"$ref": each["$ref"] % (level + 1)} for each in two]} for level in range(levels)}
    return {"$defs": {**defs, str(levels): {"type": "integer"}}, "$ref": "#/$defs/0"}


def more(rng: Random) -> Step:
    """Make a schema with values, most of which fit it."""
    schema, value = rng.choice(corpus.SCHEMAS)
    match rng.randrange(14):
        case 0:
            schema = doubling(rng.randrange(1, 15))
        case 1:
            schema = {"properties": {"a": schema, "b": nested(rng.choice((10, 60, 70)), rng)}}
        case 2:
            value = [value] * rng.choice((10, 200))
        case 3:
            value = nested(rng.choice((10, 100, 300, 500)), rng)
        case 4:
            schema = {"anyOf": [schema, {"type": "array", "items": {"$ref": "#"}}]}
        case 5:
            schema = {
                "type": "string",
                "pattern": f"(a|b){{1,{rng.choice((2, 500))}}}[^c]{{{rng.choice((3, 5000))}}}",
            }
        case _:
            pass
    return Step(0, [pack(schema), msgpack.packb(value, datetime=True)])


def begin(rng: Random) -> list[Step]:
    """Make one request: most have one schema, some have several that are too large together."""
    if rng.random() < 0.05:
        return [Step(0, [pack(doubling(11))])] * 6
    return [more(rng)]


SCHEMAS: Final = Harness(
    name="schemas",
    about="jsonschema: compiler, cost, validator",
    legal="RequestError `invalid_request` or `too_large` when a schema is compiled; none when a value is validated",
    invariants=(
        f"the compiled schemas of a request have at most {MAX_VALUES} values after references were replaced",
        f"at most {MAX_FAULTS} errors are reported, each with a JSON pointer and a message of limited size",
        "the time of compiling and validating is limited",
    ),
    examine=examine,
    begin=begin,
    more=more,
    share=1,
    ci_inputs=150,
)
