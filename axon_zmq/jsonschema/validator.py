"""A value validated by a compiled schema; what is wrong with it is told by JSON pointers and the library's messages.

jsonschema-rs decides: `is_valid` is fast, and its cost is bounded (see `cost`). Collecting errors is not: the library
collects them all at once, for each branch of each `anyOf` (16 nested ones with two branches: 13 s). So errors are
collected by an `outline` of the schema, in which references and choices are opaque: the library only says that one of
them fails, and the search goes on from there, until ten faults are found or its time is used up.
"""

from __future__ import annotations

import math
import secrets
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias, cast

import jsonschema_rs

from axon_zmq.jsonschema.cost import MAX_COST, MAX_DEPTH, MAX_STACK, Size, Weight, measure
from axon_zmq.jsonschema.keywords import (
    SCHEMA_KEYWORDS,
    SCHEMA_LIST_KEYWORDS,
    SCHEMA_MAP_KEYWORDS,
    SIMPLE_KEYWORDS,
    UNEVALUATED,
    Schema,
    cut,
    definitions_of,
    pointer_of,
    reference_name,
    reference_to,
)

Fault: TypeAlias = tuple[str, str]
"""JSON pointer and message."""
_MAX_FAULTS: Final = 10
"""Faults of one value that are reported; a model that is asked again needs no more."""
_MAX_COLLECTED: Final = 10_000
"""Units (see `cost`) up to which the library may collect all errors of a value at once: each takes 5 to 10 µs and
may take a unit only, so this is 0.1 s. With more, only the first error is searched for."""
_MAX_SHOWN: Final = 100_000
"""Values and characters of a value whose errors are shown: an error is made with a copy of it, 0.6 µs for each."""
_MAX_SHOWN_DEPTH: Final = 200
"""Lists and maps inside one another in such a value. The library raises ValueError for an error in over 255."""
_MAX_SEARCH_S: Final = 0.05
"""Seconds of CPU time after which the search for faults goes no further."""
_TOO_MUCH: Final = "is too much to check against this schema: send less, or make the schema simpler"
_MARK: Final = secrets.token_hex(9)
"""Begins the strings that stand for what JSON does not have. It is random, so that no value can pretend to be one."""
_FOREIGN: Final = {"type": "string", "pattern": "^" + _MARK}


class CompiledSchema:
    """A schema that was checked, ready to validate values.

    Args:
        schema: Self-contained, as models are shown it.
        weight: What validating by it may take.

    Raises:
        jsonschema_rs.ValidationError: The library cannot compile it.
    """

    def __init__(self, schema: Schema, weight: Weight) -> None:
        self.schema: dict[str, Any] = {**schema}
        self._weight = weight
        self._plain = _compiled(_Forms(schema, is_plain=True).of(schema))
        self._tolerant: Any = None

    def __repr__(self) -> str:
        return f"<CompiledSchema {cut(repr(self.schema))}>"

    def faults(self, value: object) -> list[Fault]:
        """What is wrong with a value: at most ten faults, sorted by pointer; empty if it fits."""
        size = measure(value)
        is_recursive = "$defs" in self.schema
        if size.depth > MAX_DEPTH or (is_recursive and self._weight.height * size.depth > MAX_STACK):
            return [("", f"is nested {size.depth} deep, which is too much to check against this schema")]
        if self._weight.cost(size) > MAX_COST:
            return [("", _TOO_MUCH)]
        judged = value if size.is_plain else _json_value(value)
        if self._validator(size.is_plain).is_valid(judged):
            return []
        return _Search(self.schema, self._weight, is_plain=size.is_plain).run(judged, size)

    def _validator(self, is_plain: bool) -> Any:
        if is_plain:
            return self._plain
        if self._tolerant is None:
            self._tolerant = _compiled(_Forms(self.schema, is_plain=False).of(self.schema))
        return self._tolerant


def _compiled(form: object) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        cast("dict[str, Any] | bool", form),
        validate_formats=False,  # `format` is an annotation in draft 2020-12
        pattern_options=jsonschema_rs.RegexOptions(),  # linear time, without look-around
        retriever=_retrieve_nothing,
    )


def _retrieve_nothing(uri: str) -> NoReturn:
    """Never reached, since the compiler leaves no other reference than into `$defs`; the default would use HTTP."""
    raise ValueError(f"{uri}: nothing is fetched")


# --- the forms of a schema that the library gets -----------------------------------------------------


