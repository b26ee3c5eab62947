"""A value validated by a compiled schema; what is wrong with it is told by JSON pointers and short messages.

jsonschema-rs decides: `is_valid` is fast, and its cost is bounded (see `cost`). Its own error collection is not used:
it collects all errors at once, takes exponential time in nested `anyOf`, and repeats whole values in its messages. The
search for the faults of an invalid value is ours instead: it goes from the root to the parts of the schema that the
value does not fit, asks the library at each step, and ends at ten faults or when its budget is used up.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain
from typing import Any, Final, NoReturn, cast

import jsonschema_rs

from axon_zmq.jsonschema.cost import MAX_COST, Bound, Size
from axon_zmq.jsonschema.keywords import (
    SCHEMA_KEYWORDS,
    SCHEMA_LIST_KEYWORDS,
    SCHEMA_MAP_KEYWORDS,
    SIMPLE_KEYWORDS,
    brief,
    brief_names,
    pointer_of,
    reference_name,
    reference_to,
)

Fault = tuple[str, str]
"""JSON pointer and message."""
_MAX_FAULTS: Final = 10
"""Faults of one value that are reported; a model that is asked again needs no more."""
_MAX_MESSAGE: Final = 300
"""Characters of one message."""
_MAX_VALUE_DEPTH: Final = 512
"""Lists and maps inside one another in a value. The library recurses on the stack of its thread, in each level as deep
as the schema. msgpack allows 1024."""
_MAX_SEARCH_DEPTH: Final = 64
"""Schemas inside one another that the search for faults enters, each for a deeper place or a narrower reason."""
_MAX_SEARCH_S: Final = 0.2
"""Seconds of CPU time after which the search for faults goes no further."""
_TOO_MUCH: Final = "is too much to check against this schema: send less, or make the schema simpler"
_SLICE: Final = 256
"""Items of a list that are judged at a time to find those that do not fit."""
_MARK: Final = "\ue000" + secrets.token_hex(8)
"""Begins the strings that stand for what JSON does not have. It is random, so that no value can pretend to be one."""
_FOREIGN: Final = {"type": "string", "pattern": "^" + _MARK}
_NAN: Final = f"{_MARK}nan"


class CompiledSchema:
    """A schema that was checked, ready to validate values.

    Args:
        schema: Self-contained, as models are shown it.
        bound: What validating by it may take.

    Raises:
        jsonschema_rs.ValidationError: The library cannot compile it.
    """

    def __init__(self, schema: dict[str, Any], bound: Bound) -> None:
        self.schema = schema
        self._bound = bound
        self._plain = _compiled(library_form(schema, schema, is_plain=True))
        self._tolerant: Any = None

    def __repr__(self) -> str:
        return f"<CompiledSchema {brief(self.schema)}>"

    def faults(self, value: Any) -> list[Fault]:
        """What is wrong with a value: at most ten faults, sorted by pointer; empty if it fits."""
        size = measure(value)
        if size.depth > _MAX_VALUE_DEPTH or self._bound.is_deep(size):
            return [("", f"is nested {size.depth} deep, which is too much to check against this schema")]
        if self._bound.cost(size) > MAX_COST:
            return [("", _TOO_MUCH)]
        judged = value if size.is_plain else _json_value(value)
        if self._validator(size.is_plain).is_valid(judged):
            return []
        return _Search(self.schema, size.is_plain).run(value, judged)

    def _validator(self, is_plain: bool) -> Any:
        if is_plain:
            return self._plain
        if self._tolerant is None:
            self._tolerant = _compiled(library_form(self.schema, self.schema, is_plain=False))
        return self._tolerant


def is_pattern(pattern: str) -> bool:
    """Whether the library can match a pattern in linear time."""
    try:
        _compiled({"pattern": pattern})
    except jsonschema_rs.ValidationError:
        return False
    return True


def _compiled(schema: Any) -> Any:
    return jsonschema_rs.Draft202012Validator(
        schema,
        validate_formats=False,  # `format` is an annotation in draft 2020-12
        pattern_options=jsonschema_rs.RegexOptions(),  # linear time, without look-around
        retriever=_retrieve_nothing,
    )


def _retrieve_nothing(uri: str) -> NoReturn:
    """Never reached, since the compiler leaves no other reference than into `$defs`; the default would use HTTP."""
    raise ValueError(f"{uri}: nothing is fetched")


# --- the form of a schema that the library gets ------------------------------------------------------


def library_form(part: dict[str, Any], root: dict[str, Any], *, is_plain: bool) -> dict[str, Any]:
    """A part of a schema with nothing but what validates, and with its definitions in the order that bounds the cost.

    The library keeps verdicts only for a reference to a definition that is still being compiled. So the first thing
    that it compiles is a chain of one definition `via-…` for each recursive one, each inside the one before; in the
    innermost the recursive definitions themselves are compiled, whose references lead to the chain. The chain is under
    the name of a property that no value has.

    Args:
        part: A self-contained schema, or a part of it.
        root: The schema itself.
        is_plain: False to let in the strings that stand for what JSON does not have: they are of no type, and no
            keyword for strings applies to them.
    """
    form = _form(part, is_plain)
    definitions: dict[str, Any] = root.get("$defs", {})
    if not definitions or not _has_reference(form):
        return form
    chained: dict[str, Any] = {}
    inner: dict[str, Any] = {"anyOf": [{"$ref": reference_to(name)} for name in definitions]}
    for name, definition in definitions.items():
        chained[name] = _form(definition, is_plain)
        chained[_VIA + name] = {"allOf": [{"properties": {_MARK: inner}}, {"$ref": reference_to(name)}]}
        inner = {"$ref": reference_to(_VIA + name)}
    return {"allOf": [{"properties": {_MARK: inner}}, form], "$defs": chained}


_VIA: Final = "via-"


def _form(part: Any, is_plain: bool) -> Any:
    if not isinstance(part, dict):
        return part
    form: dict[str, Any] = {}
    for keyword, rule in cast("dict[str, Any]", part).items():
        if keyword in SIMPLE_KEYWORDS:
            foreign = keyword in ("const", "enum") and not measure(rule).is_plain
            form[keyword] = _json_value(rule) if foreign else rule
        elif keyword in SCHEMA_MAP_KEYWORDS:
            form[keyword] = {name: _form(inner, is_plain) for name, inner in rule.items()}
        elif keyword in SCHEMA_LIST_KEYWORDS:
            form[keyword] = [_form(inner, is_plain) for inner in rule]
        elif keyword in SCHEMA_KEYWORDS and keyword != "contentSchema":
            form[keyword] = _form(rule, is_plain)
        elif keyword == "$ref":
            form[keyword] = reference_to(_VIA + reference_name(rule))
    return form if is_plain else _tolerant(form)


def _has_reference(form: Any) -> bool:
    pending = [form]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if "$ref" in item:
                return True
            pending.extend(cast("dict[str, Any]", item).values())
        elif isinstance(item, list):
            pending.extend(cast("list[Any]", item))
    return False


def _tolerant(form: dict[str, Any]) -> dict[str, Any]:
    more: list[Any] = []
    if "type" in form:
        kind = form.pop("type")
        types = {"type": kind, "not": _FOREIGN}
        is_number = kind == "number" or "number" in kind
        more.append({"anyOf": [types, {"const": _NAN}]} if is_number else types)
    if text := {keyword: form.pop(keyword) for keyword in ("maxLength", "minLength", "pattern") if keyword in form}:
        more.append({"anyOf": [_FOREIGN, text]})
    return {**form, "allOf": [*form.get("allOf", ()), *more]} if more else form


# --- what JSON does not have --------------------------------------------------------------------------


def _json_value(value: Any) -> Any:
    """The same value, with strings in place of what JSON does not have; equal ones get equal strings."""
    if isinstance(value, dict):
        made: dict[str, Any] = {}
        for name, item in cast("dict[Any, Any]", value).items():
            made[_text(name) if isinstance(name, str) else _foreign(name)] = _json_value(item)
        return made
    if isinstance(value, list):
        items: list[Any] = []
        for item in cast("list[Any]", value):  # no comprehension: it would take a second frame for each level
            items.append(_json_value(item))  # noqa: PERF401
        return items
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and not math.isnan(value):
        return value if math.isfinite(value) else _INFINITE.copy_sign(Decimal(value))
    return _foreign(value)


_INFINITE: Final = Decimal("1" + "0" * 309 + ".5")
"""Over every float, and no integer."""


def _text(text: str) -> str:
    """A string without lone surrogates, which cannot be encoded."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _foreign(value: Any) -> str:
    match value:
        case bytes():
            return f"{_MARK}bytes:{value.hex()}"
        case float():
            return _NAN
        case datetime() if value.tzinfo is not None:
            return f"{_MARK}datetime:{value.astimezone(UTC).isoformat()}"
        case _:
            return f"{_MARK}{type(value).__name__}:{value!r}"


