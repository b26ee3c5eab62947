"""The keywords of JSON Schema draft 2020-12 by the shape of their value, and how values are shown in messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, cast

SCHEMA_KEYWORDS: Final = frozenset(
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
SCHEMA_LIST_KEYWORDS: Final = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
"""Keywords whose value is a list of schemas."""
SCHEMA_MAP_KEYWORDS: Final = frozenset(("properties", "patternProperties", "dependentSchemas"))
"""Keywords whose value maps names to schemas."""
IN_PLACE_KEYWORDS: Final = frozenset(
    ("allOf", "anyOf", "dependentSchemas", "else", "if", "not", "oneOf", "then"),
)
"""Keywords whose schemas apply to the same value as the schema that contains them. `$ref` is one, too."""
ANNOTATIONS: Final = frozenset(
    ("$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly")
)
"""Keywords that never reject a value."""
IGNORED: Final = ANNOTATIONS | {"contentSchema"}
"""Keywords that the library need not see."""
SIMPLE_KEYWORDS: Final = frozenset(
    (
        "const",
        "dependentRequired",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "maxContains",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minContains",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "pattern",
        "required",
        "type",
        "uniqueItems",
    )
)
"""Keywords that reject values, and whose value holds no schema."""

_SHOWN_ITEMS: Final = 5
"""Items of a list or map that a message shows."""
_SHOWN_CHARACTERS: Final = 100
"""Characters of one string that a message shows."""


def parts_of(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each subschema directly inside a schema, with the keyword that holds it. `$defs` and `$ref` are left out."""
    for keyword, value in schema.items():
        if keyword in SCHEMA_KEYWORDS:
            yield keyword, value
        elif keyword in SCHEMA_LIST_KEYWORDS and isinstance(value, list):
            for part in cast("list[Any]", value):
                yield keyword, part
        elif keyword in SCHEMA_MAP_KEYWORDS and isinstance(value, dict):
            for part in cast("dict[str, Any]", value).values():
                yield keyword, part


def reference_to(name: str) -> str:
    """The `$ref` of a definition in the root's `$defs`. Names need no escaping: the compiler chooses them."""
    return f"#/$defs/{name}"


def reference_name(ref: str) -> str:
    """The name of the definition in the root's `$defs` that a `$ref` leads to."""
    return ref.removeprefix("#/$defs/")


def pointer_of(steps: Iterable[int | str]) -> str:
    """The JSON pointer that leads through these keys and indexes."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def brief(value: Any, depth: int = 2) -> str:
    """The `repr` of a value, shortened if it is long."""
    match value:
        case str():
            return _cut(str.__repr__(value[:_SHOWN_CHARACTERS]), len(value) > _SHOWN_CHARACTERS)
        case bytes():
            return _cut(bytes.__repr__(value[:_SHOWN_CHARACTERS]), len(value) > _SHOWN_CHARACTERS)
        case list():
            items = cast("list[Any]", value)
            shown = [brief(item, depth - 1) for item in items[: depth and _SHOWN_ITEMS]]
            return "[" + listed(shown, len(items)) + "]"
        case dict():
            members = cast("dict[str, Any]", value)
            pairs = islice(members.items(), depth and _SHOWN_ITEMS)
            shown = [f"{brief(name)}: {brief(item, depth - 1)}" for name, item in pairs]
            return "{" + listed(shown, len(members)) + "}"
        case _:
            return _cut(repr(value)[:_SHOWN_CHARACTERS], len(repr(value)) > _SHOWN_CHARACTERS)


def brief_names(names: list[Any]) -> str:
    """The beginning of a list of names or indexes, for a message."""
    return listed([brief(name) for name in names[:_SHOWN_ITEMS]], len(names))


def listed(shown: list[str], count: int) -> str:
    """Join the shown items; an ellipsis stands for those that are not shown."""
    return ", ".join(shown if len(shown) == count else [*shown, "…"])


def _cut(text: str, is_cut: bool) -> str:
    return f"{text}…" if is_cut else text