class _Part(NamedTuple):
    """A part of a schema that its outline leaves to the next step of the search."""

    keyword: str
    """`$ref`, `anyOf`, `oneOf`; or empty: the rule is a whole schema."""
    rule: Any


class _Forms:
    """Writes a schema and its parts as the library gets them: nothing but what validates.

    Args:
        schema: A self-contained schema.
        is_plain: False to let in the strings that stand for what JSON does not have: they are of no type, and no
            keyword for strings applies to them.
    """

    def __init__(self, schema: Schema, *, is_plain: bool) -> None:
        self._is_plain = is_plain
        self._definitions = {name: self._form(part) for name, part in definitions_of(schema).items()}
        self.opaque: dict[str, _Part] = {}
        """The parts that are opaque in the outlines, by the `repr` of the schema that the library reports for them."""

    def of(self, part: object) -> object:
        """A schema for the library that says whether a value fits."""
        return self._ordered(self._form(part), {})

    def outline(self, part: Schema) -> object:
        """The same, but references, choices, and schemas with `unevaluated…` become opaque, each a part in `opaque`.

        `unevaluated…` of the part itself is left out.
        """
        first = len(self.opaque)
        form = self._form(part, is_outline=True, is_top=True)
        opaque: dict[str, object] = {}
        for number, (keyword, rule) in enumerate([*self.opaque.values()][first:], first):
            opaque[f"part-{number}"] = self._form({keyword: rule} if keyword else rule)
        return self._ordered(form, opaque)

    def _ordered(self, form: object, opaque: dict[str, object]) -> object:
        """A form with its definitions, in the order that bounds the cost.

        The library keeps verdicts only for a reference to a definition that is still being compiled: with another
        order, a chain of 18 `oneOf` inside a cycle takes over 20 s instead of 4 ms. So it first compiles a chain of
        definitions `via-…`, each inside the one before; in the innermost, the definitions and the form itself are
        compiled, whose references all lead to the chain. The chain is under a property that no value has.
        """
        if not self._definitions:
            return {**cast("Schema", form), "$defs": opaque} if opaque else form
        forms = {**{f"def-{name}": part for name, part in self._definitions.items()}, "root": form}
        inner: dict[str, object] = {"anyOf": [{"$ref": reference_to(name)} for name in forms]}
        chain: dict[str, object] = {}
        for name in forms:
            via = f"via-{name}"
            chain[via] = {"allOf": [{"properties": {_MARK: inner}}, {"$ref": reference_to(name)}]}
            inner = {"$ref": reference_to(via)}
        return {**inner, "$defs": {**forms, **chain, **opaque}}

    def _form(self, part: Any, *, is_outline: bool = False, is_top: bool = False) -> Any:
        if not isinstance(part, dict):
            return part
        schema = cast("dict[str, Any]", part)
        if is_outline and not is_top and schema.keys() & UNEVALUATED:
            return self._opaque(_Part("", schema))
        form: dict[str, Any] = {}
        more: list[object] = []
        for keyword, rule in schema.items():
            if is_outline and keyword in _CHOICES:
                more.append(self._opaque(_Part(keyword, rule)))
            elif keyword in _VALIDATING and not (is_outline and keyword in UNEVALUATED):
                form[keyword] = self._rule(keyword, rule, is_outline and keyword not in _JUDGED)
        if "additionalProperties" in form:
            form.setdefault("properties", {})  # without it, the library's message does not name what is not allowed
        if not self._is_plain and (tolerant := _tolerant(form)):
            more.append(tolerant)
        return {**form, "allOf": [*form.get("allOf", ()), *more]} if more else form

    def _rule(self, keyword: str, rule: Any, is_outline: bool) -> Any:
        if keyword == "$ref":
            return reference_to(f"via-def-{reference_name(rule)}")
        if keyword in SCHEMA_KEYWORDS:
            return self._form(rule, is_outline=is_outline)
        if keyword in SCHEMA_LIST_KEYWORDS:
            return [self._form(inner, is_outline=is_outline) for inner in rule]
        if keyword in SCHEMA_MAP_KEYWORDS:
            return {name: self._form(inner, is_outline=is_outline) for name, inner in rule.items()}
        is_foreign = keyword in ("const", "enum") and not measure(rule).is_plain
        return _json_value(rule) if is_foreign else rule

    def _opaque(self, part: _Part) -> object:
        """An opaque part, by reference: the library copies what is in `not` into each error."""
        judged = {"not": {"$ref": reference_to(f"part-{len(self.opaque)}")}}
        self.opaque[repr(judged)] = part
        return {"not": judged}


