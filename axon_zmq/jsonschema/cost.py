"""Bounds on the work of the library: how often the parts of a schema apply to one value, times the value's size.

jsonschema-rs evaluates a part of a schema again for each path that leads to it, so chained references take exponential
time: 26 definitions with two references each to the next one take 0.9 s, and each further one twice as long. It keeps
the verdict on a list or map only for a reference to a definition that is still being compiled. `library_form` in
`validator` orders the definitions so that this holds for all references between recursive definitions (a chain of 18
`oneOf` inside a cycle: 4 ms instead of over 20 s). All other references were replaced before. What is left to count:

- each recursive definition applies to each value once at most;
- except that on strings, numbers and the like it applies once for each path of references *for the same value*;
- what is inside a schema, references aside, applies once for each place.

`weigh` adds that up, weighted by keyword, before a schema is compiled; `Bound.cost` multiplies it with the size of a
value before the value is validated. The unit is 12 ns of CPU time, which one keyword takes on one value (jsonschema-rs
0.61.2, CPython 3.11: 1000 `minimum` in an `allOf` on 4000 numbers take 45 ms).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, cast

from axon_zmq.jsonschema.keywords import ANNOTATIONS, IN_PLACE_KEYWORDS, reference_name

MAX_PLACE: Final = 10_000.0
"""Units for one place of a value, by all that applies there: 0.12 ms, for each value at that place. A chain of ten
two-branch references takes 5000."""
MAX_WEIGHT: Final = 200_000.0
"""Units for one value inside another, by all recursive definitions: with more, no value of a hundred parts would do."""
MAX_COST: Final = 20_000_000.0
"""Units of one validation: about 0.25 s at most. A unit is what the slowest keyword takes, so most take a third."""
MAX_STACK: Final = 4000
"""Schemas that apply to one value, times the depth of the value, for a recursive schema. The library recurses on the
stack of its thread and takes up to 450 bytes for each: this is under a quarter of the usual 8 MiB."""


class Size(NamedTuple):
    """The size of a value, in what the library's work is proportional to."""

    nodes: int
    """Values, each list and map included."""
    maps: int
    characters: int
    """Of strings and names."""
    nested: int
    """For each value, the number of lists and maps around it; what comparing whole lists and maps is bounded by."""
    depth: int
    is_plain: bool
    """Whether it holds nothing but what JSON has."""


class Weight(NamedTuple):
    """How often the parts of a schema apply to one value, weighted by keyword."""

    node: float = 0.0
    """Units for each value."""
    map: float = 0.0
    """Units for each map."""
    character: float = 0.0
    """Units for each character."""
    nested: float = 0.0
    """Units for each value, for each list and map around it."""

    def plus(self, other: Weight) -> Weight:
        """Both apply."""
        return Weight(
            self.node + other.node,
            self.map + other.map,
            self.character + other.character,
            self.nested + other.nested,
        )

    def or_more(self, other: Weight) -> Weight:
        """Only one of the two applies, whichever is heavier."""
        return Weight(
            max(self.node, other.node),
            max(self.map, other.map),
            max(self.character, other.character),
            max(self.nested, other.nested),
        )

    def repeated(self, times: int) -> Weight:
        """The same so many times."""
        return Weight(self.node * times, self.map * times, self.character * times, self.nested * times)

    def on_each(self, size: Size) -> float:
        """The units that it takes at most if it applies to each value of a value of this size."""
        return (
            self.node * size.nodes
            + self.map * size.maps
            + self.character * size.characters
            + self.nested * (size.nested + size.nodes)
        )

    def on_root(self, size: Size) -> float:
        """The same if it applies only to the outermost value."""
        return self.node + self.map + self.character * size.characters + self.nested * size.nodes


class Bound(NamedTuple):
    """What validating any value by one schema takes at most, depending on the value's size."""

    root: Weight
    """Of what applies to the outermost value."""
    each: Weight
    """Of what applies to each value inside."""
    height: int
    """Schemas that apply to one value inside one another, if the schema is recursive; otherwise 0."""

    def cost(self, size: Size) -> float:
        """Units for a value of this size."""
        return self.root.on_root(size) + self.each.on_each(size)

    def is_deep(self, size: Size) -> bool:
        """Whether the library would recurse too deep."""
        return self.height * size.depth > MAX_STACK


class TooHeavyError(Exception):
    """Validating by a schema cannot be bounded: its references form too many paths."""


class _Place(NamedTuple):
    """What applies to one value, by one schema."""

    weight: Weight
    height: int = 1
    """Schemas inside one another."""
    parts: int = 1
    """Schemas in all."""


