"""Cache of compiled schemas.

Clients send the same tools with every request, and compiling the schema of a tool takes about a millisecond.
"""

from __future__ import annotations

from threading import Lock
from typing import Final, NamedTuple, cast

import msgpack

from axon_zmq.jsonschema.compiler import Budget, compile_schema
from axon_zmq.jsonschema.keywords import Schema
from axon_zmq.jsonschema.validator import CompiledSchema
from axon_zmq.protocol import limits

_MAX_ENTRY: Final = 16 * limits.KIB
"""Maximum size of a schema in the cache in bytes: its size as received plus its size with references replaced. The
schemas of most tools have less than 4 KiB."""
_MAX_ENTRIES: Final = 256
"""Maximum number of schemas in the cache: enough for the tools of a few dozen agents, and at most 4 MiB."""


class _Entry(NamedTuple):
    """A compiled schema, and how much of a request's budget it uses."""

    compiled: CompiledSchema
    nodes: int
    bytes: int


_entries: dict[bytes, _Entry] = {}
"""Entries by the packed schema, the least recently used first. All threads share it."""
_lock = Lock()


def load_schema(schema: Schema, pointer: str, budget: Budget | None = None) -> CompiledSchema:
    """Return the compiled form of a client's schema, from the cache if possible.

    Args:
        schema: A JSON Schema of draft 2020-12.
        pointer: JSON pointer of the schema in the request, for error messages.
        budget: Remaining budget of the request's schemas; None if this is its only schema. A schema from the cache uses
            as much of the budget as one that is compiled.

    Raises:
        RequestError: See `compile_schema`.
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
    # A compiled schema refers to the schema that it was made from, and the caller could later change the one it passed.
    own_copy = msgpack.unpackb(packed, timestamp=3, strict_map_key=False)
    compiled = compile_schema(own_copy, pointer, budget)
    entry = _Entry(compiled, before.nodes - budget.nodes, before.bytes - budget.bytes)
    if entry.bytes <= _MAX_ENTRY:
        with _lock:
            _entries[packed] = entry
            if len(_entries) > _MAX_ENTRIES:
                del _entries[next(iter(_entries))]
    return compiled
