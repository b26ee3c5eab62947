"""Checks a client's JSON Schema, makes it self-contained, and compiles it with jsonschema-rs.

In the self-contained form, each reference is replaced by its target. Models are shown this form, because some providers
do not follow references. Only a recursive definition stays a definition: it moves to the `$defs` of the root, and
`$ref: "#/$defs/NAME"` refers to it. References to anything outside the schema are refused, so nothing is ever fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import count
from typing import Final, cast
from urllib.parse import unquote

import jsonschema_rs
import msgpack

from axon_zmq.errors import RequestError
from axon_zmq.jsonschema.cost import TooHeavyError, measure, weigh
from axon_zmq.jsonschema.keywords import (
    ANNOTATIONS,
    IN_PLACE_KEYWORDS,
    SCHEMA_KEYWORDS,
    SCHEMA_LIST_KEYWORDS,
    SCHEMA_MAP_KEYWORDS,
    Schema,
    cut,
    parts_of,
    pointer_of,
    reference_to,
)
from axon_zmq.jsonschema.validator import CompiledSchema
from axon_zmq.protocol import limits

_MAX_NODES: Final = 20_000
"""Maximum number of values in all schemas of one request after references were replaced by their targets, which can
multiply the number. Replacing references in so many values takes about 30 ms."""
_MAX_BYTES: Final = 8 * limits.MAX_SCHEMA
"""Maximum size of all schemas of one request in bytes: their size as received plus their size with references
replaced."""
_MAX_DEFINITIONS: Final = 200
"""Maximum number of recursive definitions in one schema. The library compiles each inside the previous one, so its
stack grows with their number."""
_DROPPED: Final = frozenset(("$ref", "$defs", "definitions", "$schema", "$id", "$anchor", "$dynamicAnchor"))
"""Keywords that have no meaning after references were replaced."""
_TYPES: Final = "array, boolean, integer, null, number, object, string"
MAX_NESTING: Final = 64
"""Maximum depth of nesting in a JSON Schema. Headers and bodies are only limited by msgpack, to 1024."""


@dataclass(slots=True)
class Budget:
    """Size that the schemas of one request may still have together."""

    nodes: int = _MAX_NODES
    """Remaining number of values."""
    bytes: int = _MAX_BYTES
    """Remaining number of bytes."""

    def spend(self, nodes: int, size: int, pointer: str) -> None:
        """Subtract from the budget.

        Args:
            nodes: Number of values.
            size: Number of bytes.
            pointer: JSON pointer of the schema in the request, for the error message.

        Raises:
            RequestError: `invalid_request`: the budget is exceeded.
        """
        self.nodes -= nodes
        self.bytes -= size
        if self.nodes < 0 or self.bytes < 0:
            most = f"{_MAX_NODES} values" if self.nodes < 0 else f"{_MAX_BYTES} bytes"
            what = f"the schemas of the request have over {most} when references are replaced by their targets"
            raise _invalid(pointer, f"{what}: simplify them, or send fewer")


def compile_schema(schema: Schema, pointer: str, budget: Budget | None = None) -> CompiledSchema:
    """Check a client's schema, make it self-contained, and compile it.

    Args:
        schema: A JSON Schema of draft 2020-12.
        pointer: JSON pointer of the schema in the request, for error messages.
        budget: Remaining budget of the request's schemas; None if this is its only schema.

    Raises:
        RequestError: See `self_contained`; also `invalid_request` if validating with the schema would be too expensive,
            or a pattern is not supported.
    """
    written = self_contained(schema, pointer, budget)
    try:
        return CompiledSchema(written, weigh(written))
    except TooHeavyError as error:
        raise _invalid(pointer, f"the schema is too complex: {error}") from None
    except jsonschema_rs.ValidationError as error:
        what = f"the schema has the pattern {cut(repr(error.instance))}, which is not supported"
        reason = "it is invalid, too large, or has look-around or back-references, which take more than linear time"
        raise _invalid(pointer, f"{what}: {reason}") from None


def self_contained(schema: Schema, pointer: str, budget: Budget | None = None) -> Schema:
    """Check a client's schema, and replace all references except those to recursive definitions by their targets.

    Raises:
        RequestError: `too_large`; or `invalid_request`: the schema is invalid, is nested too deeply, refers to
            something outside itself, refers to itself for the same value, or exceeds the budget.
    """
    budget = budget or Budget()
    if measure(schema).depth > MAX_NESTING:
        raise _invalid(pointer, f"the schema is nested more than {MAX_NESTING} deep")
    packed = _packed(schema)
    if len(packed) > limits.MAX_SCHEMA:
        what = f"schema too large: {len(packed)} bytes, at most {limits.MAX_SCHEMA} (pong.limits.max_schema)"
        raise RequestError("too_large", f"{pointer}: {what}")
    budget.spend(0, len(packed), pointer)
    _check(schema, pointer)
    resolver = _Resolver(schema, pointer)
    recursive: set[int] = set()
    if b"$ref" in packed:
        recursive = _recursive(schema, resolver, Budget(budget.nodes, budget.bytes), pointer)
    written = _Writer(schema, pointer, budget=budget, resolver=resolver, recursive=recursive).write_root()
    if resolver.found:
        # A reference may point to any value, for example into `const`, which the first check did not treat as a schema.
        _check(written, pointer)
    return written


def _packed(value: object) -> bytes:
    return cast("bytes", msgpack.packb(value, datetime=True))


def _invalid(pointer: str, message: str) -> RequestError:
    details = {"errors": [{"pointer": pointer, "message": message}]}
    return RequestError("invalid_request", f"{pointer or '/'}: {message}", details)


def _check(schema: Schema, pointer: str) -> None:
    """Validate a schema against the meta-schema of draft 2020-12.

    Raises:
        RequestError: `invalid_request`.
    """
    try:
        jsonschema_rs.meta.validate({key: value for key, value in schema.items() if key != "$schema"})
    except jsonschema_rs.ValidationError as error:
        steps, message = error.instance_path, error.message
        if "type" in error.schema_path[-2:] and isinstance(error.kind, jsonschema_rs.ValidationErrorKind.AnyOf):
            # In the meta-schema only `type` is an `anyOf`: one name, or a list of names of which one may be invalid.
            steps = max((inner.instance_path for branch in error.kind.context for inner in branch), key=len)
            message = f"this must be one of the types {_TYPES}, or a list of different ones"
        raise _invalid(pointer + pointer_of(steps), f"invalid JSON Schema: {cut(message)}") from None
    except ValueError as error:  # for example, a key is not a string
        raise _invalid(pointer, f"invalid JSON Schema: {cut(str(error))}") from None


class _Resolver:
    """Finds the targets of the references in one schema."""

    def __init__(self, root: Schema, pointer: str) -> None:
        self._root = root
        self._pointer = pointer
        self.found: dict[str, Schema] = {}
        """Targets by reference."""

    def resolve(self, ref: object) -> Schema:
        """Return the target of a `$ref`: the same object for the same reference.

        Raises:
            RequestError: `invalid_request`: the reference points out of the schema, or to nothing in it.
        """
        if not isinstance(ref, str) or (ref != "#" and not ref.startswith("#/")):
            reason = "only references into the schema itself (#/…) are supported"
            raise _invalid(self._pointer, f"the schema refers to {cut(repr(ref))}: {reason}")
        if ref not in self.found:
            self.found[ref] = self._look_up(ref)
        return self.found[ref]

    def _look_up(self, ref: str) -> Schema:
        found: object = self._root
        for step in unquote(ref).split("/")[1:]:
            found = _member(found, step.replace("~1", "/").replace("~0", "~"))
        if isinstance(found, bool):
            return {} if found else {"not": {}}
        if not isinstance(found, dict):
            raise _invalid(self._pointer, f"the schema refers to {cut(repr(ref))}, which is not in it")
        return cast("Schema", found)


def _member(value: object, step: str) -> object:
    if isinstance(value, dict):
        return cast("Schema", value).get(step)
    if isinstance(value, list) and re.fullmatch("0|[1-9][0-9]{0,7}", step) and int(step) < len(value):
        return cast("list[object]", value)[int(step)]
    return None


# --- recursion -----------------------------------------------------------------------------------------


def _recursive(root: Schema, resolver: _Resolver, budget: Budget, pointer: str) -> set[int]:
    """Find the recursive schemas, which are on a cycle of references or on a path from one cycle to another.

    Returns:
        The `id` of each recursive schema that a reference points to.

    Raises:
        RequestError: `invalid_request`: a schema refers to itself for the same value, which never ends; or the budget
            is exceeded.
    """
    # The search spends from a copy of the budget. It refuses no schema that the writer would accept, because the writer
    # visits each target at least once and so spends at least as much.
    edges: dict[int, set[int]] = {}
    in_place: dict[int, set[int]] = {}
    pending = [root]
    while pending:
        schema = pending.pop()
        if id(schema) in edges:
            continue
        edges[id(schema)], in_place[id(schema)] = set(), set()
        for ref, is_in_place in _references(schema, budget, pointer):
            target = resolver.resolve(ref)
            pending.append(target)
            edges[id(schema)].add(id(target))
            if is_in_place:
                in_place[id(schema)].add(id(target))
    if _endless(in_place):
        reason = "a schema may refer to itself only for a value inside its own (properties, items, …)"
        raise _invalid(pointer, f"the schema refers to itself without end: {reason}")
    # A cycle can be reached from each of these nodes. A node that can also be reached from a cycle is recursive.
    backwards: dict[int, set[int]] = {key: set() for key in _endless(edges)}
    for key in backwards:
        for other in edges[key] & backwards.keys():
            backwards[other].add(key)
    return _endless(backwards)


def _references(root: Schema, budget: Budget, pointer: str) -> Iterator[tuple[object, bool]]:
    """Yield each `$ref` in a schema, and whether it applies to the same value as the schema."""
    pending: list[tuple[object, bool]] = [(root, True)]
    while pending:
        part, is_in_place = pending.pop()
        budget.spend(1, 0, pointer)
        if isinstance(part, dict):
            schema = cast("Schema", part)
            if "$ref" in schema:
                yield schema["$ref"], is_in_place
            pending += [(inner, is_in_place and keyword in IN_PLACE_KEYWORDS) for keyword, inner in parts_of(schema)]


def _endless(edges: dict[int, set[int]]) -> set[int]:
    """Return the nodes from which a path along the edges may never end."""
    sorter = TopologicalSorter(edges)
    with suppress(CycleError):  # nodes from which no cycle can be reached are sorted in spite of this error
        sorter.prepare()
    left = set(edges)
    while ready := sorter.get_ready():
        left.difference_update(ready)
        sorter.done(*ready)
    return left


# --- writing -------------------------------------------------------------------------------------------


class _Writer:
    """Writes the self-contained form of one schema."""

    def __init__(self, root: Schema, pointer: str, *, budget: Budget, resolver: _Resolver, recursive: set[int]) -> None:
        self._root = root
        self._pointer = pointer
        self._budget = budget
        self._resolver = resolver
        self._recursive = recursive
        self._names: dict[int, str] = {}
        """Names of the recursive definitions by `id`."""
        self._pending: list[tuple[str, Schema]] = []
        """Recursive definitions that are not written yet, with their names."""

    def write_root(self) -> Schema:
        """Return the self-contained form of the whole schema."""
        written = cast("Schema", self._write(self._root, 0, is_root=True))
        definitions: dict[str, object] = {}
        while self._pending:
            name, target = self._pending.pop()
            definitions[name] = self._write(target, 0)
        return {**written, "$defs": definitions} if definitions else written

    def _write(self, part: object, depth: int, *, is_root: bool = False) -> object:
        """Return a subschema with its references replaced.

        A value that is not a schema is returned as it is; the check afterwards reports it.

        Args:
            part: A schema.
            depth: Number of schemas that contain it.
            is_root: Whether it is the root or the target of the root's `$ref`. This schema does not become a definition
                even if it is recursive, so that a root of type `object` shows its type.
        """
        self._budget.spend(1, 0, self._pointer)
        if not isinstance(part, dict):
            return part
        schema = cast("Schema", part)
        if depth > MAX_NESTING:
            most = f"{MAX_NESTING} deep when its references are replaced"
            raise self._refused(f"is nested more than {most}")
        if "$dynamicRef" in schema:
            raise self._refused("uses $dynamicRef, which is not supported: use $ref")
        plain = {key: self._value(key, value, depth + 1) for key, value in schema.items() if key not in _DROPPED}
        return self._joined(schema["$ref"], plain, depth, is_root) if "$ref" in schema else plain

    def _value(self, key: str, value: object, depth: int) -> object:
        if key in SCHEMA_KEYWORDS:
            return self._write(value, depth)
        if key in SCHEMA_LIST_KEYWORDS and isinstance(value, list):
            return [self._write(schema, depth) for schema in value]
        if key in SCHEMA_MAP_KEYWORDS and isinstance(value, dict):
            self._budget.spend(0, sum(map(len, value)), self._pointer)
            return {name: self._write(schema, depth) for name, schema in value.items()}
        self._budget.spend(1, len(key) + len(_packed(value)), self._pointer)
        return value

    def _joined(self, ref: object, plain: dict[str, object], depth: int, is_root: bool) -> Schema:
        """Combine the target of a schema's `$ref` with the other keywords of the schema."""
        found = self._resolver.resolve(ref)
        if id(found) in self._recursive and not is_root:
            return {"$ref": reference_to(self._name(str(ref), found)), **plain}
        target = cast("Schema", self._write(found, depth + 1, is_root=is_root))
        if plain.keys() <= ANNOTATIONS:
            return {**target, **plain}
        # Both schemas must hold, hence `allOf`. The type of the target is repeated, so that it is visible at the top.
        kind = {"type": target["type"]} if "type" in target else {}
        return {**kind, **plain, "allOf": [target, {"allOf": plain["allOf"]}] if "allOf" in plain else [target]}

    def _name(self, ref: str, target: Schema) -> str:
        """Return the name of a recursive definition in the `$defs` of the root."""
        if id(target) not in self._names:
            if len(self._names) == _MAX_DEFINITIONS:
                raise self._refused(f"has over {_MAX_DEFINITIONS} definitions that refer to themselves")
            wanted = re.sub("[^A-Za-z0-9_-]+", "_", unquote(ref).rpartition("/")[2].strip("#"))[:64] or "root"
            taken = set(self._names.values())
            names = (wanted if number == 1 else f"{wanted}_{number}" for number in count(1))
            self._names[id(target)] = next(name for name in names if name not in taken)
            self._pending.append((self._names[id(target)], target))
        return self._names[id(target)]

    def _refused(self, what: str) -> RequestError:
        return _invalid(self._pointer, f"the schema {what}")
