"""Harness of the parsers: frames, msgpack, request bodies, messages between broker and workers, and results."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from random import Random
from typing import Any, Final

import msgpack

from axon_zmq.client import messages
from axon_zmq.errors import ERROR_TYPES, ModelError, RequestError
from axon_zmq.protocol import backend, frames, kinds, plain, requests
from axon_zmq.protocol.msgpack import pack, unpack
from axon_zmq.protocol.requests import DescribeRequest
from fuzz import corpus
from fuzz.harness import Harness, Outcome, check, check_text
from fuzz.mutations import unpacked
from fuzz.steps import Step

MAX_BODY: Final = 12_000
"""Limit on a body in this harness, so that inputs with a body over the limit stay small."""
MAX_ID: Final = 64
MAX_HEADER: Final = 16 * 1024
MAX_ECHOED: Final = 256
"""The documented limits. They are repeated here: the harness must notice if the code no longer enforces them."""
MAX_DEPTH: Final = 1024
MAX_ITEMS, UNCOUNTED_BYTES = 2000, 4096
"""Limit on the items of a body in this harness, which applies to bodies of more than `UNCOUNTED_BYTES`."""
FROM_CLIENT, TO_BROKER, TO_WORKER, TO_CLIENT, RESULT = range(5)
"""Meaning of `op`, modulo 5: which parser gets the frames. `RESULT` is a value that a tool or agent returns."""
_MODELS: Final[dict[bytes, Callable[[dict[str, Any]], object]]] = {
    kinds.CALL_TOOL: lambda body: requests.checked(requests.CallRequest, body),
    kinds.TOOL_RESULT: requests.tool_result,
    kinds.STEER: lambda body: requests.checked(requests.Steer, body),
    kinds.DESCRIBE: lambda body: requests.checked(requests.DescribeRequest, body),
    **dict.fromkeys(kinds.POOLS.keys() - {kinds.CALL_TOOL}, requests.run_request),
}


def examine(steps: Sequence[Step]) -> Outcome:
    """Give each message to its parser."""
    outcome = Outcome()
    for op, parts in steps:
        outcome.messages += 1
        parser = _PARSERS[op % 5]
        try:
            sign = parser(parts)
        except RequestError as error:
            _check_error(error)
            outcome.signs.add((op % 5, error.error_type, error.message[:24]))
        except backend.MalformedMessageError as error:
            check(op % 5 in (TO_BROKER, TO_WORKER), "MalformedMessageError for a message of a client")
            check_text(str(error))
            outcome.signs.add((op % 5, error.kind, str(error)[:40]))
        else:
            outcome.passed += sign is not None
            outcome.signs.add((op % 5, sign))
    return outcome


def _check_error(error: RequestError) -> None:
    check(error.error_type in ERROR_TYPES, f"unknown error_type {error.error_type!r}")
    check_text(error.message)
    body = frames.error_body(error)
    check(unpack(body, "an error")["error_type"] == error.error_type, "the error cannot be read back")
    check(len(body) <= 64 * 1024, f"an error has {len(body)} bytes")


def _from_client(parts: list[bytes]) -> object:
    envelope = frames.open_envelope(parts)
    check(len(envelope.id) <= MAX_ECHOED, f"an invalid request id of {len(envelope.id)} bytes would be repeated")
    message = frames.parse(envelope.frames, MAX_BODY)
    check(message.kind in frames.HEADERS, "an unknown kind was accepted")
    check(1 <= len(message.id) <= MAX_ID, f"a request id of {len(message.id)} bytes was accepted")
    check(len(message.header_frame) <= MAX_HEADER, f"a header of {len(message.header_frame)} bytes was accepted")
    check(len(message.body) <= MAX_BODY, f"a body of {len(message.body)} bytes was accepted, the limit is {MAX_BODY}")
    again = frames.parse([message.kind, message.id, pack(message.header), message.body], MAX_BODY)
    check(again.header == message.header, "the header changes when it is packed again")
    single = frames.single_frame(message.kind, message.id, b"")
    check(len(single) <= len(message.kind) + len(message.id) + 8, "a single frame is too large")
    if (read := _MODELS.get(message.kind)) is not None:
        _read_body(read, _body(message.body))
    return message.kind, *sorted(message.header)


def _body(packed: bytes) -> dict[str, Any]:
    body = unpack(packed, "the body", MAX_ITEMS)
    check(_depth(body) <= MAX_DEPTH, "a body is nested too deeply")
    items = _items(body)
    is_counted = len(packed) > UNCOUNTED_BYTES
    check(not is_counted or items <= MAX_ITEMS, f"a body of {items} items was accepted, the limit is {MAX_ITEMS}")
    return body


def _items(value: Any) -> int:
    """Count the items of an unpacked value independently of the package: elements, keys, values, and containers."""
    items, level = 0, [value]
    while level:
        items += len(level)
        maps = [each for each in level if isinstance(each, dict)]
        lists = [each for each in level if isinstance(each, list)]
        items += len(maps) + len(lists) + sum(map(len, maps))
        level = [inner for each in maps for inner in each.values()] + [inner for each in lists for inner in each]
    return items


def _read_body(read: Callable[[dict[str, Any]], object], body: dict[str, Any]) -> None:
    try:
        read(body)
    except RequestError as error:  # the frames have passed their parser; the worker refuses the body
        check(len(error.details.get("errors", ())) <= 20, "an error lists over 20 faults")
        _check_error(error)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _to_broker(parts: list[bytes]) -> object:
    kind, body = (*parts, b"", b"")[:2]
    message = backend.decode(backend.TO_BROKER, kind, body)
    if message is None:
        return None
    again = backend.decode(backend.TO_BROKER, kind, message.pack())
    check(again == message, "a message changes when it is packed again")
    return kind


def _to_worker(parts: list[bytes]) -> object:
    message = backend.decode_at_worker(parts)
    return None if message is None else type(message).__name__


def _to_client(parts: list[bytes]) -> object:
    kind, body = (parts[0] if parts else b""), (parts[-1] if parts else b"")
    received = messages.decode(kind, body)
    check(received.seq is None or received.seq >= 1, "a seq below 1 was accepted")
    return None if received.message is None else (kind, type(received.message).__name__)


class _Odd(Enum):
    FIRST = "first"


@dataclass
class _Record:
    value: object


class _Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _odd(value: Any, rng: Random) -> Any:
    """Return a value in which some parts have other types than msgpack, as tools return them."""
    if isinstance(value, dict) and rng.random() < 0.8:
        made = {_odd_key(key, rng): _odd(inner, rng) for key, inner in value.items()}
        if rng.random() < 0.05:
            made["itself"] = made
        return made
    if isinstance(value, list) and rng.random() < 0.8:
        items = [_odd(inner, rng) for inner in value]
        return rng.choice((list, tuple, deque, _Record))(items)
    return rng.choice(_LEAVES) if rng.random() < 0.3 else value


def _odd_key(key: object, rng: Random) -> Any:
    return rng.choice((1, None, 2.5, b"key", (1, 2), _Unprintable)) if rng.random() < 0.05 else key


_LEAVES: Final[Sequence[Any]] = (
    *(math.nan, -math.inf, 2**64, -(2**63) - 1, Decimal("1.5"), Decimal("NaN"), _Odd.FIRST, frozenset((1, "a"))),
    *(datetime(2026, 11, 30), date(2026, 11, 30), timedelta(seconds=1.5), bytearray(b"x"), _Unprintable(), object()),
    *(10**5000, "\ud800", _Record(_Record(1)), _Record, len, DescribeRequest(agent="x"), {1, 2}, memoryview(b"x")),
)


def _result(parts: list[bytes]) -> object:
    data = parts[-1] if parts else b""
    value = _odd(unpacked(data), Random(len(data)))
    again = unpack(plain.packer()(plain.PlainMap(result=plain.plain(value))), "a result that was converted")
    _check_plain(again["result"])
    try:
        packed = plain.packer()({"result": value})
    except ModelError as error:
        check(error.error_type == "invalid_output", f"unexpected {error.error_type}")
        return "refused"
    _check_plain(msgpack.unpackb(packed, timestamp=3)["result"])
    return type(value).__name__


def _check_plain(value: Any) -> None:
    check(_depth(value) <= MAX_DEPTH, "a result is nested too deeply")
    level = [value]
    while level:
        check(not any(isinstance(each, float) and not math.isfinite(each) for each in level), "a result has NaN")
        maps = [each for each in level if isinstance(each, dict)]
        check(all(isinstance(key, str) for each in maps for key in each), "a result has a key that is not text")
        level = [inner for each in level if isinstance(each, list) for inner in each]
        level += [inner for each in maps for inner in each.values()]


_PARSERS: Final = (_from_client, _to_broker, _to_worker, _to_client, _result)


def more(rng: Random) -> Step:
    """Make a valid message for one of the parsers."""
    op = rng.choice((FROM_CLIENT, FROM_CLIENT, FROM_CLIENT, FROM_CLIENT, TO_BROKER, TO_WORKER, TO_CLIENT, RESULT))
    messages_of = (corpus.from_client, corpus.to_broker, corpus.to_worker, corpus.to_client, corpus.to_client)[op]
    parts = list(rng.choice(messages_of()))
    if op == FROM_CLIENT:
        match rng.randrange(24):
            case 0:
                parts[1] = b"x" * rng.choice((64, 65, 66, 256, 257, 1000))
            case 1:
                parts[3:] = [pack({"agent": "echo", "prompt": "x" * rng.choice((4000, MAX_BODY, 2 * MAX_BODY))})]
            case 2:
                many = rng.choice(([None], [[]], [{}], ["x"])) * rng.choice((100, 900, 5000))
                parts[3:] = [pack({"agent": "echo", "prompt": "hi", "deps": many, "metadata": {"x": "x" * 4000}})]
            case 3:
                parts[2] = b"\x80" * rng.choice((MAX_HEADER, MAX_HEADER + 1))
            case _:
                pass
    return Step(op, parts)


PARSERS: Final = Harness(
    name="parsers",
    about="protocol: frames, msgpack, requests, backend, plain; client/messages",
    legal="RequestError for a message of or to a client; MalformedMessageError between broker and workers; "
    "ModelError for a result without a plain form",
    invariants=(
        f"an accepted message has a known kind, an id of 1 to {MAX_ID} bytes, a header of at most {MAX_HEADER} bytes "
        "and a body within max_body",
        f"an invalid id of over {MAX_ECHOED} bytes is not repeated in the error",
        "a header and a message of the backend are the same after they were packed again",
        "an error has a known error_type, a message of limited size, and at most 20 faults",
        "a body has at most as many items as the reader of the body allows",
        "a result that was converted can be packed, and has only finite numbers and text as keys",
    ),
    examine=examine,
    begin=lambda rng: [more(rng)],
    more=more,
    share=85,
    ci_inputs=1500,
)
