"""A cache of compiled schemas: clients send the same tools with each request, and compiling takes a millisecond."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any, Final, NamedTuple, cast

import msgpack

from axon_zmq.jsonschema.compiler import Budget, compile_schema
from axon_zmq.jsonschema.validator import CompiledSchema
from axon_zmq.protocol import limits

_MAX_ENTRY: Final = 64 * limits.KIB
"""Bytes of one schema that is kept, with the references replaced."""
_MAX_CACHE: Final = 2 * limits.MIB
"""Bytes of all schemas that are kept: the tools of some dozen agents."""


def load_schema(schema: dict[str, Any], pointer: str, budget: Budget | None = None) -> CompiledSchema:
    """The compiled form of a client's schema, from the cache if it is there.

    Args:
        schema: Any JSON Schema of draft 2020-12.
        pointer: JSON pointer of the schema in the request, for messages.
        budget: What the request's schemas may still take; None if this is its only one. A schema from the cache takes
            as much of it as another.

    Raises:
        RequestError: As `compile_schema`.
    """
    budget = budget or Budget()
    packed = _packed(schema)
    if (known := _cache.get(packed)) is not None:
        budget.spend(known.nodes, known.bytes, pointer)
        return known.compiled
    before = Budget(budget.nodes, budget.bytes)
    own_copy = msgpack.unpackb(packed, timestamp=3, strict_map_key=False)
    compiled = compile_schema(own_copy, pointer, budget)
    _cache.put(packed, _Entry(compiled, before.nodes - budget.nodes, before.bytes - budget.bytes))
    return compiled


class _Entry(NamedTuple):
    """A compiled schema, and what it takes from a request's budget."""

    compiled: CompiledSchema
    nodes: int
    bytes: int


class _Cache:
    """The schemas that were used last, by their packed bytes. Threads share it."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, tuple[_Entry, int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, packed: bytes) -> _Entry | None:
        with self._lock:
            if packed not in self._entries:
                return None
            self._entries.move_to_end(packed)
            return self._entries[packed][0]

    def put(self, packed: bytes, entry: _Entry) -> None:
        size = len(packed) + len(_packed(entry.compiled.schema))
        if size > _MAX_ENTRY:
            return
        with self._lock:
            if packed not in self._entries:
                self._entries[packed] = entry, size
                self._bytes += size
            while self._bytes > _MAX_CACHE:
                self._bytes -= self._entries.popitem(last=False)[1][1]


_cache = _Cache()


def _packed(value: Any) -> bytes:
    return cast("bytes", msgpack.packb(value, datetime=True))
