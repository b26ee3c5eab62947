"""Samples of the types and fields that the installed pydantic-ai has in addition to those of tests/support/content.py.

pydantic-ai may add parts, events and fields in each minor version. This module finds them by their type hints and makes
samples of them, so that the tests of messages and events also test those that nobody has seen yet.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, get_args, get_origin, get_type_hints

from tests.support.content import AT, DETAILS, RAW

NEVER_TOLD = {
    f"{kind}.{field}"
    for kind in ("ToolSearchReturnPart", "LoadCapabilityReturnPart", "NativeToolSearchReturnPart")
    for field in ("outcome", "retry")
}
"""A typed return that did not succeed is read as a `ToolReturnPart`: its content is an error."""
FAMILIES = ("CustomEvent.", "CapabilityEvent.")
"""Base classes of events whose kinds applications define."""


def members(hint: Any) -> Iterator[Any]:
    """The members of a union; nested unions are expanded, generics are reduced to their origin."""
    if hasattr(hint, "__value__"):
        yield from members(hint.__value__)
    elif get_origin(hint) is typing.Annotated:
        yield from members(get_args(hint)[0])
    elif get_origin(hint) in (typing.Union, types.UnionType):
        for member in get_args(hint):
            yield from members(member)
    else:
        yield get_origin(hint) or hint


def held(hint: Any) -> Iterator[type]:
    """Each dataclass that a value of this type may contain directly."""
    if hasattr(hint, "__value__"):
        hint = hint.__value__
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    if isinstance(origin := get_origin(hint), type) and dataclasses.is_dataclass(origin):
        yield origin
    for inner in get_args(hint):
        if not isinstance(inner, str | typing.ForwardRef):
            yield from held(inner)


def reachable(*hints: Any) -> set[type]:
    """Each dataclass that values of these types may contain at any depth."""
    found: set[type] = set()
    pending = [kind for hint in hints for kind in held(hint)]
    while pending:
        kind = pending.pop()
        if kind not in found:
            found.add(kind)
            hinted = get_type_hints(kind, include_extras=True)
            pending += [inner for field in dataclasses.fields(kind) for inner in held(hinted[field.name])]
    return found


def instances(value: Any) -> Iterator[Any]:
    """Each dataclass instance in a value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from instances(item)


def untold_fields(kinds: set[type], samples: Sequence[Any]) -> list[str]:
    """Fields that have their default value in every sample."""
    told: dict[type, list[Any]] = {}
    for instance in instances(samples):
        told.setdefault(type(instance), []).append(instance)
    return sorted(
        f"{kind.__name__}.{field.name}"
        for kind in kinds
        for field in dataclasses.fields(kind)
        if len(get_args(get_type_hints(kind)[field.name])) != 1  # a `kind`, of one literal
        and all(getattr(one, field.name) == _default(field) for one in told.get(kind, ()))
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def samples_with_new(hint: Any, samples: Sequence[Any], told: Sequence[Any] = ()) -> list[Any]:
    """Return the samples, and further ones with the types and fields that no sample has.

    Args:
        hint: The union of the samples' types.
        samples: Samples of members of the union.
        told: Other samples, whose fields need no further sample.
    """
    seen = {type(sample) for sample in samples}
    new = [filled(kind) for kind in members(hint) if kind not in seen and not f"{kind.__name__}.".startswith(FAMILIES)]
    untold = {
        name
        for name in untold_fields(reachable(hint), [*samples, *told, *new])
        if name not in NEVER_TOLD and not name.startswith(FAMILIES)
    }
    more = [_with_fields(sample, untold) for sample in samples]
    return [*samples, *new, *[made for made, sample in zip(more, samples, strict=True) if made is not sample]]


def _with_fields(value: Any, untold: set[str]) -> Any:
    """Return the value with these fields (`Class.field`) set, at any depth; the same object if it has none of them."""
    if isinstance(value, list | tuple):
        made = [_with_fields(item, untold) for item in value]
        return value if all(a is b for a, b in zip(made, value, strict=True)) else type(value)(made)
    if isinstance(value, dict):
        changed = {key: _with_fields(item, untold) for key, item in value.items()}
        return value if all(changed[key] is value[key] for key in value) else changed
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    hints = get_type_hints(type(value), include_extras=True)
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        before = getattr(value, field.name)
        if f"{type(value).__name__}.{field.name}" in untold:
            changes[field.name] = filled(hints[field.name], not_this=before)
        elif (after := _with_fields(before, untold)) is not before:
            changes[field.name] = after
    return dataclasses.replace(value, **changes) if changes else value


_VALUES: dict[Any, Any] = {
    str: "new",
    int: 7,
    float: 1.5,
    bool: True,
    bytes: RAW,
    datetime: AT,
    timedelta: timedelta(seconds=1),
    Decimal: Decimal("0.5"),
    Any: DETAILS,
    object: DETAILS,
}


def filled(hint: Any, not_this: Any = None) -> Any:
    """Return a value of a type; each field of a dataclass in it has another value than its default if possible.

    Raises:
        TypeError: The type is none of those that messages of pydantic-ai consist of.
    """
    for value in _values(hint):
        if value is not None and value != not_this:
            return value
    raise TypeError(f"cannot make a sample of {hint}: add its type to {__name__}")


def _values(hint: Any) -> Iterator[Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hasattr(hint, "__value__"):
        yield from _values(hint.__value__)
    elif hint is bool:
        yield from (True, False)
    elif hint in _VALUES:
        yield _VALUES[hint]
    elif origin is typing.Annotated:
        yield from _values(arguments[0])
    elif origin is typing.Literal:
        yield from reversed(arguments)
    elif origin in (typing.Union, types.UnionType):
        for member in arguments:
            yield from _values(member)
    elif dataclasses.is_dataclass(kind := origin or hint):
        yield _dataclass(kind)
    elif origin is tuple:
        yield tuple(filled(each) for each in arguments if each is not Ellipsis)
    elif origin in (list, collections.abc.Sequence):
        yield [filled(arguments[0])]
    elif origin in (dict, collections.abc.Mapping):
        yield {"new": filled(arguments[1])}


def _dataclass(kind: Any) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.init and not field.name.endswith("kind"):
            with suppress(TypeError):  # it keeps its default
                values[field.name] = filled(hints[field.name], not_this=field.default)
    return kind(**values)
