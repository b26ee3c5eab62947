"""Estimates the cost of a validation: the weight of the schema for one value, multiplied by the size of the value.

jsonschema-rs evaluates a subschema again for each path of references that leads to it, so chained references take
exponential time: 26 definitions, each with two references to the next one, take 0.9 s, and each further definition
doubles the time. Two measures prevent this. The compiler replaces all references except those to recursive definitions.
`validator._Forms._ordered` arranges these definitions so that the library caches its verdict on each list and map. Then
each subschema is applied at most once to each list and map. The library caches no verdicts on scalar values (strings,
numbers and so on): to these, a definition is applied once for each path of references for the same value.

`weigh` adds up the costs of all subschemas, as if each of them applied to every value. So a schema of 200 keywords may
be used for a value with 100,000 parts, and a schema of 20,000 keywords for a value with 1000 parts.
"""

from __future__ import annotations

import math
import re
from itertools import chain
from typing import Any, Final, NamedTuple, cast

from axon_zmq.jsonschema.keywords import (
    IN_PLACE_KEYWORDS,
    UNEVALUATED,
    Schema,
    definitions_of,
    parts_of,
    reference_name,
)

MAX_COST: Final = 20_000_000
"""Maximum cost of one validation in units. A unit is the time of the slowest keyword for one value, 12 ns of CPU time,
so this is at most 0.25 s."""
MAX_WEIGHT: Final = 50_000
"""Maximum weight of a schema in units for one value. With more, even a value of 400 parts could not be validated."""
MAX_STATES: Final = 10_000
"""Maximum number of states of all patterns in one schema. Compiling `[^a]{1000}` takes 4.5 ms, so this many states take
45 ms."""
MAX_STACK: Final = 4000
"""Maximum depth of the library's recursion for a recursive schema: the height of the schema multiplied by the depth of
the value. Each level uses up to 450 bytes of the thread's stack, so this is less than a quarter of the usual 8 MiB."""
MAX_DEPTH: Final = 512
"""Maximum depth of nested lists and maps in a value; msgpack allows 1024."""
_MAX_HEIGHT: Final = 200
"""Maximum depth of nested schemas for the same value, including schemas behind references. `weigh` recurses this
deep."""


class Size(NamedTuple):
    """Size of a value."""

    nodes: int
    """Number of values, including each list and map."""
    characters: int
    """Number of characters in strings and keys."""
    depth: int
    """Depth of nested lists and maps; 1 for a scalar value."""
    is_plain: bool
    """Whether the value has only types that JSON has."""


class Weight(NamedTuple):
    """Cost of validating with a schema, in units: one number for each property of the value that increases the cost."""

    node: int
    """Units for each value."""
    character: int = 0
    """Units for each character: the number of states of the patterns."""
    nested: int = 0
    """Units for each value and each list or map that contains it: the cost of comparing whole lists and maps."""
    height: int = 1
    """Depth of nested schemas."""

    def plus(self, inner: Weight) -> Weight:
        """Return the weight of this schema together with a part of it."""
        return Weight(
            self.node + inner.node,
            self.character + inner.character,
            self.nested + inner.nested,
            max(self.height, inner.height + 1),
        )

    def cost(self, size: Size) -> int:
        """Return the cost for a value of this size, in units."""
        return self.node * size.nodes + self.character * size.characters + self.nested * size.nodes * size.depth


class TooHeavyError(Exception):
    """The weight of a schema exceeds a limit; the message names the limit."""


def weigh(schema: Schema) -> Weight:
    """Return the weight of a self-contained schema.

    Raises:
        TooHeavyError: The weight exceeds a limit.
    """
    scale = _Scale(definitions_of(schema))
    total = scale.weight(schema)
    for definition in definitions_of(schema).values():
        total = total.plus(scale.weight(definition))
    if total.character > MAX_STATES:
        raise TooHeavyError(f"its patterns have over {MAX_STATES} states (for a length, use maxLength)")
    if max(total.node, total.nested) > MAX_WEIGHT:
        raise TooHeavyError(
            f"over {MAX_WEIGHT} keywords and schemas apply to one value, including schemas behind references"
        )
    return total