_BOOLEAN: Final = _Place(Weight(node=1))
_NOTHING: Final = Weight()


def weigh(schema: dict[str, Any]) -> Bound:
    """Add up the weights of a schema.

    Args:
        schema: It is self-contained: only references between recursive definitions in its `$defs` are left.

    Raises:
        TooHeavyError: They are over the bound.
    """
    scale = _Scale(schema.get("$defs", {}))
    root = scale.here(schema)
    each = scale.inside(schema, is_root=True)
    for name, definition in scale.definitions.items():
        each = each.plus(scale.here(definition).weight).plus(scale.inside_definition(name))
    if not max(*root.weight, *each) <= MAX_WEIGHT:
        raise TooHeavyError
    return Bound(root.weight, each, scale.height if scale.definitions else 0)


class _Scale:
    """Weighs the parts of one schema."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self.definitions = definitions
        self.height = 0
        """The most schemas that apply to one value inside one another."""
        self._here: dict[int, _Place] = {}
        """By the `id` of a part of the schema, which lives as long as this."""
        self._inside: dict[str, Weight] = {}

    def here(self, schema: Any) -> _Place:
        """What applies to the value itself, through references, too.

        Raises:
            TooHeavyError: It is over the bound; this ends the count of exponentially many paths.
        """
        if not isinstance(schema, dict):
            return _BOOLEAN
        if (known := self._here.get(id(schema))) is None:
            known = self._here[id(schema)] = self._weighed(cast("dict[str, Any]", schema))
        return known

    def _weighed(self, part: dict[str, Any]) -> _Place:
        own = _own(part)
        if not part.keys() & _STRUCTURE:
            return _Place(own)
        places = [self.here(inner) for inner in _parts_in_place(part)]
        if "$ref" in part:
            places.append(self.here(self.definitions[reference_name(part["$ref"])]))
        if not places:
            return _Place(own)
        height = 1 + max(place.height for place in places)
        count = 1 + sum(place.parts for place in places)
        weight = Weight(*(sum(column) for column in zip(own, *(place.weight for place in places), strict=True)))
        if (times := _repetitions(part, height)) > 1:
            weight, count = weight.repeated(times), count * times
        if max(weight) > MAX_PLACE:
            raise TooHeavyError
        self.height = max(self.height, height)
        return _Place(weight, height, count)

    def inside_definition(self, name: str) -> Weight:
        """What applies to one of the values inside a value that a definition applies to, references aside."""
        if name not in self._inside:
            self._inside[name] = self.inside(self.definitions[name])
        return self._inside[name]

    def inside(self, schema: Any, *, is_root: bool = False) -> Weight:
        """What applies to one of the values inside, at any depth.

        Args:
            schema: Any part of the schema.
            is_root: Whether it is outside all definitions; there the library keeps no verdicts, and a reference adds
                what is inside its definition.
        """
        if not isinstance(schema, dict) or not cast("dict[str, Any]", schema).keys() & _STRUCTURE:
            return _NOTHING
        part = cast("dict[str, Any]", schema)
        total = self._members(part, is_root)
        for inner in _parts_in_place(part):
            if (weight := self.inside(inner, is_root=is_root)) is not _NOTHING:
                total = total.plus(weight)
        if is_root and "$ref" in part:
            total = total.plus(self.inside_definition(reference_name(part["$ref"])))
        if part.keys() & _UNEVALUATED:
            place = self.here(part)
            total = total.plus(Weight(node=place.parts)).repeated(_repetitions(part, place.height))
        return total

    def _members(self, part: dict[str, Any], is_root: bool) -> Weight:
        if not part.keys() & _MEMBERS:
            return _NOTHING
        total = heaviest = _NOTHING
        for schema in _exclusive(part):
            heaviest = heaviest.or_more(self._member(schema, is_root))
        for keyword in part.keys() & _INCLUSIVE:
            total = total.plus(self._member(part[keyword], is_root))
        for pattern, schema in part.get("patternProperties", {}).items():
            # Names are matched twice: `additionalProperties` does it again.
            total = total.plus(self._member(schema, is_root)).plus(Weight(8, 0, 2 * states_of(pattern)))
        return heaviest if total is _NOTHING else total.plus(heaviest)

    def _member(self, schema: Any, is_root: bool) -> Weight:
        here = self.here(schema).weight
        inside = self.inside(schema, is_root=is_root)
        return here if inside is _NOTHING else here.or_more(inside)


def _repetitions(part: dict[str, Any], height: int) -> int:
    """How often everything in place is evaluated: to know what was evaluated, again at each level of it."""
    return 1 + height if part.keys() & _UNEVALUATED else 1


def _exclusive(part: dict[str, Any]) -> Iterable[Any]:
    """The schemas of which only one applies to each value inside."""
    yield from part.get("properties", {}).values()
    yield from part.get("prefixItems", ())
    for keyword in ("additionalProperties", "items"):
        if keyword in part:
            yield part[keyword]


_UNEVALUATED: Final = frozenset(("unevaluatedItems", "unevaluatedProperties"))
_INCLUSIVE: Final = frozenset(("contains", "propertyNames")) | _UNEVALUATED
"""Keywords that apply to values inside besides others."""
_MEMBERS: Final = _INCLUSIVE | {"additionalProperties", "items", "patternProperties", "prefixItems", "properties"}
"""Keywords that apply to values inside."""
_STRUCTURE: Final = IN_PLACE_KEYWORDS | _MEMBERS | {"$ref"}


def _parts_in_place(part: dict[str, Any]) -> list[Any]:
    parts: list[Any] = []
    for keyword in part.keys() & IN_PLACE_KEYWORDS:
        held = part[keyword]
        if isinstance(held, list):
            parts.extend(cast("list[Any]", held))
        elif keyword == "dependentSchemas":
            parts.extend(held.values())
        else:
            parts.append(held)
    return parts


def _own(part: dict[str, Any]) -> Weight:
    """The weight of a schema's own keywords on the value itself."""
    if not part:
        return _ANY
    node = 1.0 + len(part.keys() - ANNOTATIONS)
    if not (sized := part.keys() & _SIZED):
        return Weight(node)
    maps = characters = nested = 0.0
    for keyword in sized:
        rule = part[keyword]
        if keyword == "dependentRequired":
            maps += sum(1 + len(names) for names in rule.values())
        elif keyword in _BY_NAME:
            maps += len(rule)
        elif keyword == "pattern":
            characters += states_of(rule)
            node += 4
        elif keyword == "uniqueItems":
            nested += 6.0
            characters += 0.1
        elif keyword in ("maxLength", "minLength"):
            characters += 0.1
        else:
            known = [rule] if keyword == "const" else rule
            node += len(known) / 4
            nested += sum(2 for item in known if isinstance(item, dict | list))
            characters += len(known) / 200
    return Weight(node, maps, characters, nested)