# --- size --------------------------------------------------------------------------------------------


def measure(value: Any) -> Size:
    """The size of a value, counted level by level; levels from `_MAX_VALUE_DEPTH` on are left out."""
    counts = _Counts()
    level = [value]
    nodes = nested = depth = 0
    while level and depth <= _MAX_VALUE_DEPTH:
        nodes += len(level)
        nested += depth * len(level)
        level = counts.enter(level)
        depth += 1
    return Size(nodes, counts.maps, counts.characters, nested, depth, counts.is_plain)


class _Counts:
    """Counts the values of one level at a time, by functions that loop in C: 40 ns for each value."""

    def __init__(self) -> None:
        self.maps = 0
        self.characters = 0
        self.is_plain = True

    def enter(self, level: list[Any]) -> list[Any]:
        """Count the values of a level; returns those of the next one."""
        kinds = set(map(type, level))
        inner: list[Any] = []
        if dict in kinds:
            maps = [item for item in level if type(item) is dict]
            self.maps += len(maps)
            for item in maps:
                inner.extend(item.values())
            self._strings(list(chain.from_iterable(maps)))
        if list in kinds:
            for item in level:
                if type(item) is list:
                    inner.extend(item)
        if str in kinds:
            self._strings([item for item in level if type(item) is str])
        if float in kinds and self.is_plain:
            self.is_plain = all(math.isfinite(item) for item in level if type(item) is float)
        if not kinds <= _JSON_TYPES:
            self.is_plain = False
            self.characters += sum(len(item) for item in level if type(item) is bytes)
        return inner

    def _strings(self, strings: list[Any]) -> None:
        if set(map(type, strings)) <= {str}:
            self.characters += sum(map(len, strings))
            self.is_plain = self.is_plain and all(text.isascii() or _text(text) == text for text in strings)
        else:  # names of maps alone may be no strings
            self.is_plain = False


