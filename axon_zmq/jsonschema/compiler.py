"""A client's schema in; out comes one that is checked, bounded, self-contained, and compiled by jsonschema-rs.

The self-contained form is what models are shown, since some providers do not follow references: each reference is
replaced by what it refers to. Only a definition that refers to itself stays a definition: it moves to the `$defs` of
the root, and `$ref: "#/$defs/NAME"` refers to it. Nothing outside the schema is ever looked up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, Final, NamedTuple, cast
from urllib.parse import unquote

import jsonschema_rs
import msgpack

from axon_zmq.errors import RequestError
from axon_zmq.jsonschema.cost import MAX_PLACE, TooHeavyError, states_of, weigh
from axon_zmq.jsonschema.keywords import (
    ANNOTATIONS,
    IN_PLACE_KEYWORDS,
    SCHEMA_KEYWORDS,
    SCHEMA_LIST_KEYWORDS,
    SCHEMA_MAP_KEYWORDS,
    brief,
    parts_of,
    pointer_of,
    reference_to,
)
from axon_zmq.jsonschema.validator import CompiledSchema, is_pattern, message_for
from axon_zmq.protocol import limits

_MAX_NODES: Final = 20_000
"""Values in all schemas of one request, with their references replaced; references can multiply them. Writing so many
takes about 30 ms."""
_MAX_BYTES: Final = 4 * limits.MAX_SCHEMA
"""Bytes of all schemas of one request, and of the copies that their references make."""
_MAX_PATTERNS: Final = 100
"""Different patterns in one schema."""
_MAX_PATTERN_LENGTH: Final = 1000
"""Characters of one pattern."""
_MAX_PATTERN_STATES: Final = 1000
"""States of one pattern's automaton; matching a character may take 10 ns for each."""
_MAX_UNEVALUATED: Final = 8
"""Schemas with `unevaluated…` inside one another: each doubles the library's work."""
_DROPPED: Final = frozenset(("$ref", "$defs", "definitions", "$schema", "$id", "$anchor", "$dynamicAnchor"))
"""Keywords without meaning once the references are replaced."""


@dataclass(slots=True)
class Budget:
    """What the schemas of one request may still take together."""

    nodes: int = _MAX_NODES
    bytes: int = _MAX_BYTES

    def spend(self, nodes: int, size: int, pointer: str) -> None:
        """Take from the budget, for the schema at `pointer`.

        Raises:
            RequestError: `invalid_request`: the budget is used up.
        """
        self.nodes -= nodes
        self.bytes -= size
        if self.nodes < 0 or self.bytes < 0:
            most = f"{_MAX_NODES} values" if self.nodes < 0 else f"{_MAX_BYTES} bytes"
            what = f"the request's schemas up to here have over {most} when references are replaced by their targets"
            raise _invalid(pointer, f"{what}: make them smaller, or send fewer")


def compile_schema(schema: dict[str, Any], pointer: str, budget: Budget | None = None) -> CompiledSchema:
    """Check, bound and compile a client's schema.

    Args:
        schema: Any JSON Schema of draft 2020-12.
        pointer: JSON pointer of the schema in the request, for messages.
        budget: What the request's schemas may still take; None if this is its only one.

    Raises:
        RequestError: As `self_contained`.
    """
    written = self_contained(schema, pointer, budget)
    try:
        weight = weigh(written)
    except TooHeavyError:
        what = f"the schema is too complex: over {MAX_PLACE:.0f} keywords and schemas apply to one value"
        raise _invalid(pointer, f"{what}, through references, too: use fewer or shorter lists of schemas") from None
    try:
        return CompiledSchema(written, weight)
    except jsonschema_rs.ValidationError as error:  # the checks before this one find everything we know of
        raise _invalid(pointer, f"invalid JSON Schema: {brief(str(error.message))}") from None


def self_contained(schema: dict[str, Any], pointer: str, budget: Budget | None = None) -> dict[str, Any]:
    """Check a client's schema and replace its references by their targets, except in definitions that are recursive.

    Raises:
        RequestError: `too_large`; or `invalid_request`: it is no valid schema, is nested too deep, refers to something
            that is not in it, applies a reference to the same value again without end, or is more than the budget
            allows.
    """
    budget = budget or Budget()
    packed = _packed(schema)
    if (size := len(packed)) > limits.MAX_SCHEMA:
        raise RequestError("too_large", f"{pointer}: the schema has {size} bytes; at most {limits.MAX_SCHEMA}")
    if _is_deeper_than(schema, limits.MAX_NESTING):
        raise _invalid(pointer, f"the schema is nested more than {limits.MAX_NESTING} deep")
    budget.spend(0, size, pointer)
    _check(schema, pointer)
    resolver = _Resolver(schema, pointer)
    recursive: set[int] = set()
    if b"$ref" in packed:
        graph = _Graph(schema, resolver)
        recursive = graph.recursive_targets()
        graph.check_size(recursive, budget, pointer)
    writer = _Writer(schema, pointer, budget, resolver, recursive)
    written = writer.write_root()
    if writer.followed:
        _check(written, pointer)  # a reference may lead to what was no schema at its own place
    return written


