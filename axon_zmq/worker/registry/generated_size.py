"""Estimates the size of the value that pydantic-ai's `TestModel` generates for a JSON Schema, without generating it.

Internal: may change in any release.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import to_json

MAX_DEPTH: Final = 256
"""Depth of a schema, with its references, from which the value counts as too large. pydantic-ai generates by recursion,
and a schema that contains itself has no end."""
_ITEM: Final = 16
"""Characters that each value counts in addition to its text, because a generated value takes memory even if it is
empty."""


def of(schema: object, most: int) -> int:
    """Return the approximate number of characters of the generated value.

    Args:
        schema: A JSON Schema of any form.
        most: The largest size of interest; the estimate ends as soon as it is exceeded.

    Returns:
        The size; a number above `most` only shows that it is exceeded.
    """
    return _Estimate(schema, most).size(schema, 0)


class _Estimate:
    """One estimate: it follows the same keywords as pydantic-ai, always the first alternative."""

    def __init__(self, root: object, most: int) -> None:
        self._root = root
        self._most = most
        self._visited = 0

    def size(self, schema: object, depth: int) -> int:
        self._visited += _ITEM
        # Two references in each of thirty definitions are a billion values: the number of visits is bounded, too.
        if depth > MAX_DEPTH or self._visited > self._most:
            return self._most + 1
        if not isinstance(schema, dict):
            return _ITEM
        known: dict[str, Any] = schema
        if "const" in known:
            return _ITEM + _length(known["const"])
        for keyword in ("enum", "examples"):
            if isinstance(values := known.get(keyword), list) and values:
                return _ITEM + _length(values[0])
        if isinstance(ref := known.get("$ref"), str):
            return self.size(self._resolved(ref), depth + 1)
        for keyword in ("anyOf",) if "type" in known else ("anyOf", "oneOf"):
            if isinstance(members := known.get(keyword), list) and members:
                return self.size(members[0], depth + 1)
        return _ITEM + _count(known.get("minLength")) + self._of_object(known, depth) + self._of_list(known, depth)

    def _of_object(self, schema: dict[str, Any], depth: int) -> int:
        required = schema.get("required")
        properties = schema.get("properties")
        total = 0
        if isinstance(properties, dict) and isinstance(required, list):
            total = self._sum([value for key, value in properties.items() if key in required], depth)
        if extra := schema.get("additionalProperties"):
            total += self.size(extra, depth + 1)
        return total

    def _of_list(self, schema: dict[str, Any], depth: int) -> int:
        items, first = schema.get("items", {}), schema.get("prefixItems") or []
        if isinstance(items, list):  # as drafts before 2020-12 wrote a tuple
            items, first = {}, first or items
        total = self._sum(first, depth) if isinstance(first, list) else 0
        least = _count(schema.get("minItems"))
        if least > len(first) or items:
            total += max(1, least) * self.size(items, depth + 1)
        return total

    def _sum(self, schemas: list[Any], depth: int) -> int:
        total = 0
        for schema in schemas:
            total += self.size(schema, depth + 1)
            if total > self._most:
                break
        return total

    def _resolved(self, ref: str) -> object:
        at: Any = self._root
        for step in ref.removeprefix("#/").split("/"):
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(at, dict) and key in at:
                at = at[key]
            else:
                return None
        return at


def _length(value: object) -> int:
    try:
        return len(to_json(value, bytes_mode="base64"))
    except ValueError:  # such as an integer out of range; it is a part of the schema, whose size is bounded
        return _ITEM


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) and value > 0 else 0
