"""Type aliases for msgpack values, as they are sent and received. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

Value: TypeAlias = "datetime | bytes | str | float | int | bool | Sequence[Value] | Mapping[str, Value] | None"
"""A value that msgpack can pack: integers of 64 bits, finite floats, times with a zone, maps with text as keys."""
Body: TypeAlias = "Mapping[str, Value]"
"""A header or body: one map."""
