"""What judges a value by a JSON Schema: jsonschema (draft 2020-12), with its cost counted and its faults few and short.

Schema and value may both be hostile: patterns run on Rust's regex, which has no look-around and takes linear
time, each keyword counts its steps, and a reason holds no more of a value than a person reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import islice
from typing import Any, Final, cast

from pydantic_core import SchemaValidator, core_schema

from axon_zmq.protocol.requests import pointer_of

Fault = tuple[str, str]
"""JSON pointer and reason."""
_SHOWN: Final = 10
"""Faults of one answer that the model is told of."""
_LONGEST_REASON: Final = 300
"""Characters of one fault's reason."""
_SHOWN_ITEMS: Final = 5
"""Items of a list or map that a reason shows."""
_SHOWN_TEXT: Final = 100
"""Characters of a text that a reason shows."""
_MOST_STEPS: Final = 2_000_000
"""Steps of one judgement. A step takes half a microsecond."""
_KEYWORD: Final = 4
"""Steps that a keyword takes."""
_DESCENT: Final = 8
"""Steps that a keyword takes for each schema in it, or each value inside the one that it judges."""
_COMPARISON: Final = 2
"""Steps that two values' comparison takes for each part."""


def faults_by(schema: dict[str, Any]) -> Callable[[Any], list[Fault]]:
    """What tells the faults of a value, at most ten, by a schema whose references are written out."""
    from referencing import Registry

    judge = _judges()(schema, registry=Registry())

    def faults(value: Any) -> list[Fault]:
        before = _steps.set(_Steps(_MOST_STEPS))
        try:
            found = [
                (
                    pointer_of(fault.absolute_path),
                    _cut(fault.message[:_LONGEST_REASON], len(fault.message) > _LONGEST_REASON),
                )
                for fault in islice(judge.iter_errors(_shy(value)), _SHOWN)
            ]
        except _TooMuchError:
            return [("", _TOO_MUCH)]
        finally:
            _steps.reset(before)
        return sorted(found)

    return faults


_TOO_MUCH: Final = "is too much to check against this schema: send less, or make the schema simpler"


@lru_cache(maxsize=256)
def regex(pattern: str) -> SchemaValidator:
    """A pattern on Rust's regex.

    Raises:
        SchemaError: It has what cannot be run in linear time, or too much of it.
    """
    return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))


