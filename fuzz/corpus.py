"""The corpus: valid messages of every kind, built from the golden messages and from the typed messages.

The fuzzer makes its inputs from these messages in memory; no corpus of files is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, get_type_hints

from axon_zmq.protocol import backend, kinds
from axon_zmq.protocol.msgpack import unpack
from tests.support import fixtures

IDS: Final = (b"1", b"2", b"3", b"run-" + b"x" * 60)
"""Request ids: few, so that messages of one input are about the same runs."""
CLIENTS: Final = (b"client-a", b"client-b", b"\x00\x6b\x8b\x45")
"""Routing ids of clients."""
WORKERS: Final = (b"run-1.11", b"run-2.12", b"run_stream-1.13", b"run_sync-1.14")
"""Routing ids of workers. The last byte before the dot does not matter; the mode is in `ready`."""
DIGEST: Final = bytes(range(16))


@cache
def _golden(direction: str, part: str) -> Mapping[bytes, Sequence[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for each in fixtures.load().values():
        if (each.direction, each.part) == (direction, part):
            for kind in each.kinds:
                found.setdefault(kind.encode(), []).append(each.packed)
    return found


@cache
def from_client() -> Sequence[list[bytes]]:
    """Return messages of clients: `[kind, id, header, body]`, every kind with each golden header and body."""
    headers, bodies = _golden("to daemon", "header"), _golden("to daemon", "body")
    made: list[list[bytes]] = []
    for kind in (*kinds.POOLS, kinds.CALL_TOOL, *(kinds.DESCRIBE, kinds.PING, kinds.CANCEL, kinds.RESUME)):
        made += [
            [kind, IDS[0], header, body]
            for header in (b"", *headers.get(kind, ()))
            for body in bodies.get(kind, (b"",))
        ]
    for kind in (kinds.TOOL_RESULT, kinds.STEER, kinds.CREDIT):
        made += [
            [kind, IDS[0], header, body] for header in headers.get(kind, (b"",)) for body in bodies.get(kind, (b"",))
        ]
    return made


@cache
def to_client() -> Sequence[list[bytes]]:
    """Return messages to clients: `[kind, id, body]`."""
    return [
        [kind, b"" if kind == kinds.ALIVE else IDS[0], body]
        for kind, bodies in _golden("to client", "body").items()
        for body in bodies
    ]


HELD: Final = backend.Held(
    client=CLIENTS[0], id=IDS[0], kind="run", digest=DIGEST, deadline=2000.0, keep=False, seq=3, ended=False
)


@cache
def to_broker() -> Sequence[list[bytes]]:
    """Return messages of workers and of the event listener to the broker: `[kind, body]`."""
    ready = backend.Ready(v=backend.VERSION, mode="run", slots=2, name="run-1", holds=(), pid=4711)
    holds = (HELD, backend.Held(**{**HELD.to_wire(), "id": IDS[1], "ended": True, "keep": True}))
    messages: tuple[backend.Message, ...] = (
        ready,
        backend.Ready(v=1, mode="run_stream", slots=1, name="run_stream-1", holds=holds, broken=("a",), forgot_at=5.0),
        backend.Ready(v=1, mode="run_sync", slots=1, name="run_sync-1", holds=()),
        backend.Slots(1),
        backend.Slots(0),
        backend.Progress(3),
        backend.Leaving(),
        backend.Handover("0123456789abcdef.msgpack", 3.0),
        backend.Holds(holds, 4.0),
        backend.Processes({"run-1": backend.Program("RUNNING", 4711), "broker": backend.Program("STOPPED")}),
        backend.Exited("run-1", 4711),
        backend.StatusRequest(),
    )
    kinds_so_far = {each.kind for each in messages}
    messages += tuple(_example(each) for kind, each in backend.TO_BROKER.items() if kind not in kinds_so_far)
    return [[each.kind, each.pack() if each.has_fields() else b""] for each in messages]


def _example(message: type[backend.Message]) -> backend.Message:
    """Return a message of a class that has no example above, with plain values in its required fields."""
    values: dict[str, Any] = {}
    examples: dict[Any, Any] = {bytes: IDS[0], str: "x", int: 1, float: 1.0, bool: False}
    examples_of_client = {"client": CLIENTS[0]}
    for name, hint in get_type_hints(message).items():
        if name != "kind":
            values[name] = examples_of_client.get(name, examples.get(hint, ()))
    return message(**values)


@cache
def to_worker() -> Sequence[list[bytes]]:
    """Return messages of the broker to a worker: control messages, and messages about a run."""
    lease = backend.pack_lease(1500.0, 1, DIGEST)
    made = [[CLIENTS[0], kind, *rest, lease] for kind, *rest in from_client() if kind in kinds.REQUEST_KINDS]
    about = (kinds.TOOL_RESULT, kinds.STEER, kinds.CREDIT, kinds.RESUME)
    made += [[CLIENTS[0], kind, *rest] for kind, *rest in from_client() if kind in about]
    made += [[CLIENTS[0], kinds.END, IDS[0], backend.End(reason).pack()] for reason in backend.EndReason]
    made += [[CLIENTS[0], kind, IDS[0]] for kind in (kinds.GONE, kinds.BACK)]
    control: list[backend.Message] = [backend.Take("0123456789abcdef.msgpack")]
    control += [_example(each) for kind, each in backend.TO_WORKER.items() if kind != kinds.TAKE]
    made += [[kinds.CONTROL, each.kind, b"", each.pack()] for each in control]
    return made


@cache
def values() -> Sequence[Any]:
    """Return the values of all golden bodies, parts of which a mutation may insert into another message."""
    frames = [message[-1] for message in (*from_client(), *to_client()) if message[-1]]
    return [unpack(frame, "a golden body") for frame in frames]


_PERSON: Final = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1, "pattern": "^[a-z ]+$"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
_TREE: Final = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "number"}, "inner": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: Final[Sequence[tuple[Any, Any]]] = (
    (_PERSON, {"name": "ann", "age": 3}),
    ({"type": "array", "items": _PERSON, "uniqueItems": True, "maxItems": 5}, [{"name": "bob"}]),
    (_TREE, {"value": 1, "inner": [{"value": 2, "inner": []}, {"inner": [{"value": 0.5}]}]}),
    ({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "minimum": 2}]}, "abc"),
    ({"oneOf": [{"const": 1}, {"enum": [2, "b", None]}, {"type": "object"}]}, {"a": []}),
    ({"if": {"type": "string"}, "then": {"pattern": "a{1,9}(b|c)*$"}, "else": {"not": {"type": "null"}}}, "aab"),
    ({"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "unevaluatedProperties": False}, {"x-a": 1}),
    (
        {
            "prefixItems": [{"type": "integer"}, True],
            "unevaluatedItems": {"type": "string"},
            "contains": {"const": "c"},
        },
        [1, 2, "c"],
    ),
    (
        {"$defs": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/a"}}, "properties": {"x": {"$ref": "#/$defs/b"}}},
        {"x": 5},
    ),
    (
        {
            "dependentRequired": {"a": ["b"]},
            "dependentSchemas": {"b": {"minProperties": 2}},
            "propertyNames": {"maxLength": 2},
        },
        {"a": 1, "b": 2},
    ),
)
"""Valid schemas, each with a value that fits it."""