class _Scale:
    """Determines the weights of the subschemas of one schema."""

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self._definitions = definitions
        self._known: dict[str, Weight] = {}
        """Weight of each definition for the value that it is applied to, without the values inside that value."""

    def weight(self, part: object, *, in_place: bool = False, height: int = 0) -> Weight:
        """Return the weight of a subschema, including that of its references for the same value.

        Args:
            part: A schema.
            in_place: Whether to leave out subschemas that apply to values inside the value.
            height: Depth of nested schemas around this one, for the same value.
        """
        if not isinstance(part, dict):
            return Weight(1)
        schema = cast("dict[str, object]", part)
        if height > _MAX_HEIGHT:
            raise TooHeavyError(f"over {_MAX_HEIGHT} nested schemas apply to one value")
        total = _own(schema)
        for keyword, inner in parts_of(schema):
            if not in_place or keyword in IN_PLACE_KEYWORDS:
                total = total.plus(self.weight(inner, in_place=in_place, height=height + 1))
        if "$ref" in schema:
            total = total.plus(self._definition(reference_name(schema["$ref"]), height + 1))
        # For `unevaluated…`, the library evaluates all in-place subschemas again, twice for each level of nesting.
        return total._replace(node=4 * total.node) if schema.keys() & UNEVALUATED else total

    def _definition(self, name: str, height: int) -> Weight:
        if name not in self._known:
            self._known[name] = self.weight(self._definitions[name], in_place=True, height=height)
        return self._known[name]


def _own(schema: dict[str, Any]) -> Weight:
    """Return the weight of a schema's own keywords, without its subschemas."""
    node, character, nested = 1 + len(schema), 0, 0
    for keyword, rule in schema.items():
        match keyword:
            case "pattern":
                character += states_of(rule)
            case "patternProperties":
                character += 2 * sum(map(states_of, rule))  # `additionalProperties` matches the keys again
            case "maxLength" | "minLength":
                character += 1
            case "uniqueItems":
                character, nested = character + 1, nested + 6
            case "const" | "enum":
                options = [rule] if keyword == "const" else rule
                node += len(options) // 4
                nested += 2 * sum(isinstance(option, dict | list) for option in options)
            case "dependentRequired":
                node += sum(1 + len(names) for names in rule.values())
            case "dependentSchemas" | "properties" | "required":
                node += len(rule)
            case _:
                pass
    return Weight(node, character, nested)


_ATOM: Final = re.compile(r"(\\.|\[\^?\]?(?:\\.|[^\]\\]++)*+(?:\]|\\?\Z)|.)((?:[?*+]|\{[\d,\s]*\})*)", re.DOTALL)
"""Matches one atom of a pattern and its repetitions. A character class without its closing bracket extends to the end,
so that scanning takes linear time."""
_STATES_CAP: Final = 10**9


def states_of(pattern: str) -> int:
    """Return an upper bound for the number of states in the automaton of a pattern.

    It is the number of characters multiplied by the counts of repetitions. A count after a group, or after white space
    that `(?x)` ignores, is applied to everything before it. For each character, matching takes at most about as many
    units as the pattern has states: 3.3 µs for `(?:a[ab]{0,30}){6}[^a]c`, which has 190 states.
    """
    states = len(pattern) if len(pattern) > MAX_STATES else 0  # such a pattern is refused anyway
    for atom, repetitions in _ATOM.findall(pattern[:MAX_STATES]):
        times = math.prod(max(1, int(digits[:9])) for digits in re.findall("[0-9]+", repetitions))
        states = min(states * times if times > 1 and (atom == ")" or atom.isspace()) else states + times, _STATES_CAP)
    return states + 1


_JSON_TYPES: Final = frozenset((bool, dict, float, int, list, str, type(None)))


def measure(value: object) -> Size:
    """Return the size of a value, down to a depth of `MAX_DEPTH`."""
    # Each level is processed by functions that loop in C, which takes 40 ns for each part.
    level: list[Any] = [value]
    nodes = characters = depth = 0
    is_plain = True
    while level and depth <= MAX_DEPTH:
        nodes += len(level)
        depth += 1
        kinds = set(map(type, level))
        maps = [item for item in level if type(item) is dict] if dict in kinds else []
        texts: list[Any] = [item for item in level if type(item) is str] if str in kinds else []
        names: list[Any] = list(chain.from_iterable(maps))
        is_plain = is_plain and kinds <= _JSON_TYPES and set(map(type, names)) <= {str}
        if is_plain:
            is_plain = all(map(_is_encodable, chain(texts, names))) and (
                float not in kinds or all(math.isfinite(item) for item in level if type(item) is float)
            )
        characters += sum(len(item) for item in chain(texts, names) if isinstance(item, str))
        if bytes in kinds:
            characters += sum(len(item) for item in level if type(item) is bytes)
        held = [item for item in level if type(item) is list] if list in kinds else []
        level = list(chain(chain.from_iterable(held), chain.from_iterable(item.values() for item in maps)))
    return Size(nodes, characters, depth, is_plain)


def _is_encodable(text: str) -> bool:
    """Whether a string has no lone surrogates."""
    return text.isascii() or not _SURROGATES.search(text)


_SURROGATES: Final = re.compile("[\ud800-\udfff]")