_ANY: Final = Weight(node=1)
_BY_NAME: Final = frozenset(("dependentSchemas", "properties", "required"))
_SIZED: Final = _BY_NAME | {"const", "dependentRequired", "enum", "maxLength", "minLength", "pattern", "uniqueItems"}
"""Keywords whose work depends on their value, or on the length of the value that they apply to."""


def states_of(pattern: str) -> int:
    """About how many states the automaton of a pattern has: its characters, counted repetitions written out.

    Matching takes at most about as many units for each character (measured: `(?:a[ab]{0,30}){6}[^a]c`, 190 states,
    3.3 µs for each character).
    """
    total, counts, position = 0, [0], 0
    while position < len(pattern):
        last, position = _next_atom(pattern, position)
        if last == "(":
            counts.append(0)
            continue
        size = 1
        if last == ")" and len(counts) > 1:
            size = max(1, counts.pop())
        times, position = _repetition(pattern, position)
        counts[-1] = min(counts[-1] + size * times, _MANY)
    for count in counts:
        total += count
    return max(1, total)


_MANY: Final = 10**9


def _next_atom(pattern: str, position: int) -> tuple[str, int]:
    character = pattern[position]
    if character == "\\":
        return "a", position + 2
    if character != "[":
        return character, position + 1
    end = position + 1
    if pattern[end : end + 1] == "^":
        end += 1
    if pattern[end : end + 1] == "]":
        end += 1
    while end < len(pattern) and pattern[end] != "]":
        end += 2 if pattern[end] == "\\" else 1
    return "a", end + 1


def _repetition(pattern: str, position: int) -> tuple[int, int]:
    """How often the atom before `position` is repeated by count, and the position after the count."""
    if pattern[position : position + 1] != "{":
        return 1, position
    end = pattern.find("}", position)
    numbers = pattern[position + 1 : end].split(",") if end > 0 else []
    digits = [number.strip() for number in numbers if number.strip()]
    if not digits or not all(number.isascii() and number.isdigit() and len(number) < 9 for number in digits):
        return 1, position
    return max(1, *(int(number) for number in digits), 1), end + 1