_CHOICES: Final = frozenset(("$ref", "anyOf", "oneOf"))
_JUDGED: Final = frozenset(("contains", "if", "not", "propertyNames"))
"""Keywords whose schemas are only judged, or, in `propertyNames`, by strings: an outline need not stop in them."""
_VALIDATING: Final = (SIMPLE_KEYWORDS | SCHEMA_KEYWORDS | SCHEMA_LIST_KEYWORDS | SCHEMA_MAP_KEYWORDS | {"$ref"}) - {
    "contentSchema"
}


def _tolerant(form: dict[str, Any]) -> Schema | None:
    """Take the keywords for strings out of a form: a condition that applies them to real strings only."""
    text = {keyword: form.pop(keyword) for keyword in ("maxLength", "minLength", "pattern") if keyword in form}
    foreign = {"not": _FOREIGN} if "string" in form.get("type", ()) else True
    return {"if": _FOREIGN, "then": foreign, "else": text} if text or foreign is not True else None


# --- what JSON does not have --------------------------------------------------------------------------


def _json_value(value: Any) -> Any:
    """The same value, with others in place of what JSON does not have; equal ones in place of equal ones."""
    match value:
        case dict():
            made: dict[str, Any] = {}
            for name, item in cast("dict[Any, Any]", value).items():
                made[_json_value(name) if isinstance(name, str) else _foreign(name)] = _json_value(item)
            return made
        case list():
            items: list[Any] = []
            for item in cast("list[Any]", value):  # no comprehension: it would take a second frame for each level
                items.append(_json_value(item))  # noqa: PERF401
            return items
        case str():  # lone surrogates cannot be encoded
            return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case float():
            return value if math.isfinite(value) else _NUMBERS[repr(value)]
        case None | bool() | int():
            return value
        case _:
            return _foreign(value)


_NUMBERS: Final = {
    "inf": Decimal(f"1{'0' * 309}.5"),
    "-inf": Decimal(f"-1{'0' * 309}.5"),
    "nan": Decimal(f"2{'0' * 309}.5"),
}
"""In place of floats that are no JSON numbers: over every float, and no integers."""


def _foreign(value: object) -> str:
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)  # equal times get equal strings
    return f"{_MARK}{value!r}"


def _shown(message: str) -> str:
    """The library's message, with what JSON does not have as Python shows it."""
    for name, number in _NUMBERS.items():
        message = message.replace(str(number), name)
    return cut(message.replace(_MARK, ""))


# --- the search for faults -----------------------------------------------------------------------------


_Steps: TypeAlias = tuple[str | int, ...]