_JSON_TYPES: Final = frozenset((bool, dict, float, int, list, str, type(None)))


# --- messages ----------------------------------------------------------------------------------------


def message_for(keyword: str, rule: Any, value: Any) -> str:
    """What is wrong with a value that does not fit one keyword of a schema."""
    shown = brief(value)
    if keyword in _LIMITS:
        return f"{shown} {_LIMITS[keyword].format(brief(rule))}"
    match keyword:
        case "type":
            kinds = cast("list[str]", rule if isinstance(rule, list) else [rule])
            return f"{shown} is not of type {', '.join(map(repr, kinds))}"
        case "const":
            return f"{brief(rule)} was expected"
        case "enum":
            return f"{shown} is not one of {brief(rule)}"
        case "required":
            missing = [name for name in rule if name not in value] if isinstance(value, dict) else []
            return f"{brief_names(missing)} {'is a required property' if len(missing) == 1 else 'are required'}"
        case "uniqueItems":
            return f"{shown} has non-unique elements"
        case "anyOf" | "oneOf":
            return f"{shown} is not valid under any of the given schemas"
        case "not":
            return f"{shown} should not be valid under {brief(rule)}"
        case _:
            return f"{shown} does not fit {keyword} {brief(rule)}"


_LIMITS: Final = {
    "exclusiveMaximum": "is not less than the exclusive maximum of {}",
    "exclusiveMinimum": "is not greater than the exclusive minimum of {}",
    "maxItems": "is too long: at most {} items are allowed",
    "maxLength": "is too long: at most {} characters are allowed",
    "maxProperties": "has too many properties: at most {} are allowed",
    "maximum": "is greater than the maximum of {}",
    "minItems": "is too short: at least {} items are needed",
    "minLength": "is too short: at least {} characters are needed",
    "minProperties": "does not have enough properties: at least {} are needed",
    "minimum": "is less than the minimum of {}",
    "multipleOf": "is not a multiple of {}",
    "pattern": "does not match {}",
}


