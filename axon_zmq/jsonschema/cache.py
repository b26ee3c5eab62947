"""A cache of compiled schemas: clients send the same tools with each request, and compiling takes a millisecond."""

from __future__ import annotations

from threading import Lock
from typing import Final, NamedTuple, cast

import msgpack

from axon_zmq.jsonschema.compiler import Budget, compile_schema
from axon_zmq.jsonschema.keywords import Schema
from axon_zmq.jsonschema.validator import CompiledSchema
from axon_zmq.protocol import limits

_MAX_ENTRY: Final = 16 * limits.KIB
"""Bytes of one schema that is kept, as it came and with its references replaced; most tools have under 4 KiB."""
_MAX_ENTRIES: Final = 256
"""Schemas that are kept: the tools of some dozen agents, in at most 4 MiB."""


class _Entry(NamedTuple):
    """A compiled schema, and what it takes from a request's budget."""

    compiled: CompiledSchema
    nodes: int
    bytes: int


_entries: dict[bytes, _Entry] = {}
"""By the packed schema, in the order of use. Threads share it."""
_lock = Lock()


def load_schema(schema: Schema, pointer: str, budget: Budget | None = None) -> CompiledSchema:
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
    packed = cast("bytes", msgpack.packb(schema, datetime=True))
    with _lock:
        if (known := _entries.pop(packed, None)) is not None:
            _entries[packed] = known
    if known is not None:
        budget.spend(known.nodes, known.bytes, pointer)
        return known.compiled
    before = Budget(budget.nodes, budget.bytes)
    own_copy = msgpack.unpackb(packed, timestamp=3, strict_map_key=False)
    compiled = compile_schema(own_copy, pointer, budget)
    entry = _Entry(compiled, before.nodes - budget.nodes, before.bytes - budget.bytes)
    if entry.bytes <= _MAX_ENTRY:
        with _lock:
            _entries[packed] = entry
            if len(_entries) > _MAX_ENTRIES:
                del _entries[next(iter(_entries))]
    return compiled
