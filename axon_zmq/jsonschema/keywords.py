"""Keywords of JSON Schema draft 2020-12, grouped by the form of their value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias, cast

Schema: TypeAlias = Mapping[str, object]
"""A schema that is a map. A schema may also be `true` or `false`."""

# fmt: off
SCHEMA_KEYWORDS: Final = frozenset((
    "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
))
"""Keywords whose value is a schema."""
SCHEMA_LIST_KEYWORDS: Final = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
"""Keywords whose value is a list of schemas."""
SCHEMA_MAP_KEYWORDS: Final = frozenset(("properties", "patternProperties", "dependentSchemas"))
"""Keywords whose value maps names to schemas."""
IN_PLACE_KEYWORDS: Final = frozenset(("allOf", "anyOf", "dependentSchemas", "else", "if", "not", "oneOf", "then"))
"""Keywords whose subschemas apply to the same value as the schema that contains them (in-place applicators). `$ref` is
one, too."""
UNEVALUATED: Final = frozenset(("unevaluatedItems", "unevaluatedProperties"))
"""Keywords that depend on which items or properties the other keywords for the same value have evaluated."""
ANNOTATIONS: Final = frozenset((
    "$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly",
))
"""Keywords that never reject a value."""
SIMPLE_KEYWORDS: Final = frozenset((
    "const", "dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "maxContains", "maxItems",
    "maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum",
    "multipleOf", "pattern", "required", "type", "uniqueItems",
))
"""Keywords that may reject a value and contain no subschema."""
# fmt: on


def parts_of(schema: Schema) -> Iterator[tuple[str, object]]:
    """Yield each direct subschema of a schema with its keyword; `$defs` and `$ref` are left out."""
    for keyword, value in schema.items():
        if keyword in SCHEMA_KEYWORDS:
            yield keyword, value
        elif keyword in SCHEMA_LIST_KEYWORDS and isinstance(value, list):
            yield from ((keyword, part) for part in value)
        elif keyword in SCHEMA_MAP_KEYWORDS and isinstance(value, dict):
            yield from ((keyword, part) for part in value.values())


def definitions_of(schema: Schema) -> dict[str, Schema]:
    """Return the recursive definitions of a self-contained schema by name."""
    return cast("dict[str, Schema]", schema.get("$defs", {}))


def reference_to(name: str) -> str:
    """Return the `$ref` to a definition in the root's `$defs`; the compiler chooses names that need no escaping."""
    return f"#/$defs/{name}"


def reference_name(ref: object) -> str:
    """Return the name of the definition in the root's `$defs` that a `$ref` refers to."""
    return str(ref).removeprefix("#/$defs/")


def pointer_of(steps: Iterable[int | str]) -> str:
    """Return the JSON pointer that consists of these keys and indexes."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def cut(text: str) -> str:
    """Shorten a message to at most 300 characters by leaving out its middle, which usually is a long value."""
    return text if len(text) <= _MAX_MESSAGE else f"{text[:120]} … {text[-170:]}"


_MAX_MESSAGE: Final = 300
