"""The cost of validating a value: how much of a schema may apply to one value, times the size of the value.

jsonschema-rs evaluates a part of a schema again for each path of references that leads to it, so chained references
take exponential time: 26 definitions with two references each to the next one take 0.9 s, each further one twice as
long. The compiler replaces all references but those to recursive definitions, and `library_schema` in `validator`
orders these so that the library keeps its verdict on each list and map. Then each part of a schema applies to each
value once at most, except that the library keeps no verdicts on strings, numbers and the like: on these, a definition
applies once for each path of references for the same value. `weigh` adds that up. It counts as if each part applied to
every value: a schema of 200 keywords may be used for 100,000 values, one of 20,000 keywords for 1000.
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
"""Units of one validation. A unit is what the slowest keyword takes on one value, 12 ns of CPU time: 0.25 s at most."""
MAX_WEIGHT: Final = 50_000
"""Units for one value: with more, no value of 400 parts could be validated."""
MAX_STATES: Final = 10_000
"""States of all patterns in one schema: compiling `[^a]{1000}` takes 4.5 ms, so these take 45 ms."""
MAX_STACK: Final = 4000
"""Schemas that apply to one value inside one another, times the depth of the value, for a recursive schema. The library
recurses on the stack of its thread, up to 450 bytes for each: this is under a quarter of the usual 8 MiB."""
MAX_DEPTH: Final = 512
"""Lists and maps inside one another in a value; msgpack allows 1024."""
_MAX_HEIGHT: Final = 200
"""Schemas inside one another for the same value, through references, too: `weigh` recurses as deep."""


class Size(NamedTuple):
    """The size of a value."""

    nodes: int
    """Values, each list and map included."""
    characters: int
    """Of strings and names."""
    depth: int
    is_plain: bool
    """Whether it holds nothing but what JSON has."""


class Weight(NamedTuple):
    """What validating takes, in units, by what it is proportional to."""

    node: int
    """Units for each value."""
    character: int = 0
    """Units for each character: the states of patterns."""
    nested: int = 0
    """Units for each value, for each list and map around it: comparing whole lists and maps."""
    height: int = 1
    """Schemas inside one another."""

    def plus(self, inner: Weight) -> Weight:
        """This and a part of it."""
        return Weight(
            self.node + inner.node,
            self.character + inner.character,
            self.nested + inner.nested,
            max(self.height, inner.height + 1),
        )

    def cost(self, size: Size) -> int:
        """Units for a value of this size."""
        return self.node * size.nodes + self.character * size.characters + self.nested * size.nodes * size.depth


class TooHeavyError(Exception):
    """Validating by a schema cannot be bounded; the text says why."""


def weigh(schema: Schema) -> Weight:
    """Add up the weight of a self-contained schema.

    Raises:
        TooHeavyError: It is over the bound.
    """
    scale = _Scale(definitions_of(schema))
    total = scale.weight(schema)
    for definition in definitions_of(schema).values():
        total = total.plus(scale.weight(definition))
    if total.character > MAX_STATES:
        raise TooHeavyError(f"its patterns have over {MAX_STATES} states (for a length, use maxLength)")
    if max(total.node, total.nested) > MAX_WEIGHT:
        raise TooHeavyError(f"over {MAX_WEIGHT} keywords and schemas apply to one value, through references, too")
    return total


class _Scale:
    """Weighs the parts of one schema."""

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self._definitions = definitions
        self._known: dict[str, Weight] = {}
        """What each definition applies to the same value."""

    def weight(self, part: object, *, in_place: bool = False, height: int = 0) -> Weight:
        """The weight of a part, with what its references apply to the same value.

        Args:
            part: A schema.
            in_place: Whether to leave out what applies to values inside.
            height: Schemas around it for the same value.
        """
        if not isinstance(part, dict):
            return Weight(1)
        schema = cast("dict[str, object]", part)
        if height > _MAX_HEIGHT:
            raise TooHeavyError(f"over {_MAX_HEIGHT} schemas inside one another apply to one value")
        total = _own(schema)
        for keyword, inner in parts_of(schema):
            if not in_place or keyword in IN_PLACE_KEYWORDS:
                total = total.plus(self.weight(inner, in_place=in_place, height=height + 1))
        if "$ref" in schema:
            total = total.plus(self._definition(reference_name(schema["$ref"]), height + 1))
        # To know what was evaluated, the library evaluates everything in place again: twice for each level.
        return total._replace(node=4 * total.node) if schema.keys() & UNEVALUATED else total

    def _definition(self, name: str, height: int) -> Weight:
        if name not in self._known:
            self._known[name] = self.weight(self._definitions[name], in_place=True, height=height)
        return self._known[name]


def _own(schema: dict[str, Any]) -> Weight:
    """The weight of a schema's own keywords."""
    node, character, nested = 1 + len(schema), 0, 0
    for keyword, rule in schema.items():
        match keyword:
            case "pattern":
                character += states_of(rule)
            case "patternProperties":
                character += 2 * sum(map(states_of, rule))  # `additionalProperties` matches the names again
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
"""One atom and its repetitions. A class that is not closed reaches to the end, so that scanning takes linear time."""
_MANY: Final = 10**9


def states_of(pattern: str) -> int:
    """At most how many states the automaton of a pattern has: its characters, times the counts of repetitions.

    A count after a group, or after space that `(?x)` ignores, is taken for all that is before it. Matching takes at
    most about as many units for each character (`(?:a[ab]{0,30}){6}[^a]c`, 190 states: 3.3 µs for each character).
    """
    states = len(pattern) if len(pattern) > MAX_STATES else 0  # more is refused: no need to scan it
    for atom, repetitions in _ATOM.findall(pattern[:MAX_STATES]):
        times = math.prod(max(1, int(digits[:9])) for digits in re.findall("[0-9]+", repetitions))
        states = min(states * times if times > 1 and (atom == ")" or atom.isspace()) else states + times, _MANY)
    return states + 1


_JSON_TYPES: Final = frozenset((bool, dict, float, int, list, str, type(None)))


def measure(value: object) -> Size:
    """The size of a value down to `MAX_DEPTH`, by functions that loop in C: 40 ns for each part."""
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
    """Whether a string is free of lone surrogates."""
    return text.isascii() or not _SURROGATES.search(text)


_SURROGATES: Final = re.compile("[\ud800-\udfff]")
