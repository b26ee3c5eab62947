"""Validates values with a compiled schema, and reports errors with JSON pointers and the library's messages.

`is_valid` of jsonschema-rs decides whether a value is valid; it is fast, and its cost is limited (see `cost`). The cost
of collecting the errors of an invalid value is not: the library collects all errors, for each branch of each `anyOf`
(13 s for a value nested 16 levels deep, with two branches for each level). Therefore errors are collected step by step.
Each step uses an outline of a subschema, in which references and choices (`anyOf`, `oneOf`) are replaced by opaque
schemas. For these the library only reports that they failed, without details, and the next step examines them. The
search ends when ten errors were found or its time is used up.
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
"""An error in a value: JSON pointer and message."""
_MAX_FAULTS: Final = 10
"""Maximum number of errors that are reported for one value. A model that must correct its output needs no more."""
_MAX_COLLECTED: Final = 10_000
"""Maximum cost in units (see `cost`) at which the library may collect all errors of a value. An error takes 5 to 10 µs
and may correspond to a single unit, so this is at most 0.1 s. At a higher cost only the first error is determined."""
_MAX_SHOWN: Final = 100_000
"""Maximum size of a value whose errors are determined, in values plus hundreds of characters. The library copies the
value into each error, which takes 0.6 µs for each unit of this size."""
_MAX_SHOWN_DEPTH: Final = 200
"""Maximum depth of a value whose errors are determined. The library raises ValueError for an error in a value nested
over 255 deep."""
_MAX_SEARCH_S: Final = 0.05
"""CPU time in seconds after which the search for errors ends."""
_TOO_LARGE: Final = "is too large to validate against this schema: send a smaller value, or simplify the schema"
_MARK: Final = secrets.token_hex(9)
"""Prefix of the strings that replace values which JSON does not have. It is random, so that a client cannot send such a
string."""
_FOREIGN: Final = {"type": "string", "pattern": "^" + _MARK}
"""Schema that only these strings fit."""


class CompiledSchema:
    """A compiled schema, which validates values.

    Args:
        schema: Self-contained schema.
        weight: Weight of the schema.

    Raises:
        jsonschema_rs.ValidationError: The library cannot compile the schema.
    """

    def __init__(self, schema: Schema, weight: Weight) -> None:
        self.schema: dict[str, Any] = {**schema}
        """The self-contained schema, as models are shown it."""
        self._weight = weight
        self._plain = _compiled(_Forms(schema, is_plain=True).of(schema))
        self._foreign_validator: Any = None
        """Validator for values that JSON does not have; few schemas need it, so it is compiled on first use."""

    def __repr__(self) -> str:
        return f"<CompiledSchema {cut(repr(self.schema))}>"

    def faults(self, value: object) -> list[Fault]:
        """Validate a value.

        Returns:
            At most ten errors, sorted by JSON pointer; an empty list if the value is valid.
        """
        size = measure(value)
        is_recursive = "$defs" in self.schema
        if size.depth > MAX_DEPTH or (is_recursive and self._weight.height * size.depth > MAX_STACK):
            return [("", f"is nested {size.depth} deep, which is too deep to validate against this schema")]
        if self._weight.cost(size) > MAX_COST:
            return [("", _TOO_LARGE)]
        judged = value if size.is_plain else _json_value(value)
        try:
            if self._validator(size.is_plain).is_valid(judged):
                return []
        except ValueError:
            # `uniqueItems`, `const` and `enum` convert whole lists and maps, which the library does down to a depth of
            # 255 only. Other keywords have no such limit, so deeper values are not refused in general.
            return [("", f"is nested {size.depth} deep, which is too deep to validate against this schema")]
        return _Search(self.schema, self._weight, is_plain=size.is_plain).run(judged, size)

    def _validator(self, is_plain: bool) -> Any:
        if is_plain:
            return self._plain
        if self._foreign_validator is None:
            self._foreign_validator = _compiled(_Forms(self.schema, is_plain=False).of(self.schema))
        return self._foreign_validator


def _compiled(form: object) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        cast("dict[str, Any] | bool", form),
        validate_formats=False,  # `format` is an annotation in draft 2020-12
        pattern_options=jsonschema_rs.RegexOptions(),  # linear time, without look-around
        retriever=_refuse_to_retrieve,
    )


def _refuse_to_retrieve(uri: str) -> NoReturn:
    # The compiler leaves only references into `$defs`, so this is never called; the library's default would use HTTP.
    raise ValueError(f"{uri}: remote references are not fetched")


# --- forms of a schema for the library ---------------------------------------------------------------


class _Part(NamedTuple):
    """A part of a schema that is opaque in an outline; a later step of the search examines it."""

    keyword: str
    """`$ref`, `anyOf` or `oneOf`; empty if the rule is a whole schema."""
    rule: Any
    """Value of the keyword, or the schema."""


class _Forms:
    """Rewrites a schema and its parts for the library, with only the keywords that can reject a value.

    Args:
        schema: A self-contained schema.
        is_plain: False if values may contain the strings that replace values which JSON does not have. These strings
            then have no JSON type, and no keyword for strings applies to them.
    """

    def __init__(self, schema: Schema, *, is_plain: bool) -> None:
        self._is_plain = is_plain
        self._definitions = {name: self._form(part) for name, part in definitions_of(schema).items()}
        self.opaque: dict[str, _Part] = {}
        """Opaque parts of the outlines, by the `repr` of the schema that the library reports for each."""

    def of(self, part: object) -> object:
        """Return the form of a subschema that decides whether a value is valid."""
        return self._ordered(self._form(part), {})

    def outline(self, part: Schema) -> object:
        """Return the outline of a subschema, in which some parts are opaque and recorded in `opaque`.

        These are references, choices, and inner schemas with `unevaluated…`. The `unevaluated…` keywords of the
        subschema itself are left out.
        """
        first = len(self.opaque)
        form = self._form(part, is_outline=True, is_top=True)
        opaque: dict[str, object] = {}
        for number, (keyword, rule) in enumerate([*self.opaque.values()][first:], first):
            opaque[f"part-{number}"] = self._form({keyword: rule} if keyword else rule)
        return self._ordered(form, opaque)

    def _ordered(self, form: object, opaque: dict[str, object]) -> object:
        """Return a form together with the definitions, arranged so that the cost is limited."""
        # The library caches verdicts only for a reference to a definition that is still being compiled. Without the
        # arrangement below, a chain of 18 `oneOf` inside a cycle takes over 20 s instead of 4 ms.
        #
        # The library is made to compile a chain of definitions `via-…` first, each inside the previous one. Inside the
        # innermost one it compiles the real definitions and the form. All their references point to the chain, whose
        # definitions are still being compiled at that time. The chain is below a property that no value has, so it
        # rejects nothing.
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
                form[keyword] = self._rule(keyword, rule, is_outline and keyword not in _WITHOUT_ERRORS)
        if "additionalProperties" in form:
            form.setdefault("properties", {})  # without it, the library's message does not name the additional property
        if not self._is_plain and (condition := _string_condition(form)):
            more.append(condition)
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
        """Record a part as opaque, and return the schema that replaces it."""
        # `not not` reports a failure without details. It contains a reference, because the library copies the schema
        # in `not` into each error.
        judged = {"not": {"$ref": reference_to(f"part-{len(self.opaque)}")}}
        self.opaque[repr(judged)] = part
        return {"not": judged}


_CHOICES: Final = frozenset(("$ref", "anyOf", "oneOf"))
_WITHOUT_ERRORS: Final = frozenset(("contains", "if", "not", "propertyNames"))
"""Keywords whose subschemas produce no separate errors, or, for `propertyNames`, only apply to strings. An outline
therefore needs no opaque parts in them."""
_VALIDATING: Final = (SIMPLE_KEYWORDS | SCHEMA_KEYWORDS | SCHEMA_LIST_KEYWORDS | SCHEMA_MAP_KEYWORDS | {"$ref"}) - {
    "contentSchema"
}


def _string_condition(form: dict[str, Any]) -> Schema | None:
    """Move the keywords for strings out of a form into a condition, which applies them to real strings only.

    Returns:
        The condition; None if the form has no such keywords.
    """
    # A string that replaces another value must not fit `type: string`, either.
    text = {keyword: form.pop(keyword) for keyword in ("maxLength", "minLength", "pattern") if keyword in form}
    foreign = {"not": _FOREIGN} if "string" in form.get("type", ()) else True
    return {"if": _FOREIGN, "then": foreign, "else": text} if text or foreign is not True else None


# --- values that JSON does not have -------------------------------------------------------------------


def _json_value(value: Any) -> Any:
    """Return a copy of a value in which everything that JSON does not have is replaced; equal values stay equal."""
    match value:
        case dict():
            made: dict[str, Any] = {}
            for name, item in cast("dict[Any, Any]", value).items():
                made[_json_value(name) if isinstance(name, str) else _foreign(name)] = _json_value(item)
            return made
        case list():
            items: list[Any] = []
            # A comprehension would use a second stack frame for each level (Python 3.11).
            for item in cast("list[Any]", value):
                items.append(_json_value(item))  # noqa: PERF401
            return items
        case str():  # the library cannot encode lone surrogates
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
"""Replacements of floats that are not JSON numbers: larger than every float, and not integers."""


def _foreign(value: object) -> str:
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)  # so that equal times become equal strings
    return f"{_MARK}{value!r}"


def _shown(message: str) -> str:
    """Return a message of the library in which replaced values appear as Python shows them."""
    for name, number in _NUMBERS.items():
        message = message.replace(str(number), name)
    return cut(message.replace(_MARK, ""))


# --- search for errors ---------------------------------------------------------------------------------


_Steps: TypeAlias = tuple[str | int, ...]
"""Path into a value: keys and indexes."""


class _Search:
    """Finds the errors of one invalid value."""

    def __init__(self, schema: Schema, weight: Weight, *, is_plain: bool) -> None:
        self._schema = schema
        self._definitions = definitions_of(schema)
        self._weight = weight
        self._forms = _Forms(schema, is_plain=is_plain)
        self._outlines: dict[int, Any] = {}
        """Validators of outlines by the `id` of the subschema, which exists as long as this object."""
        self._pending: list[tuple[_Part, _Steps, Any]] = []
        """Parts of the schema to examine, each with the path and the value that does not fit it."""
        self._seen: set[tuple[str | int, _Steps]] = set()
        """Parts that were recorded for examination, with the path."""
        self._faults: set[Fault] = set()
        self._end = time.thread_time() + _MAX_SEARCH_S

    def run(self, value: object, size: Size) -> list[Fault]:
        """Return the errors of an invalid value."""
        if size.nodes + size.characters // 100 > _MAX_SHOWN or size.depth > _MAX_SHOWN_DEPTH:
            return [("", "does not fit the schema; the value is too large or too deep to find the place of the error")]
        self._pending.append((_Part("", self._schema), (), value))
        while self._pending and len(self._faults) < _MAX_FAULTS:
            part, steps, inner = self._pending.pop()
            if self._is_late():
                self._fault(steps, "does not fit the schema; finding the reason would take too long")
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
        """Collect the errors of a value that does not fit a subschema, and the opaque parts to examine next."""
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
        # Each error has a copy of the value at its place. The terms with depth and characters limit the total size of
        # these copies.
        most = self._weight.node * (size.nodes + size.nodes * size.depth // 10 + size.characters // 1000)
        return list(validator.iter_errors(value)) if most <= _MAX_COLLECTED else _first_error(validator, value)

    def _choose(self, part: _Part, steps: _Steps, value: object) -> None:
        """Examine a value that does not fit an `anyOf` or `oneOf`.

        If only one branch is for the type of the value, the search continues in this branch. Otherwise the choice
        itself is reported, since it is unknown which branch was meant.
        """
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
        """Return the `type` of a schema, or of the definition that it refers to; None if it has none."""
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
    """Return a message in the style of the library, which begins with the value."""
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
            return f"{error.message} if other properties are present (dependentRequired)"
        case kinds.FalseSchema():
            return _instead(error.instance, "is not allowed: the schema accepts no value here")
        case _:
            return error.message


_CONTAINS: Final = {
    "contains": "has no item that fits the schema in contains",
    "maxContains": "has more items that fit the schema in contains than maxContains",
    "minContains": "has fewer items that fit the schema in contains than minContains",
}
"""Messages by keyword, because the library reports that no item fits for all three keywords."""
