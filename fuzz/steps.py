"""The form of an input: a sequence of steps, each with a number that selects its meaning, and frames.

Every sequence of bytes is a valid input, so an engine that knows nothing about the form can mutate it, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

MAX_STEPS: Final = 64
"""Steps of one input; the bytes after them are ignored, so that the time of an input is bounded."""


class Step(NamedTuple):
    """One event: the harness decides what `op` means."""

    op: int
    """0 to 255."""
    frames: list[bytes]
    """At most 255 frames of less than 16 MiB."""


def encode(steps: Iterable[Step]) -> bytes:
    """Return the bytes of an input: for each step `op`, the number of frames, and each frame after its size."""
    parts: list[bytes] = []
    for op, frames in steps:
        parts.append(bytes((op & 255, min(len(frames), 255))))
        for frame in frames[:255]:
            parts += (len(frame).to_bytes(3, "big"), frame)
    return b"".join(parts)


def decode(data: bytes) -> list[Step]:
    """Return the steps of an input. If the bytes end too early, the last frame is what is left."""
    steps: list[Step] = []
    at = 0
    while at + 2 <= len(data) and len(steps) < MAX_STEPS:
        op, count = data[at], data[at + 1]
        at += 2
        frames: list[bytes] = []
        for _ in range(count):
            if at + 3 > len(data):
                break
            size = int.from_bytes(data[at : at + 3], "big")
            frames.append(data[at + 3 : at + 3 + size])
            at += 3 + size
        steps.append(Step(op, frames))
    return steps
