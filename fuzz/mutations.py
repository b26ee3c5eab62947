"""Structure-aware mutations: a message is changed as a msgpack value or as a list of frames, and packed again.

Bytes that are changed blindly rarely pass the msgpack parser, so most of the code would never see them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

import msgpack

from fuzz.steps import Step

SCALARS: Final[Sequence[Any]] = (
    *(None, True, False, 0, 1, -1, 2, 3, 10, 11, 127, 255, 256, 65536, 2**31, 2**53, 2**53 + 1, 2**63, 2**64 - 1),
    *(-(2**63), 0.0, -0.5, 1e308, 5e-324),
    *("", "a", "x" * 64, "x" * 65, "x" * 513, "x" * 1025, "\x00", "ä", "😀", "../../etc/passwd", "run_stream-1"),
    *(b"", b"\x00", b"\xff" * 16, b"x" * 65),
    *("cancel", "keep", "single", "text", "all", "complete", "cancelled", "superseded", "RUNNING"),
    datetime(2026, 11, 30, tzinfo=UTC),
    *([], {}, [[]], {"a": {}}, [None] * 40),
)
"""Values at the borders of types and limits."""
RAW: Final[Sequence[bytes]] = (
    b"",
    b"\x00",
    b"\xc1",
    b"\x80\x00",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x81\xa1a\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\x82\xa1a\x01\xa1a\x02",
    b"\x81\x01\x02",
    b"\x81\xa1a\xa1\xff",
    b"\x81\xa1a\xd4\x05\x00",
    b"\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12,
    b"\x81\xa1a" + b"\x91" * 600 + b"\xc0",
    b"\x81\xa1a" + b"\x91" * 1100 + b"\xc0",
    b"\x81\xa1a" + b"\x81\xa1b" * 1100 + b"\xc0",
    b"\x81\xa1a\xdc\x20\x00" + b"\x90" * 0x2000,
    b"x" * 257,
    b"x" * 5000,
    b"x" * 20_000,
)
"""Frames that msgpack must refuse, or that are large or deep."""


def unpacked(frame: bytes) -> Any:
    """Return the value of a frame; None if the frame is not msgpack."""
    try:
        return msgpack.unpackb(frame, timestamp=3, strict_map_key=False)
    except Exception:
        return None


def mutated_value(value: Any, rng: Random, pool: Sequence[Any]) -> Any:
    """Return a copy of a value in which one place is changed.

    Args:
        value: An unpacked msgpack value; it is not changed.
        rng: Source of all choices.
        pool: Other values, parts of which may be inserted.
    """
    if isinstance(value, dict) and value and rng.random() < 0.85:
        return _mutated_map(value, rng, pool)
    if isinstance(value, list) and value and rng.random() < 0.8:
        return _mutated_list(value, rng, pool)
    return _other(value, rng, pool)


def _mutated_map(value: dict[Any, Any], rng: Random, pool: Sequence[Any]) -> dict[Any, Any]:
    made = dict(value)
    key = rng.choice(list(made))
    match rng.randrange(10):
        case 0:
            del made[key]
        case 1:
            made[rng.choice(("x", "", "seq", "agent", 7, "$ref", "a" * 300))] = _other(None, rng, pool)
        case 2:
            made[str(key) + "x"] = made.pop(key)
        case _:
            made[key] = mutated_value(made[key], rng, pool)
    return made


def _mutated_list(value: list[Any], rng: Random, pool: Sequence[Any]) -> list[Any]:
    made = list(value)
    at = rng.randrange(len(made))
    match rng.randrange(8):
        case 0:
            del made[at]
        case 1:
            made.insert(at, made[at])
        case 2:
            made = made * rng.choice((2, 3, 20))
        case 3:
            made.append(_other(None, rng, pool))
        case _:
            made[at] = mutated_value(made[at], rng, pool)
    return made[:2000]


def _other(value: Any, rng: Random, pool: Sequence[Any]) -> Any:
    """Return a value in place of another one."""
    match rng.randrange(8):
        case 0 if isinstance(value, int) and not isinstance(value, bool):
            return max(-(2**63), min(2**64 - 1, value + rng.choice((-1, 1, 100, -(2**31), 2**32))))
        case 0 if isinstance(value, str | bytes) and value:
            cut = rng.randrange(len(value))
            return value[:cut] + value[cut + 1 :] if rng.random() < 0.5 else value * 2
        case 1:
            return nested(rng.choice((3, 20, 70, 600)), rng)
        case 2 if pool:
            return _inner(rng.choice(pool), rng)
        case _:
            return rng.choice(SCALARS)


def _inner(value: Any, rng: Random) -> Any:
    while isinstance(value, dict | list) and value and rng.random() < 0.7:
        value = rng.choice(list(value.values()) if isinstance(value, dict) else value)
    return value


def nested(depth: int, rng: Random) -> Any:
    """Return a value nested that deep."""
    value: Any = rng.choice((None, 1, "x", {}))
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def mutated_frame(frame: bytes, rng: Random, pool: Sequence[Any]) -> bytes:
    """Return a frame with another value, or with other bytes."""
    if rng.random() < 0.75 and (value := unpacked(frame)) is not None and not isinstance(value, int):
        try:
            return msgpack.packb(mutated_value(value, rng, pool), datetime=True)
        except (ValueError, OverflowError, TypeError):
            return frame
    match rng.randrange(5):
        case 0:
            return rng.choice(RAW)
        case 1:
            return frame[: rng.randrange(len(frame) + 1)]
        case 2:
            return frame + rng.randbytes(rng.choice((1, 4, 64, 200)))
        case _ if frame:
            at = rng.randrange(len(frame))
            return frame[:at] + bytes((rng.randrange(256),)) + frame[at + 1 :]
        case _:
            return rng.randbytes(rng.choice((1, 65, 300)))


def mutated_frames(frames: Sequence[bytes], rng: Random, pool: Sequence[Any]) -> list[bytes]:
    """Return the frames of a message with one change."""
    made = list(frames)
    if made and rng.random() < 0.8:
        # The last frames are headers and bodies, which have most of the structure.
        at = max(rng.randrange(len(made)), rng.randrange(len(made)))
        made[at] = mutated_frame(made[at], rng, pool)
        return made
    match rng.randrange(5):
        case 0 if made:
            del made[rng.randrange(len(made))]
        case 1 if made:
            made.insert(rng.randrange(len(made)), rng.choice(made))
        case 2 if made:
            one, other = rng.randrange(len(made)), rng.randrange(len(made))
            made[one], made[other] = made[other], made[one]
        case 3:
            made += [b""] * rng.choice((1, 4, 64, 100))
        case _:
            made.insert(0, b"")
    return made


def mutated_steps(
    steps: Sequence[Step], rng: Random, pool: Sequence[Any], more: Callable[[Random], Step]
) -> list[Step]:
    """Return the steps of an input with one change.

    Args:
        steps: The steps.
        rng: Source of all choices.
        pool: Values, parts of which may be inserted.
        more: Makes a further valid step.
    """
    made = list(steps)
    choice = rng.randrange(12)
    if not made or choice == 0:
        made.insert(rng.randrange(len(made) + 1), more(rng))
        return made
    at = rng.randrange(len(made))
    match choice:
        case 1:
            del made[at]
        case 2:
            made.insert(rng.randrange(len(made) + 1), made[at])
        case 3:
            other = rng.randrange(len(made))
            made[at], made[other] = made[other], made[at]
        case 4:
            made[at] = made[at]._replace(op=rng.randrange(256))
        case _:
            made[at] = made[at]._replace(frames=mutated_frames(made[at].frames, rng, pool))
    return made