def _packed(value: Any) -> bytes:
    return cast("bytes", msgpack.packb(value, datetime=True))


def _invalid(pointer: str, message: str) -> RequestError:
    details = {"errors": [{"pointer": pointer, "message": message}]}
    return RequestError("invalid_request", f"{pointer or '/'}: {message}", details)


def _check(schema: dict[str, Any], pointer: str) -> None:
    """Validate a schema by the schema of schemas, always that of draft 2020-12."""
    try:
        jsonschema_rs.meta.validate({key: value for key, value in schema.items() if key != "$schema"})
    except jsonschema_rs.ValidationError as error:
        steps, value = _faulty(list(error.instance_path), error.instance)
        keyword, rule = error.kind.name, error.kind.value
        if steps[-1:] == ["type"] or steps[-2:-1] == ["type"]:
            message = f"{brief(value)} is not one of the types {', '.join(_TYPES)}, nor a list of different ones"
        else:
            message = message_for(keyword, rule, value)
        raise _invalid(pointer + pointer_of(steps), f"invalid JSON Schema: {message}") from None
    except ValueError as error:  # e.g. a name that is no string
        raise _invalid(pointer, f"invalid JSON Schema: {brief(str(error))}") from None


_TYPES: Final = ("array", "boolean", "integer", "null", "number", "object", "string")


def _faulty(steps: list[Any], value: Any) -> tuple[list[Any], Any]:
    """The place of a fault; in a list of types, the first that is none."""
    if steps[-1:] == ["type"] and isinstance(value, list):
        for index, item in enumerate(cast("list[Any]", value)):
            if item not in _TYPES:
                return [*steps, index], item
    return steps, value


def _is_deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        if not {dict, list} & set(map(type, level)):
            return False
        held = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = list(chain.from_iterable(held))
    return bool(level)


class _Resolver:
    """Finds what a reference in one schema refers to."""

    def __init__(self, root: dict[str, Any], pointer: str) -> None:
        self._root = root
        self._pointer = pointer
        self._found: dict[str, dict[str, Any]] = {}

    def resolve(self, ref: Any) -> dict[str, Any]:
        """The schema that `$ref` names; the same object each time.

        Raises:
            RequestError: `invalid_request`: it leads out of the schema, or to nothing in it.
        """
        if not isinstance(ref, str) or (ref != "#" and not ref.startswith("#/")):
            reason = "only references into the schema itself (#/…) are followed"
            raise _invalid(self._pointer, f"the schema refers to {brief(ref)}: {reason}")
        if ref not in self._found:
            self._found[ref] = self._look_up(ref)
        return self._found[ref]

    def refuse_endless(self, endless: set[int]) -> None:
        """Refuse the schema if a reference leads to one of these, which refer to themselves for the same value.

        Raises:
            RequestError: `invalid_request`.
        """
        for ref, target in self._found.items():
            if id(target) in endless:
                reason = "a schema may refer to itself only for a value inside its own (properties, items, …)"
                raise _invalid(self._pointer, f"the schema refers to {brief(ref)} without end: {reason}")

    def _look_up(self, ref: str) -> dict[str, Any]:
        found: Any = self._root
        for step in unquote(ref).split("/")[1:]:
            found = _member(found, step.replace("~1", "/").replace("~0", "~"))
        if isinstance(found, bool):
            return {} if found else {"not": {}}
        if not isinstance(found, dict):
            raise _invalid(self._pointer, f"the schema refers to {brief(ref)}, which is not in it")
        return cast("dict[str, Any]", found)