class _Search:
    """Finds the faults of one invalid value."""

    def __init__(self, schema: Schema, weight: Weight, *, is_plain: bool) -> None:
        self._schema = schema
        self._definitions = definitions_of(schema)
        self._weight = weight
        self._forms = _Forms(schema, is_plain=is_plain)
        self._outlines: dict[int, Any] = {}
        """Validators by the `id` of a part of the schema, which lives as long as this."""
        self._pending: list[tuple[_Part, _Steps, Any]] = []
        """Parts of the schema, and the places of values and values that do not fit them."""
        self._seen: set[tuple[str | int, _Steps]] = set()
        self._faults: set[Fault] = set()
        self._end = time.thread_time() + _MAX_SEARCH_S

    def run(self, value: object, size: Size) -> list[Fault]:
        """The faults of a value that is invalid."""
        if size.nodes + size.characters // 100 > _MAX_SHOWN or size.depth > _MAX_SHOWN_DEPTH:
            return [("", "does not fit the schema; it is too large or too deep to say where")]
        self._pending.append((_Part("", self._schema), (), value))
        while self._pending and len(self._faults) < _MAX_FAULTS:
            part, steps, inner = self._pending.pop()
            if self._is_late():
                self._fault(steps, "does not fit the schema; it takes too long to say why")
            elif part.keyword in ("anyOf", "oneOf"):
                self._choose(part, steps, inner)
            else:
                rule = self._definitions[reference_name(part.rule)] if part.keyword else part.rule
                self._step(rule, steps, inner)
        return sorted(self._faults)

    def _is_late(self) -> bool:
        return time.thread_time() > self._end

    def _fault(self, steps: _Steps, message: str) -> None:
        if len(self._faults) < _MAX_FAULTS:
            pointer = pointer_of(str(step).removeprefix(_MARK) for step in steps)
            self._faults.add((pointer, _shown(message)))

    def _step(self, part: Schema, steps: _Steps, value: object) -> None:
        """Collect the errors of a value that does not fit a part of the schema."""
        if id(part) not in self._outlines:
            self._outlines[id(part)] = _compiled(self._forms.outline(part))
        errors = self._errors(self._outlines[id(part)], value)
        if not errors and part.keys() & UNEVALUATED:
            errors = _first_error(_compiled(self._forms.of(part)), value)
        for error in errors:
            place = (*steps, *error.instance_path)
            refused = error.kind.schema if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Not) else None
            if (opaque := self._forms.opaque.get(repr(refused))) is None:
                self._fault(place, _message(error))
            elif (key := (opaque.rule if opaque.keyword == "$ref" else id(opaque.rule), place)) not in self._seen:
                self._seen.add(key)
                self._pending.append((opaque, place, _at(value, error.instance_path)))

    def _errors(self, validator: Any, value: object) -> list[jsonschema_rs.ValidationError]:
        size = measure(value)
        # Each error has a copy of its value: nodes * depth and characters bound what all copies take.
        most = self._weight.node * (size.nodes + size.nodes * size.depth // 10 + size.characters // 1000)
        return list(validator.iter_errors(value)) if most <= _MAX_COLLECTED else _first_error(validator, value)

    def _choose(self, part: _Part, steps: _Steps, value: object) -> None:
        """Search a value that does not fit a choice by the only branch for its type, if there is one."""
        branches = cast("list[object]", part.rule)
        if part.keyword == "oneOf":
            fitting = [n for n, branch in enumerate(branches) if not self._is_late() and self._fits(branch, value)]
            if len(fitting) > 1:
                which = f"{fitting[0]} and {fitting[1]}"
                self._fault(steps, _instead(value, f"is valid under more than one of the given schemas: {which}"))
                return
        kinds = [self._type_of(branch) for branch in branches]
        typed = [
            branch
            for branch, kind in zip(branches, kinds, strict=True)
            if kind is None or self._fits({"type": kind}, value)
        ]
        if len(typed) == 1 and None not in kinds:
            self._pending.append((_Part("", typed[0]), steps, value))
        else:
            self._fault(steps, _instead(value, "is not valid under any of the given schemas"))

    def _fits(self, part: object, value: object) -> bool:
        return _compiled(self._forms.of(part)).is_valid(value)

    def _type_of(self, part: object) -> object:
        """The `type` of a schema, or of the definition that it refers to."""
        for _ in range(len(self._definitions) + 1):
            if not isinstance(part, dict) or "type" in part or "$ref" not in part:
                break
            part = self._definitions[reference_name(part["$ref"])]
        return cast("Schema", part).get("type") if isinstance(part, dict) else None


def _first_error(validator: Any, value: object) -> list[jsonschema_rs.ValidationError]:
    try:
        validator.validate(value)
    except jsonschema_rs.ValidationError as error:
        return [error]
    return []


def _at(value: Any, steps: list[str | int]) -> object:
    for step in steps:
        value = value[step]
    return value


def _instead(value: object, message: str) -> str:
    """A message in place of the library's, in its way."""
    return f"{cut(repr(value))} {message}"


def _message(error: jsonschema_rs.ValidationError) -> str:
    kinds = jsonschema_rs.ValidationErrorKind
    match error.kind:
        case kinds.Not(schema=schema) if schema == _FOREIGN:
            return f"{error.instance} is not a JSON value"
        case kinds.Type(types=types):
            return _instead(error.instance, f"is not of type {', '.join(map(repr, types))}")
        case kinds.Contains():
            return _instead(error.instance, _CONTAINS[str(error.schema_path[-1])])
        case kinds.Required() if error.schema_path[-1] == "dependentRequired":
            return f"{error.message} if others are there (dependentRequired)"
        case kinds.FalseSchema():
            return _instead(error.instance, "is not allowed here: no value is")
        case _:
            return error.message


_CONTAINS: Final = {
    "contains": "has no item that fits the schema in contains",
    "maxContains": "has more items that fit the schema in contains than maxContains",
    "minContains": "has fewer items that fit the schema in contains than minContains",
}
"""What is wrong by each keyword; the library says of all of them that no item fits."""