class _ExhaustedError(Exception):
    """The search has used up its budget."""


class _DoneError(Exception):
    """The search has found as many faults as are reported."""


class _Place:
    """A value inside the one that is invalid."""

    __slots__ = ("shown", "steps", "value")

    def __init__(self, shown: Any, value: Any, steps: tuple[Any, ...] = ()) -> None:
        self.shown = shown
        """As it came."""
        self.value = value
        """As the library gets it."""
        self.steps = steps

    def members(self) -> Iterator[tuple[Any, str, _Place]]:
        """Each member of a map: its name as it came and as the library gets it, and the member."""
        for (name, shown), (key, value) in zip(self.shown.items(), self.value.items(), strict=True):
            yield name, key, _Place(shown, value, (*self.steps, name))

    def item(self, index: int) -> _Place:
        """One item of a list."""
        return _Place(self.shown[index], self.value[index], (*self.steps, index))


class _Search:
    """Finds the faults of one invalid value."""

    def __init__(self, schema: dict[str, Any], is_plain: bool) -> None:
        self._schema = schema
        self._definitions: dict[str, Any] = schema.get("$defs", {})
        self._is_plain = is_plain
        self._end = time.thread_time() + _MAX_SEARCH_S
        self._depth = 0
        self._in_place: dict[str, Callable[[dict[str, Any], _Place], None]] = {
            "$ref": self._reference,
            "allOf": self._all_of,
            "anyOf": self._any_of,
            "dependentSchemas": self._dependent_schemas,
            "if": self._if,
            "not": self._not,
            "oneOf": self._one_of,
        }
        """What reports the faults by each keyword whose schemas apply to the same value."""
        self._faults: list[Fault] = []
        self._validators: dict[int, tuple[Any, Any]] = {}
        """By the `id` of a schema: its validator, and the schema, so that the `id` stays its own."""
        self._single: dict[tuple[str, int], dict[str, Any]] = {}

    def run(self, shown: Any, value: Any) -> list[Fault]:
        """The faults of a value that is invalid."""
        place = _Place(shown, value)
        try:
            self._enter(self._schema, place)
        except _DoneError:
            pass
        except _ExhaustedError:
            if not self._faults:
                self._faults.append(("", _cut(f"{brief(shown)} does not fit the schema; it is too large to say where")))
        return sorted(self._faults)

    def _fault(self, place: _Place, message: str) -> None:
        self._faults.append((pointer_of(place.steps), _cut(message)))
        if len(self._faults) >= _MAX_FAULTS:
            raise _DoneError

    def _fits(self, part: Any, place: _Place) -> bool:
        if isinstance(part, bool):
            return part
        if time.thread_time() > self._end:
            raise _ExhaustedError
        return bool(self._validator(part).is_valid(place.value))

    def _fits_keyword(self, keyword: str, rule: Any, place: _Place) -> bool:
        return self._fits(self._only(keyword, rule), place)

    def _only(self, keyword: str, rule: Any) -> dict[str, Any]:
        return self._single.setdefault((keyword, id(rule)), {keyword: rule})

    def _validator(self, part: dict[str, Any]) -> Any:
        if id(part) not in self._validators:
            form = library_form(part, self._schema, is_plain=self._is_plain)
            self._validators[id(part)] = _compiled(form), part
        return self._validators[id(part)][0]

    # --- from a schema to its parts --------------------------------------------------------------

    def _enter(self, part: Any, place: _Place) -> None:
        """Report the faults of a value that does not fit this part of the schema: at least one."""
        if not isinstance(part, dict):
            self._fault(place, f"no value is allowed here, but there is {brief(place.shown)}")
            return
        before = len(self._faults)
        if self._depth >= _MAX_SEARCH_DEPTH:
            self._fault(place, f"{brief(place.shown)} does not fit the schema")
            return
        self._depth += 1
        schema = cast("dict[str, Any]", part)
        for keyword, rule in schema.items():
            if keyword in SIMPLE_KEYWORDS:
                self._simple(keyword, rule, place)
            elif keyword in self._in_place:
                self._in_place[keyword](schema, place)
        if isinstance(place.value, dict):
            self._properties(schema, place)
        elif isinstance(place.value, list):
            self._items(schema, place)
        if len(self._faults) == before:
            self._rest(schema, place)
        self._depth -= 1

    def _enter_unfit(self, part: Any, place: _Place) -> None:
        if not self._fits(part, place):
            self._enter(part, place)

    def _simple(self, keyword: str, rule: Any, place: _Place) -> None:
        if keyword in ("maxContains", "minContains") or self._fits_keyword(keyword, rule, place):
            return
        if keyword != "dependentRequired":
            self._fault(place, message_for(keyword, rule, place.shown))
            return
        for name in rule.keys() & place.value.keys():
            if missing := [other for other in rule[name] if other not in place.value]:
                self._fault(place, f"{brief_names(missing)} must be there, too, if {brief(name)} is")

    # --- keywords for the same value -------------------------------------------------------------

    def _reference(self, schema: dict[str, Any], place: _Place) -> None:
        self._enter_unfit(self._definitions[reference_name(schema["$ref"])], place)

    def _all_of(self, schema: dict[str, Any], place: _Place) -> None:
        for part in schema["allOf"]:
            self._enter_unfit(part, place)

    def _any_of(self, schema: dict[str, Any], place: _Place) -> None:
        if not self._fits_keyword("anyOf", schema["anyOf"], place):
            self._none_fits(schema["anyOf"], place)

    def _one_of(self, schema: dict[str, Any], place: _Place) -> None:
        fitting: list[int] = []
        for index, part in enumerate(schema["oneOf"]):
            if self._fits(part, place):
                fitting.append(index)
            if len(fitting) > 1:
                which = f"{fitting[0]} and {fitting[1]}"
                shown = brief(place.shown)
                self._fault(place, f"{shown} is valid under more than one of the given schemas: {which}")
                return
        if not fitting:
            self._none_fits(schema["oneOf"], place)

    def _none_fits(self, parts: list[Any], place: _Place) -> None:
        """Report a value that none of several schemas fits: by the only one that is for its type, if there is one."""
        typed = [(part, self._type_of(part)) for part in parts]
        fitting = [part for part, kind in typed if kind is None or self._fits_keyword("type", kind, place)]
        if len(fitting) == 1 and all(kind is not None for _, kind in typed):
            self._enter(fitting[0], place)
        else:
            self._fault(place, message_for("anyOf", parts, place.shown))

    def _type_of(self, part: Any) -> Any:
        for _ in self._definitions.keys() | {""}:
            if not isinstance(part, dict) or "type" in part or "$ref" not in part:
                break
            part = self._definitions[reference_name(part["$ref"])]
        return cast("dict[str, Any]", part).get("type") if isinstance(part, dict) else None

    def _not(self, schema: dict[str, Any], place: _Place) -> None:
        if self._fits(schema["not"], place):
            self._fault(place, message_for("not", schema["not"], place.shown))

    def _if(self, schema: dict[str, Any], place: _Place) -> None:
        branch = "then" if self._fits(schema["if"], place) else "else"
        if branch in schema:
            self._enter_unfit(schema[branch], place)

    def _dependent_schemas(self, schema: dict[str, Any], place: _Place) -> None:
        if isinstance(place.value, dict):
            for name, part in schema["dependentSchemas"].items():
                if name in place.value:
                    self._enter_unfit(part, place)

    # --- keywords for the values inside ----------------------------------------------------------

    def _properties(self, schema: dict[str, Any], place: _Place) -> None:
        if not schema.keys() & {"additionalProperties", "patternProperties", "properties", "propertyNames"}:
            return
        properties: dict[str, Any] = schema.get("properties", {})
        patterns: dict[str, Any] = schema.get("patternProperties", {})
        extra: list[Any] = []
        for name, key, member in place.members():
            if "propertyNames" in schema:
                self._enter_unfit(schema["propertyNames"], _Place(name, key, place.steps))
            parts = [properties[key]] if key in properties else []
            text = _Place(name, key)
            parts += [part for pattern, part in patterns.items() if self._fits_keyword("pattern", pattern, text)]
            if not parts and "additionalProperties" in schema:
                if schema["additionalProperties"] is False:
                    extra.append(name)
                    continue
                parts = [schema["additionalProperties"]]
            for part in parts:
                self._enter_unfit(part, member)
        if extra:
            self._fault(place, _not_allowed("Additional properties", extra))

    def _items(self, schema: dict[str, Any], place: _Place) -> None:
        prefix: list[Any] = schema.get("prefixItems", [])
        for index, part in enumerate(prefix[: len(place.value)]):
            self._enter_unfit(part, place.item(index))
        if schema.get("items") is False and len(place.value) > len(prefix):
            self._fault(place, message_for("maxItems", len(prefix), place.shown))
        elif "items" in schema:
            self._rest_of_items(schema["items"], place, len(prefix))
        if "contains" in schema:
            self._contains(schema, place)

    def _rest_of_items(self, part: Any, place: _Place, start: int) -> None:
        """Search a long list by slices: the library judges an item in a slice in a tenth of the time."""
        for first in range(start, len(place.value), _SLICE):
            inner = place.value[first : first + _SLICE]
            if not self._fits_keyword("items", part, _Place(inner, inner)):
                for index in range(first, first + len(inner)):
                    self._enter_unfit(part, place.item(index))

    def _contains(self, schema: dict[str, Any], place: _Place) -> None:
        least, most = schema.get("minContains", 1), schema.get("maxContains", math.inf)
        count = sum(self._fits(schema["contains"], item) for item in map(place.item, range(len(place.value))))
        if not least <= count <= most:
            wanted = f"at least {least}" if count < least else f"at most {most}"
            rule = brief(schema["contains"])
            self._fault(place, f"{brief(place.shown)} has {count} items that fit {rule}; {wanted} must")

    def _rest(self, schema: dict[str, Any], place: _Place) -> None:
        """Report `unevaluated…`, which depends on all other keywords; here it is known that all of these fit."""
        for keyword, what in _UNEVALUATED.items():
            if keyword in schema:
                try:
                    self._validator(schema).validate(place.value)
                except jsonschema_rs.ValidationError as error:
                    names = cast("list[Any]", error.kind.as_dict().get("unexpected", []))
                    self._fault(place, _not_allowed(what, names))
                    return
        self._fault(place, f"{brief(place.shown)} does not fit the schema")


_UNEVALUATED: Final = {"unevaluatedItems": "Unevaluated items", "unevaluatedProperties": "Unevaluated properties"}


def _not_allowed(what: str, names: list[Any]) -> str:
    return f"{what} are not allowed ({brief_names(names)} {'was' if len(names) == 1 else 'were'} unexpected)"


def _cut(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "…"