def _matches(pattern: str, text: str) -> bool:
    _spend(1 + len(text) // 4)
    return regex(pattern).isinstance_python(text)


@cache
def _judges() -> Any:
    """The class of validators: each keyword counts its steps, and is ours where jsonschema's is not bounded."""
    from jsonschema import Draft202012Validator  # here: a tenth of a worker's start
    from jsonschema.validators import extend

    theirs: dict[str, Any] = dict(Draft202012Validator.VALIDATORS)
    own = {
        "additionalProperties": _additional_properties,
        "anyOf": _any_of,
        "const": _const,
        "dependentRequired": _dependent_required,
        "enum": _enum,
        "not": _not,
        "oneOf": _one_of,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "required": _required,
        "unevaluatedItems": _unevaluated_items,
        "unevaluatedProperties": _unevaluated_properties,
        "uniqueItems": _unique_items,
    }
    counted = {keyword: partial(_counted, judge, keyword) for keyword, judge in {**theirs, **own}.items()}
    return extend(Draft202012Validator, counted)


_IN_PLACE: Final = frozenset(("allOf", "anyOf", "dependentSchemas", "if", "not", "oneOf"))
"""Keywords whose schemas judge the same value."""
_BY_NAME: Final = frozenset(("prefixItems", "properties"))
"""Keywords that have a schema for each of some values inside."""
_EACH: Final = frozenset(
    (
        "additionalProperties",
        "contains",
        "items",
        "patternProperties",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
    )
)
"""Keywords that look at each value inside the one that they judge."""


class _TooMuchError(Exception):
    """A judgement takes more steps than it may."""


@dataclass(slots=True)
class _Steps:
    left: int


_steps: ContextVar[_Steps] = ContextVar("_steps")
"""Of the judgement that is under way."""


def _spend(steps: int) -> None:
    held = _steps.get()
    held.left -= steps
    if held.left < 0:
        raise _TooMuchError


def _counted(keyword: Any, name: str, judge: Any, rule: Any, value: Any, schema: Any) -> Any:
    _spend(_KEYWORD + _breadth(name, _length(rule), _length(value), rule is False))
    return keyword(judge, rule, value, schema)


def _breadth(name: str, rules: int, values: int, is_closed: bool) -> int:
    """Steps that a keyword takes for so many rules in it and so many values inside the one that it judges."""
    if name in _IN_PLACE:
        return max(rules, 1) * _DESCENT
    if name in _BY_NAME:
        return min(rules, values) * _DESCENT + rules // 8
    if name in _EACH:
        return values * (1 if is_closed else _DESCENT)
    return rules // 4


def _length(value: Any) -> int:
    return len(cast("list[Any]", value)) if isinstance(value, dict | list) else 0


class _List(list[Any]):
    """A list whose `repr`, which jsonschema's reasons hold, is short."""

    def __repr__(self) -> str:
        return brief(self)


class _Map(dict[str, Any]):
    def __repr__(self) -> str:
        return brief(self)


class _Text(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return brief(self)


class _Bytes(bytes):
    __slots__ = ()

    def __repr__(self) -> str:
        return brief(self)


def _shy(value: Any) -> Any:
    """The same value, whose parts all have a short `repr`."""
    match value:
        case list():
            return _List(map(_shy, cast("list[Any]", value)))
        case dict():
            return _Map((name, _shy(item)) for name, item in cast("dict[str, Any]", value).items())
        case str() if len(value) > _SHOWN_TEXT:
            return _Text(value)
        case bytes() if len(value) > _SHOWN_TEXT:
            return _Bytes(value)
        case _:
            return value


def brief(value: Any, depth: int = 2) -> str:
    """A value's `repr`, of its beginning where it is long."""
    match value:
        case str():
            return _cut(str.__repr__(value[:_SHOWN_TEXT]), len(value) > _SHOWN_TEXT)
        case bytes():
            return _cut(bytes.__repr__(value[:_SHOWN_TEXT]), len(value) > _SHOWN_TEXT)
        case list():
            shown = [brief(item, depth - 1) for item in cast("list[Any]", value[: depth and _SHOWN_ITEMS])]
            return "[" + _listed(shown, len(cast("list[Any]", value))) + "]"
        case dict():
            items = islice(cast("dict[str, Any]", value).items(), depth and _SHOWN_ITEMS)
            shown = [f"{brief(name)}: {brief(item, depth - 1)}" for name, item in items]
            return "{" + _listed(shown, len(cast("dict[str, Any]", value))) + "}"
        case _:
            return repr(value)


def _cut(text: str, longer: bool) -> str:
    return f"{text}…" if longer else text


def _listed(shown: list[str], count: int) -> str:
    return ", ".join(shown if len(shown) == count else [*shown, "…"])


def _fault(message: str) -> Any:
    from jsonschema import ValidationError

    return ValidationError(message)


def _any_of(judge: Any, parts: list[Any], value: Any, _schema: Any) -> Iterator[Any]:
    if not any(judge.evolve(schema=part).is_valid(value) for part in parts):
        yield _fault(f"{brief(value)} is not valid under any of the given schemas")


def _one_of(judge: Any, parts: list[Any], value: Any, _schema: Any) -> Iterator[Any]:
    fitting = list(islice((n for n, part in enumerate(parts) if judge.evolve(schema=part).is_valid(value)), 2))
    if not fitting:
        yield _fault(f"{brief(value)} is not valid under any of the given schemas")
    elif len(fitting) > 1:
        yield _fault(f"{brief(value)} is valid under more than one of the given schemas: {fitting[0]} and {fitting[1]}")


def _not(judge: Any, part: Any, value: Any, _schema: Any) -> Iterator[Any]:
    if judge.evolve(schema=part).is_valid(value):
        yield _fault(f"{brief(value)} should not be valid under {brief(part)}")


def _enum(_judge: Any, known: list[Any], value: Any, _schema: Any) -> Iterator[Any]:
    if not any(_same(item, value) for item in known):
        yield _fault(f"{brief(value)} is not one of {brief(known)}")


def _const(_judge: Any, wanted: Any, value: Any, _schema: Any) -> Iterator[Any]:
    if not _same(wanted, value):
        yield _fault(f"{brief(wanted)} was expected")


def _required(_judge: Any, names: list[str], value: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from (_fault(f"{brief(name)} is a required property") for name in names if name not in value)


def _dependent_required(_judge: Any, rules: dict[str, list[str]], value: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for name in rules.keys() & value.keys():
            _spend(len(rules[name]))
            missing = (other for other in rules[name] if other not in value)
            yield from (_fault(f"{brief(other)} is a dependency of {brief(name)}") for other in missing)


def _pattern(_judge: Any, pattern: str, value: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(value, str) and not _matches(pattern, value):
        yield _fault(f"{brief(value)} does not match {brief(pattern)}")


def _pattern_properties(judge: Any, rules: dict[str, Any], value: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for pattern, rule in rules.items():
            for name in value:
                if _matches(pattern, name):
                    yield from judge.descend(value[name], rule, path=name, schema_path=pattern)


def _additional_properties(judge: Any, rule: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if isinstance(value, dict):
        named = _named_properties(value, schema)
        yield from _rest(judge, rule, value, [name for name in value if name not in named], "Additional properties")


def _unevaluated_properties(judge: Any, rule: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if isinstance(value, dict):
        judged = _judged_properties(judge, value, schema)
        yield from _rest(judge, rule, value, [name for name in value if name not in judged], "Unevaluated properties")


def _unevaluated_items(judge: Any, rule: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if isinstance(value, list):
        judged = _judged_items(judge, value, schema)
        yield from _rest(judge, rule, value, [n for n in range(len(value)) if n not in judged], "Unevaluated items")


def _rest(judge: Any, rule: Any, value: Any, keys: list[Any], what: str) -> Iterator[Any]:
    if keys and rule is False:
        names = _listed([brief(key) for key in keys[:_SHOWN_ITEMS]], len(keys))
        yield _fault(f"{what} are not allowed ({names} {'was' if len(keys) == 1 else 'were'} unexpected)")
        return
    for key in keys:
        yield from judge.descend(value[key], rule, path=key)


def _named_properties(value: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    _spend(len(value))
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    return {name for name in value if name in properties or any(_matches(pattern, name) for pattern in patterns)}


def _judged_properties(judge: Any, value: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    """Names that other keywords than its own `unevaluatedProperties` judge, in a schema that the value fits."""
    if "additionalProperties" in schema:
        return set(value)
    judged = _named_properties(value, schema)
    for part in _in_force(judge, value, schema):
        judged |= set(value) if "unevaluatedProperties" in part else _judged_properties(judge, value, part)
    return judged


def _judged_items(judge: Any, value: list[Any], schema: dict[str, Any]) -> set[int]:
    """Indices that other keywords than its own `unevaluatedItems` judge, in a schema that the value fits."""
    _spend(len(value) * (_DESCENT if "contains" in schema else 1))
    if "items" in schema:
        return set(range(len(value)))
    judged = set(range(len(schema.get("prefixItems", ()))))
    if "contains" in schema:
        contained = judge.evolve(schema=schema["contains"])
        judged |= {n for n, item in enumerate(value) if contained.is_valid(item)}
    for part in _in_force(judge, value, schema):
        judged |= set(range(len(value))) if "unevaluatedItems" in part else _judged_items(judge, value, part)
    return judged


def _in_force(judge: Any, value: Any, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas inside a schema that judge the same value, and that it fits."""

    def fits(part: Any) -> bool:
        _spend(_DESCENT)
        return judge.evolve(schema=part).is_valid(value)

    parts: list[Any] = [*schema.get("allOf", ())]
    _spend(len(parts))
    parts += [part for key in ("anyOf", "oneOf") for part in schema.get(key, ()) if fits(part)]
    if isinstance(value, dict):
        parts += [part for name, part in schema.get("dependentSchemas", {}).items() if name in value]
    if "if" in schema:
        parts += [schema["if"], schema.get("then")] if fits(schema["if"]) else [schema.get("else")]
    return (part for part in parts if isinstance(part, dict))


def _unique_items(_judge: Any, unique: bool, value: Any, _schema: Any) -> Iterator[Any]:
    if unique and isinstance(value, list) and len({_identity(item) for item in value}) < len(value):
        yield _fault(f"{brief(value)} has non-unique elements")


def _same(one: Any, two: Any) -> bool:
    """Whether JSON Schema calls two values equal: 1 and 1.0, but not true and 1."""
    _spend(_COMPARISON)
    match one, two:
        case list(), list():
            ours, others = cast("list[Any]", one), cast("list[Any]", two)
            return len(ours) == len(others) and all(map(_same, ours, others))
        case dict(), dict():
            mine, yours = cast("dict[str, Any]", one), cast("dict[str, Any]", two)
            return mine.keys() == yours.keys() and all(_same(item, yours[name]) for name, item in mine.items())
        case _:
            return isinstance(one, bool) == isinstance(two, bool) and one == two


def _identity(value: Any) -> Any:
    """The same for what JSON Schema calls equal, as `_same`; numbers as text, whose hash none can aim."""
    _spend(_COMPARISON)
    if isinstance(value, dict):
        return "object", frozenset((name, _identity(item)) for name, item in value.items())
    if isinstance(value, list):
        return "array", tuple(_identity(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return "number", hex(value)
    return type(value).__name__, value if isinstance(value, str | bytes) else repr(value)