def _member(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and len(step) < 9 and re.fullmatch("0|[1-9][0-9]*", step) and int(step) < len(value):
        return value[int(step)]
    return None


class _Node(NamedTuple):
    """A schema in the graph of references."""

    own: int
    """What writing it takes of the budget, without the schemas in it."""
    in_place: list[int]
    """The schemas in it that apply to the same value, by `id`, and what it refers to."""
    others: list[int]
    target: int | None
    """What it refers to."""


class _Graph:
    """The schemas that one schema consists of, and how they refer to one another.

    Raises:
        RequestError: `invalid_request`, as `_Resolver.resolve`.
    """

    def __init__(self, root: dict[str, Any], resolver: _Resolver) -> None:
        self._root = id(root)
        self._resolver = resolver
        self._nodes: dict[int, _Node] = {}
        pending = [root]
        while pending:
            schema = pending.pop()
            if id(schema) not in self._nodes:
                pending.extend(self._add(schema))

    def _add(self, schema: dict[str, Any]) -> list[dict[str, Any]]:
        """Add one schema; returns those that it leads to."""
        parts: list[dict[str, Any]] = []
        own = 1 + len(schema.keys() - _DROPPED - _WITH_SCHEMAS)
        in_place: list[int] = []
        others: list[int] = []
        for keyword, part in parts_of(schema):
            if isinstance(part, dict):
                (in_place if keyword in IN_PLACE_KEYWORDS else others).append(id(part))
                parts.append(cast("dict[str, Any]", part))
            else:
                own += 1
        target = None
        if "$ref" in schema:
            parts.append(self._resolver.resolve(schema["$ref"]))
            target = id(parts[-1])
            in_place.append(target)
        self._nodes[id(schema)] = _Node(own, in_place, others, target)
        return parts

    def recursive_targets(self) -> set[int]:
        """The `id` of each schema that a reference leads to, and that leads to itself.

        Raises:
            RequestError: `invalid_request`: a schema refers to itself for the same value, which never ends.
        """
        targets = {node.target for node in self._nodes.values() if node.target is not None}
        if not targets:
            return set()
        cycles = _in_cycles({key: [*node.in_place, *node.others] for key, node in self._nodes.items()})
        if recursive := targets & cycles:
            self._resolver.refuse_endless(_in_cycles({key: node.in_place for key, node in self._nodes.items()}))
        return recursive

    def check_size(self, recursive: set[int], budget: Budget, pointer: str) -> None:
        """Refuse a schema that would be too large with its references replaced, before it is written.

        Raises:
            RequestError: `invalid_request`: it is too large, or nested too deep.
        """
        sizes: dict[int, int] = {}

        def size(key: int, depth: int) -> int:
            if depth > limits.MAX_NESTING + 1:
                raise _invalid(pointer, f"the schema {_TOO_DEEP}")
            if key not in sizes:
                node = self._nodes[key]
                inner = [other for other in (*node.in_place, *node.others) if other != node.target]
                if node.target is not None and node.target not in recursive:
                    inner.append(node.target)
                sizes[key] = node.own + sum(size(other, depth + 1) for other in inner)
            return sizes[key]

        Budget(budget.nodes, budget.bytes).spend(sum(size(key, 0) for key in (self._root, *recursive)), 0, pointer)


_WITH_SCHEMAS: Final = SCHEMA_KEYWORDS | SCHEMA_LIST_KEYWORDS | SCHEMA_MAP_KEYWORDS
_TOO_DEEP: Final = f"is nested more than {limits.MAX_NESTING} deep when its references are replaced"


def _in_cycles(edges: dict[int, list[int]]) -> set[int]:
    """The nodes that lead back to themselves: Tarjan's strongly connected components, without recursion."""
    found: set[int] = set()
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    stacked: set[int] = set()
    for start in edges:
        if start in index:
            continue
        work: list[tuple[int, Iterator[int]]] = [(start, iter(edges[start]))]
        index[start] = low[start] = len(index)
        stack.append(start)
        stacked.add(start)
        while work:
            node, rest = work[-1]
            for other in rest:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    stacked.add(other)
                    work.append((other, iter(edges[other])))
                    break
                if other in stacked:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = _popped(stack, node)
                    stacked.difference_update(component)
                    if len(component) > 1 or node in edges[node]:
                        found.update(component)
    return found


def _popped(stack: list[int], until: int) -> list[int]:
    component: list[int] = []
    while not component or component[-1] != until:
        component.append(stack.pop())
    return component


class _Path(NamedTuple):
    """How the writer came to a schema."""

    depth: int = 0
    targets: int = 0
    """References on the way here."""
    unevaluated: int = 0
    """Schemas with `unevaluated…` on the way here."""
    is_root: bool = False
    """Whether the schema is the root itself, or what the root refers to."""


class _Writer:
    """Replaces one schema's references."""

    def __init__(
        self, root: dict[str, Any], pointer: str, budget: Budget, resolver: _Resolver, recursive: set[int]
    ) -> None:
        self.followed = False
        self._root = root
        self._pointer = pointer
        self._budget = budget
        self._resolver = resolver
        self._patterns: set[str] = set()
        self._definitions = _Definitions(recursive)

    def write_root(self) -> dict[str, Any]:
        """The whole schema, with the definitions that are recursive."""
        written = self._write(self._root, _Path(is_root=True))
        definitions: dict[str, Any] = {}
        while self._definitions.pending:
            name, target = self._definitions.pending.pop()
            self._copied(lambda name=name: len(name), _Path(targets=1))
            definitions[name] = self._write(target, _Path(targets=1))
        return {**written, "$defs": definitions} if definitions else written

    def _write(self, part: Any, path: _Path) -> Any:
        """The schema without references; what is no schema is left as it is, for the check afterwards."""
        self._budget.spend(1, 0, self._pointer)
        if not isinstance(part, dict):
            return part
        schema = cast("dict[str, Any]", part)
        here = self._step(schema, path)
        inner = _Path(here.depth, here.targets, here.unevaluated) if here.is_root else here
        plain = {key: self._value(key, value, inner) for key, value in schema.items() if key not in _DROPPED}
        if "$dynamicRef" in schema:
            raise self._refused("uses $dynamicRef, which is not supported: use $ref")
        return self._joined(schema["$ref"], plain, here) if "$ref" in schema else plain

    def _step(self, part: dict[str, Any], path: _Path) -> _Path:
        if path.depth > limits.MAX_NESTING:
            raise self._refused(_TOO_DEEP)
        unevaluated = path.unevaluated + ("unevaluatedProperties" in part or "unevaluatedItems" in part)
        if unevaluated > _MAX_UNEVALUATED:
            raise self._refused(f"has over {_MAX_UNEVALUATED} unevaluated… inside one another")
        return _Path(path.depth + 1, path.targets, unevaluated, path.is_root)

    def _value(self, key: str, value: Any, path: _Path) -> Any:
        if key in SCHEMA_KEYWORDS:
            return self._write(value, path)
        if key in SCHEMA_LIST_KEYWORDS and isinstance(value, list):
            return [self._write(schema, path) for schema in cast("list[Any]", value)]
        if key in SCHEMA_MAP_KEYWORDS and isinstance(value, dict):
            schemas = cast("dict[str, Any]", value)
            self._copied(lambda: sum(len(name) for name in schemas), path)
            if key == "patternProperties":
                self._check_patterns(schemas)
            return {name: self._write(schema, path) for name, schema in schemas.items()}
        self._budget.spend(1, 0, self._pointer)
        self._copied(lambda: len(_packed(value)), path)
        if key == "pattern" and isinstance(value, str):
            self._check_patterns([value])
        return value

    def _copied(self, size: Callable[[], int], path: _Path) -> None:
        """Count what a reference copies; the bytes of the schema itself were counted when it came."""
        if path.targets:
            self._budget.spend(0, size(), self._pointer)

    def _check_patterns(self, patterns: Iterable[str]) -> None:
        for pattern in set(patterns) - self._patterns:
            self._patterns.add(pattern)
            if len(self._patterns) > _MAX_PATTERNS:
                raise self._refused(f"has over {_MAX_PATTERNS} patterns")
            if reason := _unsupported(pattern):
                raise self._refused(f"has the pattern {pattern[:100]!r}, which is not supported: {reason}")

    def _joined(self, ref: Any, plain: dict[str, Any], path: _Path) -> dict[str, Any]:
        found = self._resolver.resolve(ref)
        self.followed = True
        if not path.is_root and (name := self._definitions.name(ref, found)):
            return {"$ref": reference_to(name), **plain}
        target = self._write(found, path._replace(targets=path.targets + 1))
        if plain.keys() <= ANNOTATIONS:
            return {**target, **plain}
        kind = {"type": target["type"]} if "type" in target else {}
        return {**kind, **plain, "allOf": [target, {"allOf": plain["allOf"]}] if "allOf" in plain else [target]}

    def _refused(self, what: str) -> RequestError:
        return _invalid(self._pointer, f"the schema {what}")


@dataclass(slots=True)
class _Definitions:
    """The recursive definitions of a schema, by the name that they get in its `$defs`."""

    recursive: set[int]
    pending: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Those that are not written yet."""
    _names: dict[int, str] = field(default_factory=dict)

    def name(self, ref: str, target: dict[str, Any]) -> str | None:
        """The name of a recursive definition; None if it is not recursive."""
        if id(target) not in self.recursive:
            return None
        if id(target) not in self._names:
            wanted = re.sub("[^A-Za-z0-9_-]+", "_", unquote(ref).rpartition("/")[2].strip("#"))[:64] or "root"
            taken = set(self._names.values())
            name = next(name for name in _numbered(wanted) if name not in taken)
            self._names[id(target)] = name
            self.pending.append((name, target))
        return self._names[id(target)]


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in count(2))


def _unsupported(pattern: str) -> str:
    """Why a pattern cannot be matched in bounded time; empty if it can."""
    if len(pattern) > _MAX_PATTERN_LENGTH:
        return f"it has over {_MAX_PATTERN_LENGTH} characters"
    if states_of(pattern) > _MAX_PATTERN_STATES:
        return "it repeats too much (for a length, use maxLength)"
    if is_pattern(pattern):
        return ""
    if re.search(r"\(\?<?[=!]|\\[1-9]|\\k<", pattern):
        return "look-around and back-references cannot be matched in linear time"
    return "it is no valid regular expression"
